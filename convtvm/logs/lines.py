"""The lines of a log file, in whichever form text comes: with a byte order mark, as UTF-16, with
line ends of Windows, compressed by gzip."""

from __future__ import annotations

import codecs
import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

from convtvm.errors import LogError

_GZIP = b"\x1f\x8b"
# Byte order marks with the encoding that they stand for; that of UTF-32 begins as that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def numbered_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, in UTF-8 without line ends, counted from 1.

    Raises LogError for a file that cannot be read.
    """
    try:
        kind = os.stat(path)
        if stat.S_ISCHR(kind.st_mode) and kind.st_rdev != os.stat(os.devnull).st_rdev:
            raise LogError(f"cannot read log {path}: it is a device, expected a file")
        content = Path(path).read_bytes()
    except OSError as error:
        raise LogError(f"cannot read log {path}: {error.strerror}") from None
    except ValueError as error:  # a zero byte in the path
        raise LogError(f"cannot read log {path}: {error}") from None
    for number, line in enumerate(_text(content, path).split(b"\n"), start=1):
        # Every file of those that `cat` joined may have begun with a mark.
        line = line.strip().removeprefix(codecs.BOM_UTF8).lstrip()
        if line:
            yield number, line


def check_appendable(path: str | Path, start: bytes) -> None:
    """Raise LogError if lines of UTF-8 cannot follow a log that begins with `start`."""
    form = "compressed" if start.startswith(_GZIP) else _encoding(start)
    if form:
        raise LogError(
            f"cannot append to log {path}: it is {form}; write a plain one by "
            f"`convtvm log merge {path} -o NEW.jsonl` and go on with that"
        )


def _encoding(start: bytes) -> str:
    """The encoding that a byte order mark announces, empty for UTF-8. Text of records is ASCII for
    the most part: without its zero bytes the mark is mere garbage."""
    if start.count(0) * 4 < len(start):
        return ""
    return next((name for mark, name in _MARKS if start.startswith(mark)), "")


def _text(content: bytes, path: str | Path) -> bytes:
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise LogError(
                f"cannot read log {path}: its compressed data is damaged: {error}"
            ) from None
    encoding = _encoding(content)
    return content.decode(encoding, errors="replace").encode("utf8") if encoding else content
