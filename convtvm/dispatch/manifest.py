"""The manifest of a kernel library: what it holds, appended to the .so and checked before it loads.

Layout of a library file: ELF shared object | JSON | the rest of a `container`; the checksum is of
all that precedes it. The JSON has one manifest for each target.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convtvm.dispatch import container
from convtvm.errors import LibraryError, WorkloadError
from convtvm.problem.workload import BLOCKED_LAYOUTS, ENTRY_LAYOUTS, LAYOUTS, ConvWorkload

FORMAT = 2


@dataclass(frozen=True)
class Kernel:
    """One compiled candidate of a workload.

    `function` takes (data, packed weight, bias, out), `pack` takes (weight, packed weight);
    `run_secs` is what tuning measured, None for a kernel that was never measured; then
    `predicted_secs` is what the log makes expect, if anything. `max_error` was measured by the same
    decisions, here or where they come from. `decisions` is `tuned`, `transferred` from the task
    that `source` names, or `default`. `epilogues` maps the epilogues that were compiled besides,
    `clip` or `add`, to the functions that have them. `scratch` are the buffers (dtype, *shape) that
    a GPU's kernel takes after `out`.
    """

    workload: str
    algorithm: str
    function: str
    pack: str
    packed_shape: tuple[int, ...]
    workspace_bytes: int
    run_secs: float | None
    max_error: float | None
    decisions: str
    predicted_secs: float | None = None
    source: str = ""
    epilogues: Mapping[str, str] = field(default_factory=dict)
    scratch: tuple[tuple[Any, ...], ...] = ()

    @property
    def is_opt_in(self) -> bool:
        """Whether it gives up accuracy that users expect of its dtype: products in TF32."""
        return self.algorithm.endswith(":tf32")


@dataclass(frozen=True)
class Manifest:
    """Everything the run time knows of a library's kernels for one target; `workloads` maps keys to
    names."""

    target: str
    features: tuple[str, ...]
    threads: int
    layout: str
    workloads: Mapping[str, str]
    kernels: Sequence[Kernel]
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the kernels are for an NVIDIA GPU."""
        return self.target.split(" ")[0] == "cuda"


def attach(image: bytes, manifests: Sequence[Manifest]) -> bytes:
    """The library file of an ELF image and the manifests of its targets, the best target first."""
    entry = {"format": FORMAT, "targets": [asdict(m) for m in manifests]}
    text = json.dumps(entry, separators=(",", ":")).encode("utf8")
    body = image + text
    return body + container.tail(text, hashlib.sha256(body).digest(), container.LIBRARY)


def read(path: str | Path) -> tuple[bytes, list[Manifest]]:
    """The whole file and its manifests, one or more. Raises LibraryError for anything but an intact
    library."""
    try:
        place = Path(path)
        if stat.S_ISCHR(place.stat().st_mode):  # some have no end
            raise LibraryError(f"cannot read library {path}: it is a device")
        content = place.read_bytes()
    except OSError as error:
        raise LibraryError(f"cannot read library {path}: {error.strerror}") from None
    except (TypeError, ValueError) as error:  # no path; a path with a zero byte
        raise LibraryError(f"library is {path!r}, expected the path of a file: {error}") from None
    return parse(content, path)


def parse(content: bytes, path: str | Path) -> tuple[bytes, list[Manifest]]:
    """The content of a library's file and its manifests; `path` names it in errors. Raises
    LibraryError."""
    found = container.trailer(content, container.LIBRARY, path)
    body = memoryview(content)[: found.start + len(found.text)]
    if hashlib.sha256(body).digest() != found.digest:
        raise container.damaged(path)
    return content, _parse(found.text, path)


def _parse(text: bytes, path: str | Path) -> list[Manifest]:
    try:
        entry: dict[str, Any] = json.loads(text)
        found = entry.get("format")
        if found != FORMAT:
            raise LibraryError(
                f"{path} has manifest format {found!r}, this version reads {FORMAT}; "
                "compile it again, or load it with the convtvm that made it"
            )
        manifests = [_manifest(section) for section in entry["targets"]]
        if not manifests:
            raise ValueError("there is no target")
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        WorkloadError,
        IndexError,
    ) as error:
        raise LibraryError(f"{path} has an unreadable manifest: {error}") from None
    return manifests


def _manifest(entry: dict[str, Any]) -> Manifest:
    kernels = []
    for kernel in entry.pop("kernels"):
        scratch = tuple(map(tuple, kernel.pop("scratch", ())))
        shape = tuple(kernel.pop("packed_shape"))
        kernels.append(Kernel(**kernel, packed_shape=shape, scratch=scratch))
    features = tuple(entry.pop("features"))
    manifest = Manifest(**entry, features=features, kernels=kernels)
    _check(manifest)
    return manifest


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value < math.inf)


def _is_texts(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(v, str) for v in values.values())


def _is_shape(values: Any) -> bool:
    return all(type(v) is int and v > 0 for v in values)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "target": _is_text,
    "features": lambda values: all(map(_is_text, values)),
    "threads": lambda value: _is_count(value) and value > 0,
    "layout": lambda value: value in (*LAYOUTS, *BLOCKED_LAYOUTS, *ENTRY_LAYOUTS),
    "workloads": _is_texts,
    "versions": _is_texts,
}
_KERNEL_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("workload", "algorithm", "function", "pack", "decisions", "source"), _is_text),
    "packed_shape": _is_shape,
    "workspace_bytes": _is_count,
    **dict.fromkeys(("run_secs", "max_error", "predicted_secs"), _is_number),
    "epilogues": _is_texts,
    "scratch": lambda buffers: all(_is_text(b[0]) and _is_shape(b[1:]) for b in buffers),
}


def _check(manifest: Manifest) -> None:
    """Raise ValueError or WorkloadError for a field that is not what it says."""
    parts: list[tuple[Any, dict[str, Callable[[Any], bool]]]] = [(manifest, _FIELDS)]
    parts += [(kernel, _KERNEL_FIELDS) for kernel in manifest.kernels]
    for part, fields in parts:
        for name, is_right in fields.items():
            value = getattr(part, name)
            if not is_right(value):
                raise ValueError(f"{name} is {str(value)[:40]!r}")
    for key, name in manifest.workloads.items():
        ConvWorkload.parse(f'{key}n"{name}"' if name else key)
