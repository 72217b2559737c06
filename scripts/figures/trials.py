"""Logs for figures, their trials task by task, and what is said of an order. The log of an H200
comes along compressed: all of its trials, where `compile` is given each task's best only."""

from __future__ import annotations

import argparse
import lzma
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convtvm.errors import LogError
from convtvm.kernels.task import TABLES, Task
from convtvm.logs import records
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import resolve
from convtvm.problem.dtypes import HALVES
from convtvm.problem.workload import ConvWorkload
from schedules.knobs import Decisions

# 1,602 trials of ResNet-50's and VGG-16's layers, by the kernels of 5d8e273.
H200 = Path(__file__).with_name("h200_trials.jsonl.xz")
LEAST = 5  # candidates whose order means something


def add_logs(parser: argparse.ArgumentParser) -> None:
    """The arguments of figures about logs, which are that of the H200 if none is given."""
    parser.add_argument("logs", nargs="*", type=Path, default=[H200], metavar="LOG")
    parser.add_argument("--target", help="of the records that count, as they name it")


@dataclass(frozen=True)
class Measured:
    """A task of today's templates with the candidates that ran, and their seconds."""

    task: Task
    decisions: tuple[Decisions, ...]
    seconds: tuple[float, ...]

    @property
    def operands(self) -> str:
        """What its kernels multiply."""
        if self.task.workload.dtype in HALVES:
            return "16 bits"
        return "TF32" if self.task.algorithm_name.endswith(":tf32") else "float32"


def load(paths: Iterable[Path]) -> list[TuningRecord]:
    """The records of logs, which may be compressed by xz; lines of no use are named."""
    found: list[TuningRecord] = []
    for path in paths:
        with tempfile.NamedTemporaryFile() as plain:
            if path.suffix == ".xz":
                plain.write(_content(path))
                plain.flush()
            some, problems = records.load([plain.name if path.suffix == ".xz" else path])
        for problem in problems:
            print(str(problem).replace(plain.name, str(path)))
        found += some
    return found


def _content(path: Path) -> bytes:
    try:
        return lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise LogError(f"cannot read log {path}: {error}") from None


def measured(history: Iterable[TuningRecord]) -> list[Measured]:
    """Every task of today's templates that has a record with a time; several of one candidate
    count as the log's readers count them."""
    made: dict[tuple[object, ...], list[TuningRecord]] = defaultdict(list)
    for record in history:
        made[record.task_key].append(record)
    found = []
    for trials in made.values():
        first = trials[0]
        target = resolve(first.target, first.threads)
        if first.algorithm not in TABLES[target.kind]:
            continue
        task = Task(ConvWorkload.parse(first.workload), first.algorithm, target, first.layout)
        usable = [r for r in records.judged(records.usable(trials, task)) if r.run_secs]
        if usable:
            decisions = tuple(dict(r.decisions) for r in usable)
            found.append(Measured(task, decisions, tuple(r.seconds for r in usable)))
    return found


def ranks(values: Sequence[float]) -> np.ndarray:
    """Places of the values in their order; equal ones share the mean of theirs."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The rank correlation; 0 where either knows no order."""
    if len(set(a)) == 1 or len(set(b)) == 1:
        return 0.0
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def geomean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))
