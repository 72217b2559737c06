"""How well a log predicts networks that it does not hold: leave one network out.

    python scripts/figures/evaluate_prediction.py LOG... [--target T] [--threads N] [--layout L]

For every built-in network, the model of `convtvm/logs/prediction.py` learns from the records of all
other workloads, and names the algorithm for each of the network's. Shown, against the best measured
candidate of each workload: how often the right algorithm was named, how often one within 5 %, the
time of the named one (its best record), and the mean error of the predicted times. Beside it the
same for two rules that need no model: always `direct`, and the algorithm of the nearest workload.
A workload counts if at least two algorithms were measured on it.

Quoted by docs/selection.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sheet import Sheet, main, parser_of

from convtvm.errors import LogError
from convtvm.logs import prediction, records
from convtvm.machine.targets import CompileTarget, resolve
from convtvm.problem.similarity import distance
from convtvm.problem.sources import read_source
from convtvm.problem.workload import ConvWorkload

NETWORKS = ("resnet18", "resnet50", "vgg16", "mobilenet_v2")
Best = Mapping[tuple[ConvWorkload, str], records.TuningRecord]
Times = Mapping[ConvWorkload, Mapping[str, float]]


def by_workload(best: Best) -> dict[ConvWorkload, dict[str, float]]:
    """Seconds by algorithm of every workload with a choice."""
    found: dict[ConvWorkload, dict[str, float]] = {}
    for (w, name), record in best.items():
        found.setdefault(w, {})[name] = record.seconds
    return {w: secs for w, secs in found.items() if len(secs) > 1}


def nearest_choice(w: ConvWorkload, known: Times, names: set[str]) -> str:
    """The fastest algorithm of the most similar workload, among `names`."""
    near = min(known, key=lambda other: distance(other, w))
    ranked = sorted(known[near], key=known[near].__getitem__)
    return next((name for name in ranked if name in names), "direct")


Ratios = dict[str, list[float]]  # rule -> time of what it names over the best, by workload


def evaluate(name: str, best: Best, target: CompileTarget, layout: str) -> Ratios:
    measured = by_workload(best)
    inside = set(read_source(name)) & set(measured)
    train = [(*task, r.seconds) for task, r in best.items() if task[0] not in inside]
    if not inside or len(train) < prediction.MIN_TASKS:
        why = "no record of it" if not inside else f"fewer than {prediction.MIN_TASKS} tasks remain"
        print(f"{name:14}{why}")
        return {}
    model = prediction.TimeModel(train, target, layout)
    known = {w: secs for w, secs in measured.items() if w not in inside}
    ratios: Ratios = {"model": [], "nearest": [], "direct": []}
    errors = []
    for w in inside:
        secs = measured[w]
        expected = model.seconds(w, list(secs))
        errors += [abs(math.log(expected[a] / secs[a])) for a in expected]
        fallback = "direct" if "direct" in secs else min(secs)
        named = {
            "model": min(expected, key=expected.__getitem__, default=fallback),
            "nearest": nearest_choice(w, known, set(secs)),
            "direct": fallback,
        }
        for rule, algorithm in named.items():
            ratios[rule].append(secs.get(algorithm, secs[fallback]) / min(secs.values()))
    show(name, ratios, math.exp(statistics.fmean(errors)) - 1)
    return ratios


def summed_up(values: Sequence[float]) -> dict[str, float]:
    """What is shown of the ratios of a rule; losses are 0.1 for a tenth more time."""
    return {
        "workloads": len(values),
        "right": sum(v == 1 for v in values) / len(values),
        "within": sum(v <= 1.05 for v in values) / len(values),
        "mean_loss": statistics.fmean(values) - 1,
        "geomean_loss": math.exp(statistics.fmean(map(math.log, values))) - 1,
        "worst": max(values),
    }


def show(name: str, ratios: Ratios, error: float | None = None) -> None:
    """A line a rule; `error` is the mean one of the model's times."""
    for rule, values in ratios.items():
        found, first = summed_up(values), rule == "model"
        print(
            f"{name if first else '':14}{rule:9}{found['workloads']:>9}{found['right']:>8.0%}"
            f"{found['within']:>10.0%}{found['mean_loss']:>10.1%}{found['geomean_loss']:>10.1%}"
            f"{found['worst']:>8.2f}" + (f"{error:>12.0%}" if first and error is not None else "")
        )


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--target")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--layout")
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    history, problems = records.load(options.logs)
    for problem in problems:
        print(problem)
    # The commonest target, threads and layout, unless told otherwise.
    counts = Counter(
        (r.target, r.threads, r.layout)
        for r in history
        if options.target in (None, r.target)
        and options.threads in (None, r.threads)
        and options.layout in (None, r.layout)
    )
    if not counts:
        raise LogError("no usable record for this target, thread count and layout")
    (target, threads, layout), number = counts.most_common(1)[0]
    found = prediction.best_records(
        r for r in history if (r.target, r.threads, r.layout) == (target, threads, layout)
    )
    best = {(w, r.algorithm): r for w, r in found if not r.disturbed}
    print(f"{target}, {threads} threads, {layout}: {number} trials, {len(best)} tasks")
    print(
        f"{'left out':14}{'rule':9}{'workloads':>9}{'right':>8}{'within 5%':>10}"
        f"{'mean':>10}{'geomean':>10}{'worst':>8}{'time error':>12}"
    )
    every: Ratios = {}
    for name in NETWORKS:
        ratios = evaluate(name, best, resolve(target, threads), layout)
        sheet.found[name] = {rule: summed_up(values) for rule, values in ratios.items()}
        for rule, values in ratios.items():
            every.setdefault(rule, []).extend(values)
    sheet.found["all"] = {rule: summed_up(values) for rule, values in every.items()}
    show("all", every)


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
