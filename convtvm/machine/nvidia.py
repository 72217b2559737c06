"""NVIDIA's shared libraries, where the loader, PyTorch or NVIDIA's own packages have them."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path


@cache
def load(*names: str) -> ctypes.CDLL | None:
    """The first library of `names` that can be opened, its symbols visible to later ones."""
    for name in names:
        for path in (name, *map(str, _installed(name))):
            try:
                # NVRTC opens its helper by name only, and finds it once it is in the process.
                helpers = Path(path).parent.glob("libnvrtc-builtins.so.*") if "/" in path else ()
                for helper in helpers if "nvrtc" in name else ():
                    ctypes.CDLL(str(helper))
                return ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
            except OSError:
                continue
    return None


def _installed(name: str) -> Iterator[Path]:
    for folder in _packages():
        yield from folder.glob(f"*/lib/{name}")


def _packages() -> list[Path]:
    """The folders of NVIDIA's packages, which share the namespace `nvidia`."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
