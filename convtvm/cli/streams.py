"""The standard streams of a command: what becomes of output that nobody takes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

CLOSED_PIPE = 141  # the exit status of a program that SIGPIPE ends, 128 + 13


class OutputLost(Exception):
    """Standard output cannot be written; holds the OSError. Not one itself: commands handle those
    of files."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror or str(cause))
        self.is_closed_pipe = isinstance(cause, BrokenPipeError)


class _Stdout(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputLost(error) from None


class _Stderr(io.FileIO):
    """Takes what cannot be written as written: it must not end the work that it tells of."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Let failures of stdout be OutputLost meanwhile, at the latest at the end, and stderr have
    none; what goes to a stream that was closed from the start is dropped.

    Text that the encoding lacks is shown escaped. Streams that are not the process's own, as in
    tests, stay as they are.
    """
    _fill_gaps()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _guarded(before[0], _Stdout), _guarded(before[1], _Stderr)
    try:
        yield
        sys.stdout.flush()
    except OutputLost:
        _discard_stdout()
        raise
    finally:
        sys.stdout, sys.stderr = before


def _fill_gaps() -> None:
    """Open what is closed of the descriptors 0 to 2: the next file would get that number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _guarded(stream: Any, kind: type[io.FileIO]) -> Any:
    """`stream`, or one over the same file that writes by `kind`."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        return stream
    if stream not in (sys.__stdout__, sys.__stderr__) or number not in (1, 2):
        return stream
    stream.flush()
    raw = io.BufferedWriter(kind(number, "wb", closefd=False))
    return io.TextIOWrapper(
        raw,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _discard_stdout() -> None:
    """Let what is still in buffers go nowhere: Python writes it when it ends, and would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
