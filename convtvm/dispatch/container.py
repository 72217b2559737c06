"""The end of a library file: a text that says what the file holds, its checksum, and the kind.

... | text (JSON) | SHA-256 | length of the text (8 bytes, little-endian) | kind (16 bytes)

Loaders of shared objects ignore what follows the ELF image at the beginning. What the checksum is
of, the kind decides.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from convtvm.errors import LibraryError

LIBRARY, MODEL = b"convtvm-library\x01", b"convtvm-model\x00\x00\x01"
_DIGEST, _LENGTH = 32, 8
_TAIL = _DIGEST + _LENGTH + len(LIBRARY)


class _Words(NamedTuple):
    """What a person would call a kind of file, how to load it, what makes it."""

    name: str
    load: str
    made_by: str


_WORDS = {
    LIBRARY: _Words("convtvm library", "convtvm.load", "`convtvm compile`"),
    MODEL: _Words("convtvm model", "convtvm.load_model", "`convtvm compile MODEL.onnx`"),
}
Content: TypeAlias = bytes | memoryview


@dataclass(frozen=True)
class Trailer:
    """The text of a file, the checksum that it states, and where the text begins."""

    text: bytes
    digest: bytes
    start: int


def tail(text: bytes, digest: bytes, kind: bytes) -> bytes:
    """What follows the text."""
    return digest + len(text).to_bytes(_LENGTH, "little") + kind


def kind_of(content: Content) -> bytes | None:
    """LIBRARY or MODEL, None if `content` ends like neither."""
    end = bytes(content[-len(LIBRARY) :])
    return end if len(content) >= _TAIL and end in _WORDS else None


def is_model_file(path: str | Path) -> bool:
    """Whether the file at `path`, if there is one, ends like a model."""
    try:
        with open(path, "rb") as file:
            file.seek(-_TAIL, os.SEEK_END)
            return kind_of(file.read()) == MODEL
    except OSError:
        return False


def trailer(content: Content, kind: bytes, path: str | Path) -> Trailer:
    """The trailer of a file of this kind. Raises LibraryError for any other."""
    found = kind_of(content)
    wanted = _WORDS[kind]
    if found is None:
        raise LibraryError(
            f"{path} is not a {wanted.name}, or is cut short; make one with {wanted.made_by}"
        )
    if found != kind:
        other = _WORDS[found]
        raise LibraryError(
            f"{path} is a {other.name}, not a {wanted.name}; load it with {other.load}"
        )
    end = len(content) - _TAIL
    length = int.from_bytes(content[end + _DIGEST : end + _DIGEST + _LENGTH], "little")
    if length > end:
        raise damaged(path)
    digest = bytes(content[end : end + _DIGEST])
    return Trailer(bytes(content[end - length : end]), digest, end - length)


def damaged(path: str | Path) -> LibraryError:
    """The error about a file whose bytes are not those that were written."""
    return LibraryError(f"{path} is damaged: its checksum does not match; copy or compile it again")
