#!/usr/bin/env python3
"""What a short tuning run misses: its winners beside those of a run that goes on ten times as long.

    scripts/figures/compare_budgets.py [SOURCE] [--seconds 590] [--times 10]
        [--threads N] [--warm] [--json FILE]
    scripts/figures/compare_budgets.py [SOURCE] --logs SHORT LONG       # of runs made before

The distinct layers of SOURCE, a network by default, are tuned by all applicable algorithms within
the seconds, from nothing, or `--warm`: with the experience of the logs that came with convtvm. A
copy of that log is continued for `--times` as long. Then the winners of both logs, each in an
exported library, are timed layer by layer, in turn, so that a slow moment of the machine hits both.
The gap is the short run's time over the long run's, less one. Where both chose the same kernel
there is none, and what is measured tells the noise. The exit status is 3 after a noisy run.

Quoted by docs/tuning.md.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sheet import Sheet, main, parser_of

import convtvm
from convtvm.compare.bench import interleave
from convtvm.dispatch import KernelLibrary
from convtvm.kernels.task import Task, tasks_of
from convtvm.library.choices import choose
from convtvm.logs import records
from convtvm.machine.targets import CompileTarget, resolve
from convtvm.measure.timing import Timing
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.sources import merge_duplicates, read_source
from convtvm.problem.workload import ConvWorkload

_WHOLE_SPACE = 1_000_000  # trials: only time ends a run
_WORST_ERROR = 1e-3


@dataclass(frozen=True)
class Winner:
    """What a log chose for a layer, what it cost to find, and its time beside the other's."""

    algorithm: str
    decisions: dict[str, int]
    trials: int
    timing: Timing


@dataclass(frozen=True)
class Row:
    """One layer."""

    layer: str
    multiplicity: int
    short: Winner
    long: Winner

    @property
    def is_same(self) -> bool:
        return (self.short.algorithm, self.short.decisions) == (
            self.long.algorithm,
            self.long.decisions,
        )

    @property
    def gap(self) -> float:
        return 0.0 if self.is_same else self.measured

    @property
    def measured(self) -> float:
        return self.short.timing.seconds / self.long.timing.seconds - 1


def tune_both(
    workloads: Sequence[ConvWorkload], target: CompileTarget, options: Any, folder: Path
) -> tuple[Path, Path]:
    """The logs of the short run and of its continuation."""
    short, long = folder / "short.jsonl", folder / "long.jsonl"
    for log, seconds in ((short, options.seconds), (long, options.seconds * options.times)):
        if log == long:
            shutil.copyfile(short, long)
        summary = convtvm.tune(
            workloads,
            target,
            algorithms=options.algorithms,
            trials=_WHOLE_SPACE,
            time_limit=seconds,
            log=log,
        )
        print(
            f"{log.name}: {summary.measured} trials measured, {summary.reused} reused, "
            f"{summary.seconds:.0f} s{summary.stopped and ', ' + summary.stopped}",
            flush=True,
        )
        for warning in summary.warnings:
            print(f"warning: {warning}", flush=True)
    return short, long


def compare(
    workloads: Sequence[ConvWorkload], target: CompileTarget, logs: tuple[Path, Path], options: Any
) -> list[Row]:
    """Time both logs' winners of every layer side by side."""
    libraries = [
        convtvm.compile(workloads, target, logs=[log], keep="best", algorithms=options.algorithms)
        for log in logs
    ]
    made = [records.load([log])[0] for log in logs]
    tasks = tasks_of(workloads, target, algorithms=options.algorithms)
    rows = []
    for w in workloads:
        runs = dict(zip(("short", "long"), _plans(libraries, w), strict=True))
        times = interleave(runs, options.repeat, target.threads)
        own = [task for task in tasks if task.workload == w]
        winners = [
            _winner(own, history, times[which])
            for which, history in zip(("short", "long"), made, strict=True)
        ]
        rows.append(Row(w.name or str(w), w.multiplicity, *winners))
    return rows


