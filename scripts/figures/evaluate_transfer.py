"""What trials of other layers teach the tuner about a task, before it has measured anything of it.

    python scripts/figures/evaluate_transfer.py [LOG]... [--target T]

Each task of the log (of at least 5 candidates) is left out in turn, with its layer at every batch
and in every dtype. What the tuner would then know of it is judged by its trials; a line sums up the
tasks whose kernels multiply the same:

  estimate  mean over the tasks of Spearman's rank correlation with the template's estimate
  model     the same with the tuner's cost model, which learned from the nearest other layers, so
            many trials in the median; where it learned too little, it is the estimate
  first     the fastest of the four candidates that the estimate, or the model, likes best of those
            measured, over the best; geometric mean
  nearest   the best decisions of the nearest other layers that the task has tried, the first of
            them over the best; `tried` is how many tasks have

Without a log it is that of all trials of an H200, which comes along beside this script.

Quoted by docs/tuning.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sheet import Sheet, main, parser_of
from trials import LEAST, Measured, add_logs, geomean, load, measured, spearman

from convtvm.logs.records import TuningRecord
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning.speed import SpeedModel
from convtvm.tuning.transfer import Neighbours

_FIRST = 4  # candidates: a first batch

Layers = Mapping[ConvWorkload, Sequence[TuningRecord]]


@dataclass(frozen=True)
class Judged:
    """Rank correlation and first choice over the best, by the estimate and by the model, which
    knows `learned` trials; and the nearest layer's decisions over the best, where they were tried.
    """

    estimate: tuple[float, float]
    model: tuple[float, float]
    learned: int
    nearest: float | None


def layer_of(w: ConvWorkload) -> ConvWorkload:
    return replace(w, n=1, dtype="float32")


def frozen(decisions: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(decisions.items()))


def judge(trials: Measured, layers: Layers) -> Judged:
    """What the records of other layers say of a task."""
    task, best = trials.task, min(trials.seconds)
    own = layer_of(task.workload)
    others = Neighbours(r for layer, made in layers.items() if layer != own for r in made)
    model = SpeedModel()
    for other, samples in others.samples(task, without=()):
        model.learn(other, samples)

    def said(order: np.ndarray) -> tuple[float, float]:
        first = np.argsort(order, kind="stable")[:_FIRST]
        fastest = min(trials.seconds[i] for i in first)
        return spearman(order.tolist(), trials.seconds), fastest / best

    estimates = np.array([task.space.estimate(d) for d in trials.decisions])
    known = dict(zip(map(frozen, trials.decisions), trials.seconds, strict=True))
    seeds = (known.get(frozen(seed)) for seed in others.seeds(task))
    tried = [seconds / best for seconds in seeds if seconds]
    return Judged(
        said(estimates),
        said(-model.score(task, trials.decisions)),
        model.learned if model.is_warm else 0,
        tried[0] if tried else None,
    )


def summed_up(judged: Sequence[Judged]) -> dict[str, float | None]:
    tried = [j.nearest for j in judged if j.nearest]
    return {
        "tasks": len(judged),
        "learned": statistics.median(j.learned for j in judged),
        "estimate": statistics.fmean(j.estimate[0] for j in judged),
        "model": statistics.fmean(j.model[0] for j in judged),
        "first by estimate": geomean([j.estimate[1] for j in judged]),
        "first by model": geomean([j.model[1] for j in judged]),
        "nearest": geomean(tried) if tried else None,
        "tried": len(tried),
    }


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    add_logs(parser)
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    history = [r for r in load(options.logs) if options.target in (None, r.target)]
    layers: dict[ConvWorkload, list[TuningRecord]] = defaultdict(list)
    for record in history:
        layers[layer_of(ConvWorkload.parse(record.workload))].append(record)
    judged: dict[str, list[Judged]] = defaultdict(list)
    for trials in measured(history):
        if len(trials.seconds) >= LEAST:
            judged[trials.operands].append(judge(trials, layers))
    heads = "tasks", "learned", "estimate", "model", "first by estimate", "first by model"
    heads = *heads, "nearest", "tried"
    print(f"{'':10}" + "".join(f"{head:>{len(head) + 3}}" for head in heads))
    for name in sorted(judged):
        sheet.found[name] = found = summed_up(judged[name])
        cells = (text(found[head]).rjust(len(head) + 3) for head in heads)
        print(f"{name:10}" + "".join(cells))
    if not judged:
        sheet.found["tasks"] = 0
        print(f"no task has {LEAST} candidates or more")


def text(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3g}"


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
