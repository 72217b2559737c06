"""How well the estimates of the templates, which choose what an untuned kernel does, fit a log.

    python scripts/figures/evaluate_costs.py LOG... [--target T]

Candidates of today's templates are ranked by `cost` and by the clock, task by task; no machine is
asked. A line sums up the tasks of one algorithm, dtype and batch, those with padding apart:

  rank      mean over the tasks (of at least 5 candidates) of Spearman's rank correlation
  chosen    time of the candidate that the estimate likes best of those measured, over the best
  worst     the largest of these
  default   time of the default decisions over the best, where they were measured
  measured  tasks whose default decisions were

Several records of one candidate count as the log's readers count them. Means of ratios are
geometric.

Quoted by docs/tuning.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sheet import Sheet, main, parser_of

from convtvm.kernels.task import TABLES, Task
from convtvm.logs import records
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import resolve
from convtvm.problem.workload import ConvWorkload

LEAST = 5  # candidates whose order means something


@dataclass(frozen=True)
class Judged:
    """A task with the estimates and seconds of its candidates, and the seconds of its default, if
    measured."""

    task: Task
    estimates: tuple[float, ...]
    seconds: tuple[float, ...]
    default: float | None

    @property
    def chosen(self) -> float:
        at = min(range(len(self.estimates)), key=self.estimates.__getitem__)
        return self.seconds[at] / min(self.seconds)


def ranks(values: Sequence[float]) -> np.ndarray:
    """Places of the values in their order; equal ones share the mean of theirs."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The rank correlation; 0 where either knows no order."""
    if len(set(a)) == 1 or len(set(b)) == 1:
        return 0.0
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def judge(history: Iterable[TuningRecord]) -> list[Judged]:
    """Every task of today's templates that has a record with a time."""
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
        if not usable:
            continue
        space = task.space
        estimates = tuple(space.estimate(r.decisions) for r in usable)
        default = [r.seconds for r in usable if dict(r.decisions) == space.default]
        seconds = tuple(r.seconds for r in usable)
        found.append(Judged(task, estimates, seconds, default[0] if default else None))
    return found


def geomean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def summed_up(judged: Sequence[Judged]) -> dict[str, float]:
    """What a line shows; only the number of tasks where none has candidates enough."""
    telling = [j for j in judged if len(j.seconds) >= LEAST]
    if not telling:
        return {"tasks": len(judged)}
    chosen = [j.chosen for j in telling]
    default = [j.default / min(j.seconds) for j in telling if j.default is not None]
    return {
        "tasks": len(telling),
        "candidates": sum(len(j.seconds) for j in telling),
        "rank": statistics.fmean(spearman(j.estimates, j.seconds) for j in telling),
        "chosen": geomean(chosen),
        "worst": max(chosen),
        "default": geomean(default) if default else math.nan,
        "measured": len(default),
    }


def line(name: str, found: dict[str, float]) -> str:
    if "rank" not in found:
        return f"{name:42}{found['tasks']:>6}  too few candidates a task"
    text = f"{name:42}{found['tasks']:>6}{found['candidates']:>11}{found['rank']:>7.2f}"
    text += f"{found['chosen']:>9.3f}{found['worst']:>7.2f}"
    shown = f"{found['default']:.3f}" if found["measured"] else "-"
    return f"{text}{shown:>9}{found['measured']:>10}"


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--target", help="of the records that count, as they name it")
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    history, problems = records.load(options.logs)
    for problem in problems:
        print(problem)
    judged = judge(r for r in history if options.target in (None, r.target))
    groups: dict[str, list[Judged]] = defaultdict(list)
    for each in judged:
        w = each.task.workload
        padded = ", padded" if any((w.ph, w.pw, w.ph_r, w.pw_r)) else ""
        groups[f"{each.task.algorithm_name}, {w.dtype}, batch {w.n}{padded}"].append(each)
    head = ("tasks", 6), ("candidates", 11), ("rank", 7), ("chosen", 9), ("worst", 7)
    head = *head, ("default", 9), ("measured", 10)
    print(f"{'':42}" + "".join(f"{name:>{width}}" for name, width in head))
    sheet.found = {name: summed_up(groups[name]) for name in sorted(groups)}
    sheet.found["all"] = summed_up(judged)
    for name, found in sheet.found.items():
        print(line(name, found))


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
