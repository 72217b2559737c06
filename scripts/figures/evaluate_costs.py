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


def line(name: str, judged: Sequence[Judged]) -> str:
    telling = [j for j in judged if len(j.seconds) >= LEAST]
    if not telling:
        return f"{name:42}{len(judged):>6}  too few candidates a task"
    rank = statistics.fmean(spearman(j.estimates, j.seconds) for j in telling)
    chosen = [j.chosen for j in telling]
    default = [j.default / min(j.seconds) for j in telling if j.default is not None]
    text = f"{name:42}{len(telling):>6}{sum(len(j.seconds) for j in telling):>11}{rank:>7.2f}"
    text += f"{geomean(chosen):>9.3f}{max(chosen):>7.2f}"
    shown = f"{geomean(default):.3f}" if default else "-"
    return f"{text}{shown:>9}{len(default):>10}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--target", help="of the records that count, as they name it")
    options = parser.parse_args()
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
    for name in sorted(groups):
        print(line(name, groups[name]))
    print(line("all", judged))


if __name__ == "__main__":
    main()
