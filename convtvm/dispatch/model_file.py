"""A model library: one file with code, weights and what to call; weights are mapped, not read.

ELF shared object | zeros up to a multiple of 64 | weights, each with zeros up to a multiple of 64 |
JSON | the rest of a `container`, whose checksum is of the ELF image and the JSON

The JSON has the length of the image, offset, length and SHA-256 (zeros included) of each weight,
and one manifest for each target. Targets share weights, and equal weights are stored once.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convtvm.dispatch import container
from convtvm.dispatch.model_manifest import ModelManifest, from_json, to_json
from convtvm.errors import LibraryError
from convtvm.files import write_whole
from convtvm.problem.reference import ALIGNMENT, aligned_empty

FORMAT = 1


@dataclass(frozen=True)
class ModelContent:
    """What is in a file: the ELF image, the weights as bytes, the manifests, the best first."""

    image: bytes
    weights: Sequence[np.ndarray]
    targets: Sequence[ModelManifest]

    @property
    def weight_bytes(self) -> int:
        return sum(w.nbytes for w in self.weights)


class WeightStore:
    """Arrays by content: what is equal is kept once."""

    def __init__(self) -> None:
        self.weights: list[np.ndarray] = []
        self._known: dict[tuple[int, bytes], int] = {}

    def add(self, array: np.ndarray) -> int:
        """The index of the bytes of `array` among `weights`."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if not flat.flags.writeable or flat.ctypes.data % ALIGNMENT:  # as the file will have it
            held = aligned_empty(flat.shape, np.uint8)
            held[...] = flat
            flat = held
        key = (flat.nbytes, hashlib.sha256(flat.data).digest())
        if key not in self._known:
            self._known[key] = len(self.weights)
            self.weights.append(flat)
        return self._known[key]


def weight_offsets(content: ModelContent) -> list[int]:
    """Where each weight begins in the file, in bytes."""
    offsets, end = [], _padded(len(content.image))
    for weight in content.weights:
        offsets.append(end)
        end += _padded(weight.nbytes)
    return offsets


def write(path: str | Path, content: ModelContent) -> None:
    """Write the file, whole or not at all. Raises LibraryError if that is impossible."""
    try:
        write_whole(path, _pieces(content), mode=0o777)
    except OSError as error:
        raise LibraryError(f"cannot write model {path}: {error.strerror}") from None


def _pieces(content: ModelContent) -> Iterator[Any]:
    """The bytes of a file, in order, without a copy of the weights."""
    yield content.image
    yield _zeros(len(content.image))
    entries = []
    for weight, offset in zip(content.weights, weight_offsets(content), strict=True):
        zeros = _zeros(weight.nbytes)
        yield weight.data
        yield zeros
        entries.append([offset, weight.nbytes, _digest((weight.data, zeros))])
    entry = {
        "format": FORMAT,
        "image_bytes": len(content.image),
        "weights": entries,
        "targets": [to_json(manifest) for manifest in content.targets],
    }
    text = json.dumps(entry, separators=(",", ":")).encode("utf8")
    yield text
    digest = hashlib.sha256(content.image)
    digest.update(text)
    yield container.tail(text, digest.digest(), container.MODEL)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _zeros(size: int) -> bytes:
    return bytes(_padded(size) - size)


def _digest(parts: Sequence[Any]) -> str:
    made = hashlib.sha256()
    for part in parts:
        made.update(part)
    return made.hexdigest()


def read(path: str | Path) -> ModelContent:
    """What is in a file; its weights are pages of the file, read when they are first used.

    Raises LibraryError for anything but an intact model.
    """
    mapped = _map(path)
    found = container.trailer(mapped, container.MODEL, path)
    try:
        entry: Mapping[str, Any] = json.loads(found.text)
        size = entry.get("image_bytes", 0)
        known = type(size) is int and 0 <= size <= found.start
        image = bytes(mapped[:size]) if known else b""
        if not known or hashlib.sha256(image + found.text).digest() != found.digest:
            raise container.damaged(path)
        if entry["format"] != FORMAT:
            raise LibraryError(
                f"{path} has model format {entry['format']!r}, this version reads {FORMAT}; "
                "compile it again, or load it with the convtvm that made it"
            )
        if any(mapped[size : _padded(size)]):
            raise container.damaged(path)
        weights = _weights(mapped[: found.start], _padded(size), entry["weights"], path)
        targets = [from_json(one, [w.nbytes for w in weights]) for one in entry["targets"]]
        if not targets:
            raise ValueError("there is no target")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, IndexError) as error:
        # The JSON of a damaged file may be none.
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            raise container.damaged(path) from None
        raise LibraryError(f"{path} has an unreadable manifest: {error}") from None
    return ModelContent(image, weights, targets)


def _map(path: str | Path) -> memoryview:
    """The pages of a file. They are private and writable: DLPack exports no others, and nobody
    writes them."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LibraryError(f"cannot read model {path}: {reason}") from None


def _weights(
    mapped: memoryview, start: int, entries: Sequence[Sequence[Any]], path: str | Path
) -> list[np.ndarray]:
    """Views of the weights, which follow each other from `start` on to the end; their checksums
    are compared by all cores."""
    spans, views = [], []
    for offset, size, _ in entries:
        if type(size) is not int or size < 1 or offset != start:
            raise ValueError("a weight is out of place")
        start += _padded(size)
        spans.append(mapped[offset:start])
        views.append(np.frombuffer(mapped, np.uint8, size, offset))
    if start != len(mapped):
        raise ValueError("the weights do not end where they should")
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        digests = list(threads.map(lambda span: _digest((span,)), spans))
    if digests != [digest for _, _, digest in entries]:
        raise container.damaged(path)
    return views
