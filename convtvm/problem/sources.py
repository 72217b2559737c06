"""SOURCE on the command line: a network's name, a file of workloads, or one workload."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TypeAlias

from convtvm.errors import SourceError, WorkloadError
from convtvm.problem.workload import ConvWorkload

# Each is a file of benchdnn lines in problem/networks: batch 1, every distinct convolution once.
BUILTIN_NETWORKS = ("resnet18", "resnet50", "vgg16", "mobilenet_v2", "cv1_12")

_MODEL_SUFFIXES = (".onnx", ".pt2")
_DESCRIPTOR = re.compile(r"_*(g|mb|ic|oc|[iokspd][dhw])[0-9]")
# What stands for workloads in calls: one or several, each itself, or as a SOURCE.
Workloads: TypeAlias = (
    "ConvWorkload | str | os.PathLike[str] | Iterable[ConvWorkload | str | os.PathLike[str]]"
)
# Words of a line; a quoted part may hold spaces, an open quote runs to the end of the line.
_WORD = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
_BATCH = "--batch="
_EXAMPLE = "mb1ic64ih56oc64oh56kh3ph1"


def read_source(source: str) -> list[ConvWorkload]:
    """The workloads that `source` means, in order, repeated ones kept.

    A built-in network's name, a path of a file of benchdnn descriptors, or one descriptor; a
    built-in name wins over a file of that name (write ./resnet18 for the file). Options in a file
    choose what benchdnn runs, not the shapes, and are ignored (`--mb=` too), except
    `--batch=FILE`, which includes a file relative to the including one.
    """
    if source in BUILTIN_NETWORKS:
        return _builtin(source)
    path = Path(source)
    if is_model(source):
        raise SourceError(
            f"{source} is a model; expected a network's name ({', '.join(BUILTIN_NETWORKS)}), a "
            "workload file or one workload"
        )
    if source and os.path.exists(source):
        workloads = list(_read_file(path, including=()))
        if not workloads:
            raise SourceError(f"{source}: holds no workload; expected lines like {_EXAMPLE}")
        return workloads
    if _DESCRIPTOR.match(source.strip()):
        return [ConvWorkload.parse(source)]
    raise SourceError(_unknown(source))


def as_workloads(given: object) -> list[ConvWorkload]:
    """The workloads that a caller means: one or several, each a ConvWorkload or a SOURCE, which is
    text or the path of a workload file. Raises WorkloadError or SourceError."""
    if isinstance(given, ConvWorkload):
        return [given]
    if isinstance(given, (str, os.PathLike)):
        return merge_duplicates(read_source(os.fspath(given)))
    if isinstance(given, Iterable) and not isinstance(given, (bytes, bytearray)):
        return [w for item in given for w in _one(item)]
    raise WorkloadError(
        f"workloads is {given!r}, expected ConvWorkloads, or text such as {_EXAMPLE}"
    )


def _one(item: object) -> list[ConvWorkload]:
    if isinstance(item, (ConvWorkload, str, os.PathLike)):
        return as_workloads(item)
    raise WorkloadError(
        f"workloads holds a {type(item).__name__}, expected ConvWorkloads, or text such as "
        f"{_EXAMPLE}"
    )


def as_names(given: object, what: str) -> list[str] | None:
    """Names of algorithms and the like, in one text with commas or several; None stays None.
    Raises WorkloadError."""
    if given is None:
        return None
    if isinstance(given, str):
        given = given.split(",")
    if isinstance(given, Iterable) and not isinstance(given, (bytes, bytearray)):
        names = list(given)
        if all(isinstance(name, str) for name in names):
            return [name.strip() for name in names]
    raise WorkloadError(f"{what} is {given!r}, expected names, such as ['direct', 'winograd']")


def is_model(source: str) -> bool:
    """Whether a SOURCE means the file of a whole model, by its name."""
    return source not in BUILTIN_NETWORKS and Path(source).suffix.lower() in _MODEL_SUFFIXES


def merge_duplicates(workloads: Iterable[ConvWorkload]) -> list[ConvWorkload]:
    """Each distinct workload once, with the sum of the multiplicities.

    The first occurrence gives the name and the place.
    """
    merged: dict[ConvWorkload, ConvWorkload] = {}
    for w in workloads:
        first = merged.get(w)
        total = w.multiplicity + (first.multiplicity if first else 0)
        merged[w] = replace(first or w, multiplicity=total)
    return list(merged.values())


def _builtin(name: str) -> list[ConvWorkload]:
    file = resources.files("convtvm.problem").joinpath("networks", f"{name}.txt")
    return [ConvWorkload.parse(word) for _, word in _words(file.read_text(encoding="utf-8"))]


def _read_file(path: Path, including: tuple[Path, ...]) -> Iterator[ConvWorkload]:
    """The workloads of a file and of those it includes; `including` are the files that led here."""
    chain = (*including, path)
    for line, word in _words(_text(path)):
        where = f"{path}:{line}"
        if word.startswith(_BATCH):
            included = path.parent / word.removeprefix(_BATCH)
            if any(_same(included, file) for file in chain):
                loop = " -> ".join(str(file) for file in (*chain, included))
                raise SourceError(f"{where}: {word} goes in a circle ({loop}); remove it")
            try:
                yield from _read_file(included, chain)
            except _Unreadable as err:
                raise SourceError(f"{where}: {word}: {err}") from err
        elif not word.startswith("-"):
            try:
                yield ConvWorkload.parse(word)
            except WorkloadError as err:
                raise SourceError(f"{where}: {err}") from err


class _Unreadable(SourceError):
    """A file cannot be read; an including file adds its own place."""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise _Unreadable(f"cannot read {path}: {err.strerror or err}") from err
    except UnicodeDecodeError as err:
        raise _Unreadable(
            f"cannot read {path}: not a text file; expected lines like {_EXAMPLE}"
        ) from err


def _same(a: Path, b: Path) -> bool:
    try:
        return a.resolve() == b.resolve()
    except (OSError, RuntimeError):  # a circle of symbolic links: reading it gives the reason
        return False


def _words(text: str) -> Iterator[tuple[int, str]]:
    """The words of a benchdnn batch file with their lines, counted from 1.

    A word that begins with # comments out the rest of its line; a backslash at the end of a word
    joins it with the next one, as in benchdnn.
    """
    held: tuple[int, str] | None = None
    joins = False
    for number, line in enumerate(text.split("\n"), start=1):
        for word in _WORD.findall(line):
            if word.startswith("#"):
                break
            part = word.removesuffix("\\")
            if held is not None and (joins or not part):
                held = (held[0], held[1] + part)
            else:
                if held is not None:
                    yield held
                held = (number, part) if part else None
            joins = part != word
    if held is not None:
        yield held


def _unknown(source: str) -> str:
    """What is wrong with a source that is no network, no file and no descriptor."""
    close = difflib.get_close_matches(source.lower(), BUILTIN_NETWORKS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return (
        f"source {source!r} is neither a network ({', '.join(BUILTIN_NETWORKS)}), nor a file that "
        f"exists, nor a workload like {_EXAMPLE}{hint}"
    )
