"""The manifest of a kernel library: what it holds, appended to the .so and checked before it loads.

Layout of a library file: ELF shared object | manifest (JSON) | SHA-256 of all that precedes |
length of the JSON (8 bytes, little-endian) | magic. Loaders of shared objects ignore what follows
the ELF image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convtvm.errors import LibraryError, WorkloadError
from convtvm.workload import ConvWorkload

FORMAT = 1
_MAGIC = b"convtvm-library\x01"
_TAIL = 32 + 8 + len(_MAGIC)


@dataclass(frozen=True)
class Kernel:
    """One compiled candidate of a workload.

    `function` takes (data, packed weight, bias, out), `pack` takes (weight, packed weight);
    `run_secs` and `max_error` are what tuning measured, None for a kernel that was never measured;
    then `predicted_secs` is what a model of the log expects, if there is one. `decisions` is
    `tuned`, `transferred` from another workload or `default`. `epilogues` maps the epilogues that
    were compiled besides, `clip` or `add`, to the functions that have them. `scratch` are the
    buffers (dtype, *shape) that a GPU's kernel takes after `out`.
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
    epilogues: Mapping[str, str] = field(default_factory=dict)
    scratch: tuple[tuple[Any, ...], ...] = ()


@dataclass(frozen=True)
class Manifest:
    """Everything the run time knows of a library; `workloads` maps keys to names."""

    target: str
    features: tuple[str, ...]
    threads: int
    layout: str
    workloads: Mapping[str, str]
    kernels: Sequence[Kernel]
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def on_gpu(self) -> bool:
        """Whether the kernels are for an NVIDIA GPU."""
        return self.target.split(" ")[0] == "cuda"

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode("utf8")


def attach(image: bytes, manifest: Manifest) -> bytes:
    """The library file of an ELF image and its manifest."""
    text = manifest.to_json()
    body = image + text
    return body + hashlib.sha256(body).digest() + len(text).to_bytes(8, "little") + _MAGIC


def read(path: str | Path) -> tuple[bytes, Manifest]:
    """The whole file and its manifest. Raises LibraryError for anything but an intact library."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise LibraryError(f"cannot read library {path}: {error.strerror}") from None
    if len(content) < _TAIL or not content.endswith(_MAGIC):
        raise LibraryError(
            f"{path} is not a convtvm library, or is cut short; make one with `convtvm compile`"
        )
    body = content[:-_TAIL]
    length = int.from_bytes(content[-len(_MAGIC) - 8 : -len(_MAGIC)], "little")
    if hashlib.sha256(body).digest() != content[-_TAIL : -_TAIL + 32] or length > len(body):
        raise LibraryError(
            f"{path} is damaged: its checksum does not match; copy or compile it again"
        )
    return content, _parse(body[len(body) - length :], path)


def _parse(text: bytes, path: str | Path) -> Manifest:
    try:
        entry: dict[str, Any] = json.loads(text)
        found = entry.get("format")
        if found != FORMAT:
            raise LibraryError(f"{path} has manifest format {found!r}, this version reads {FORMAT}")
        kernels = []
        for kernel in entry.pop("kernels"):
            scratch = tuple(map(tuple, kernel.pop("scratch", ())))
            shape = tuple(kernel.pop("packed_shape"))
            kernels.append(Kernel(**kernel, packed_shape=shape, scratch=scratch))
        features = tuple(entry.pop("features"))
        manifest = Manifest(**entry, features=features, kernels=kernels)
        for key in manifest.workloads:
            ConvWorkload.parse(key)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        WorkloadError,
    ) as error:
        raise LibraryError(f"{path} has an unreadable manifest: {error}") from None
    return manifest
