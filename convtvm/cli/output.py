"""What the commands share in print: texts of numbers, tables, JSON, and checks of output files."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from convtvm import files
from convtvm.errors import ConvtvmError, WorkloadError, printable
from convtvm.machine import interpreter
from convtvm.problem.workload import ConvWorkload

_UNCUT = 100_000  # columns
_GAP = 3  # between two columns of a table


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """Let no import load PyTorch meanwhile; decorates commands that do not use it.

    tvm_ffi imports PyTorch first where it is installed, against a clash of symbols on Windows. That
    takes 2 s, longer than all the rest of `convtvm run`.
    """
    with interpreter.hidden("torch"):
        yield


@contextlib.contextmanager
def torch_allowed() -> Iterator[None]:
    """Let imports find PyTorch again within `without_torch`."""
    with interpreter.shown("torch"):
        yield


@contextlib.contextmanager
def chatter_on_stderr() -> Iterator[None]:
    """Let what libraries print on file descriptor 1 go to stderr: stdout is for results."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C libraries still hold
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


# ---- texts ---------------------------------------------------------------------------------------


def significant(value: float, digits: int = 4) -> str:
    """`value` rounded to `digits` significant digits, never in scientific notation."""
    if not math.isfinite(value):
        return str(value)
    before = math.floor(math.log10(abs(value))) + 1 if value else 1
    return f"{value:.{max(0, digits - before)}f}"


def ms(secs: float | None, missing: str = "-") -> str:
    return missing if secs is None or not math.isfinite(secs) else significant(secs * 1e3)


def gflops(w: ConvWorkload, secs: float | None) -> float | None:
    """Effective GFLOP/s: those of the direct algorithm, whichever was used."""
    return None if secs is None or not math.isfinite(secs) else w.flops / secs / 1e9


def text_of(value: float | None, pattern: str = "{:,}") -> str:
    return "-" if value is None else pattern.format(value)


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def labels(workloads: Iterable[ConvWorkload]) -> dict[ConvWorkload, str]:
    """A short text for each: its name where only one has it, else a descriptor that means it."""
    distinct = list(dict.fromkeys(workloads))
    names = Counter(w.name for w in distinct)
    return {w: w.name if w.name and names[w.name] == 1 else short(w) for w in distinct}


def short(w: ConvWorkload) -> str:
    """The shortest of some descriptors that `ConvWorkload.parse` reads as `w`."""
    key = w.key
    for axis in ("h", "w"):
        for token in (f"s{axis}1", f"d{axis}0", f"p{axis}0"):
            key = re.sub(rf"{token}(?!\d)", "", key)
    key = re.sub(r"^g1(?!\d)", "", key)
    square = re.sub(r"[iokspd]w\d+", "", key)
    implied = re.sub(r"o[hw]\d+", "", square)
    for text in (implied, square, re.sub(r"o[hw]\d+", "", key), key):
        try:
            if ConvWorkload.parse(text) == w:
                return text
        except WorkloadError:
            continue
    return w.key


def warn(message: str) -> None:
    click.echo(f"convtvm: warning: {' '.join(message.splitlines())}", err=True)


# ---- documents -----------------------------------------------------------------------------------


def print_json(document: Mapping[str, Any]) -> None:
    """Print strict JSON: what is not finite becomes null."""
    click.echo(json.dumps(finite(document), indent=2, allow_nan=False))


def finite(value: Any) -> Any:
    """A document as strict JSON can have it: None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; a column whose name begins with > is aligned to the right.

    Not cut to any width where stdout is no terminal; on a narrow one cells are broken where words
    end, and no column gets lost.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[printable(cell) for cell in row] for row in rows]
    terminal = Console()
    room = terminal.width if terminal.is_terminal else _UNCUT
    table = Table(box=SIMPLE_HEAD, show_header=any(columns), show_edge=False, pad_edge=False)
    for column, width in zip(columns, _widths(columns, cells, room), strict=True):
        right = column.startswith(">")
        table.add_column(
            Text(column.removeprefix(">")),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
            width=width,
        )
    for row in cells:
        table.add_row(*map(Text, row))
    console = Console(width=_UNCUT)  # rich would leave out columns that do not fit
    with console.capture() as text:
        console.print(table)
    if title:
        click.echo(printable(title))
    click.echo("\n".join(line.rstrip() for line in text.get().splitlines()) + "\n")


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """The width of each column in `room`: as wide as its text where that fits, else those on the
    left narrower, but never than their longest word."""
    from rich.cells import cell_len

    full, least = [], []
    for index, column in enumerate(columns):
        texts = [column.removeprefix(">"), *(row[index] for row in rows)]
        full.append(max(map(cell_len, texts)))
        words = [word for text in texts for word in text.split()]
        longest = max(map(cell_len, words), default=0)
        least.append(full[-1] if column.startswith(">") else longest)
    needs = [whole - word for whole, word in zip(full, least, strict=True)]
    spare = max(0, room - _GAP * (len(columns) - 1) - sum(least))
    share = min(1.0, spare / sum(needs)) if any(needs) else 0.0
    return [max(1, word + int(share * need)) for word, need in zip(least, needs, strict=True)]


# ---- files ---------------------------------------------------------------------------------------


def check_writable(path: Path) -> None:
    """Raise ConvtvmError unless a file can be made or replaced at `path`."""
    try:
        reason = files.objection(path)
    except ValueError as error:  # a zero byte in the path
        reason = str(error)
    if reason:
        raise ConvtvmError(f"cannot write {path}: {reason}")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a link stays a link. Raises ConvtvmError."""
    check_writable(path)
    try:
        files.write_whole(path, content)
    except OSError as error:
        raise ConvtvmError(f"cannot write {path}: {error.strerror}") from None
