"""This Python: packages that it must not load, and its like as a child process that imports nothing
from the current folder.

`python -m` and `python -c` put that folder first on the path: whatever lies there under the name of
a module, as random.py, would be run.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from typing import Any

_LEAVE = "import sys\nif not getattr(sys.flags, 'safe_path', False):\n    del sys.path[0]\n"


def command(code: str, *arguments: str) -> list[str]:
    """The command line that runs `code` with the arguments in sys.argv[1:]."""
    return [sys.executable, "-c", _LEAVE + code, *arguments]


class _Hider:
    """A finder that comes before all others and finds packages whose import fails."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in self.names else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        raise ModuleNotFoundError(f"{spec.name} is hidden", name=spec.name)

    def exec_module(self, module: Any) -> None:
        """Never reached; a loader has it."""


_hider = _Hider()


@contextlib.contextmanager
def hidden(package: str) -> Iterator[None]:
    """Let no import load a package meanwhile; one that is loaded stays so.

    Nothing stands for it in sys.modules: None there fails an import as well, but scipy and others
    ask whatever they find under `torch` for its Tensor.
    """
    if _hider not in sys.meta_path:
        sys.meta_path.insert(0, _hider)  # type: ignore[arg-type]
    _hider.names.append(package)
    try:
        yield
    finally:
        _hider.names.remove(package)


@contextlib.contextmanager
def shown(package: str) -> Iterator[None]:
    """Let imports find a package again within `hidden`."""
    names = _hider.names
    _hider.names = [name for name in names if name != package]
    try:
        yield
    finally:
        _hider.names = names