def _plans(libraries: Sequence[KernelLibrary], w: ConvWorkload) -> list[Callable[[], Any]]:
    """A call of each library's first choice; both answers are checked."""
    data, weight, bias = random_inputs(w, seed=0)
    reference = conv2d_reference(w, data, weight, bias)
    calls = []
    for library in libraries:
        plan, out = library.plan(w, weight, bias), np.empty(w.out_shape(), np.float32)
        calls.append(_bound(plan, data, out))
        error = relative_error(np.asarray(calls[-1]()), reference)
        if not error <= _WORST_ERROR:
            raise SystemExit(f"{w}: {plan.algorithm} is wrong by {error:.1e}")
    return calls


def _bound(plan: Any, data: np.ndarray, out: np.ndarray) -> Callable[[], Any]:
    return lambda: plan(data, out=out)


def _winner(
    tasks: Sequence[Task], history: Sequence[records.TuningRecord], timing: Timing
) -> Winner:
    chosen = min(choose(tasks, history), key=lambda c: c.rank())
    keys = {task.key for task in tasks}
    trials = len({r.identity for r in history if r.task_key in keys and not r.confirmed})
    name = chosen.task.algorithm_name
    return Winner(name, chosen.decisions, trials, timing)


def print_rows(
    rows: Sequence[Row], flops: Sequence[int], target: CompileTarget, sheet: Sheet
) -> None:
    width = max(len(row.layer) for row in rows)
    title = f"{'layer':{width}}  {'short run':>26}  {'long run':>26}     gap"
    print(f"\n{title}\n{'-' * len(title)}")
    for row, count in zip(rows, flops, strict=True):
        cells = []
        for which, w in (("short", row.short), ("long", row.long)):
            shown = sheet.time(f"{row.layer}, {which}", w.timing, count, target)
            text = f"{w.timing.seconds * 1e3:6.3f}{shown.mark}"
            cells.append(f"{w.algorithm:>12} {text} {w.trials:5}")
        note = f"; the same kernel, measured {100 * row.measured:+.1f} %" if row.is_same else ""
        gap = f"{100 * row.gap:+5.1f} %"
        print(f"{row.layer:{width}}  {cells[0]}  {cells[1]}  {gap}  {shown.about}{note}")
    print(
        "algorithm, ms a call, trials of the layer in the log; spread and share of the long run's"
    )


def summary_of(rows: Sequence[Row]) -> dict[str, float]:
    """The worst layer, and the whole network by how often each layer occurs in it."""
    long = sum(row.multiplicity * row.long.timing.seconds for row in rows)
    short = sum(row.multiplicity * row.long.timing.seconds * (1 + row.gap) for row in rows)
    return {"worst_gap": max(row.gap for row in rows), "network_gap": short / long - 1}


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("source", nargs="?", default="resnet18")
    parser.add_argument("--seconds", type=float, default=590, help="of the short run")
    parser.add_argument("--times", type=float, default=10, help="as long is the long run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--algorithms", type=lambda text: text.split(","), metavar="A,B")
    parser.add_argument("--logs", type=Path, nargs=2, metavar=("SHORT", "LONG"))
    parser.add_argument("--keep", type=Path, help="a folder for short.jsonl and long.jsonl")
    parser.add_argument("--repeat", type=int, default=25, help="calls that count, of each")
    parser.add_argument("--warm", action="store_true", help="use the logs that came with convtvm")
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    if not options.warm:
        records.shipped_logs = list
    workloads = merge_duplicates(read_source(options.source))
    target = resolve("native", options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
        logs = options.logs or tune_both(workloads, target, options, options.keep or Path(folder))
        sheet.peak(target)
        rows = compare(workloads, target, tuple(logs), options)
    total = summary_of(rows)
    layers = [{**asdict(row), "same": row.is_same, "gap": row.gap} for row in rows]
    sheet.found = {**total, "target": target.name, "layers": layers}
    print_rows(rows, [w.flops for w in workloads], target, sheet)
    print(
        f"the worst layer {100 * total['worst_gap']:+.1f} %, the whole network "
        f"{100 * total['network_gap']:+.1f} %"
    )


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
