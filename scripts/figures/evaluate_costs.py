"""How well the estimates of the templates, which choose what an untuned kernel does, fit a log.

    python scripts/figures/evaluate_costs.py [LOG]... [--target T]

Candidates of today's templates are ranked by `cost` and by the clock, task by task; no machine is
asked. A line sums up the tasks of one algorithm, dtype and batch, those with padding apart:

  rank      mean over the tasks (of at least 5 candidates) of Spearman's rank correlation
  chosen    time of the candidate that the estimate likes best of those measured, over the best
  worst     the largest of these
  default   time of the default decisions over the best, where they were measured
  measured  tasks whose default decisions were

Several records of one candidate count as the log's readers count them. Means of ratios are
geometric. Without a log it is that of all trials of an H200, which comes along beside this script.

Quoted by docs/tuning.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sheet import Sheet, main, parser_of
from trials import LEAST, Measured, add_logs, geomean, load, measured, spearman


@dataclass(frozen=True)
class Judged:
    """A task with the estimates and seconds of its candidates, and the seconds of its default, if
    measured."""

    measured: Measured
    estimates: tuple[float, ...]
    default: float | None

    @classmethod
    def of(cls, trials: Measured) -> Judged:
        space = trials.task.space
        estimates = tuple(space.estimate(d) for d in trials.decisions)
        default = [
            secs
            for d, secs in zip(trials.decisions, trials.seconds, strict=True)
            if d == space.default
        ]
        return cls(trials, estimates, default[0] if default else None)

    @property
    def seconds(self) -> tuple[float, ...]:
        return self.measured.seconds

    @property
    def chosen(self) -> float:
        at = min(range(len(self.estimates)), key=self.estimates.__getitem__)
        return self.seconds[at] / min(self.seconds)


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
    add_logs(parser)
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    history = load(options.logs)
    tasks = measured(r for r in history if options.target in (None, r.target))
    groups: dict[str, list[Judged]] = defaultdict(list)
    sums: dict[str, list[Judged]] = defaultdict(list)
    for trials in tasks:
        each, w = Judged.of(trials), trials.task.workload
        padded = ", padded" if any((w.ph, w.pw, w.ph_r, w.pw_r)) else ""
        groups[f"{trials.task.algorithm_name}, {w.dtype}, batch {w.n}{padded}"].append(each)
        sums[f"all in {trials.operands}"].append(each)
    head = ("tasks", 6), ("candidates", 11), ("rank", 7), ("chosen", 9), ("worst", 7)
    head = *head, ("default", 9), ("measured", 10)
    print(f"{'':42}" + "".join(f"{name:>{width}}" for name, width in head))
    sheet.found = {name: summed_up(groups[name]) for name in sorted(groups)}
    sheet.found |= {name: summed_up(sums[name]) for name in sorted(sums)}
    for name, found in sheet.found.items():
        print(line(name, found))


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
