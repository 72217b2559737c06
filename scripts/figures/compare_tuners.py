#!/usr/bin/env python3
"""Trials per minute: convtvm against stock MetaSchedule on the same template, in one run.

    scripts/figures/compare_tuners.py [--workload W] [--algorithm A] [--trials N] [--threads N]

Stock is `tune_tir` with its LocalBuilder and LocalRunner at their settings, as many builders as
cores, over the same valid points: every knob is a sampled categorical, drawn at random (its fastest
strategy), and its build function applies the template. Both begin with nothing; the whole call is
timed, start-up included. Compare the trials per minute, not the best times. With --rounds both run
so often, in turn. The exit status is 3 where others took cores meanwhile, or the rounds differ.

Quoted by docs/tuning.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from sheet import Sheet, main, parser_of
from tvm.s_tir import meta_schedule as ms

from convtvm.kernels import codegen
from convtvm.kernels.task import Task, annotate_knobs, decisions_of
from convtvm.logs import records
from convtvm.machine.cpu import physical_cores
from convtvm.machine.targets import resolve
from convtvm.measure.timing import Timing
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning.search import ValidKnobs
from convtvm.tuning.tuner import tune


def build_with(task: Task) -> Any:
    """A build function for LocalBuilder, which ships it to its processes by value."""

    def build(mod: Any, target: Any, _params: Any) -> Any:
        from convtvm.kernels import codegen as code
        from convtvm.kernels import lowering

        func = task.instantiate(decisions_of(mod))["main"]
        lowered = lowering.lower(code.merge({"main": func}), target)
        return code.compile_lowered(lowered, target)

    return build


def stock(task: Task, trials: int, folder: Path) -> tuple[int, float, float]:
    """(trials, seconds, best seconds) of tune_tir."""
    space = ms.space_generator.ScheduleFn(
        lambda sch: annotate_knobs(sch, task.space),
        sch_rules=[],
        postprocs=[ValidKnobs(task.space, frozenset())],
        mutator_probs={},
    )
    started = time.monotonic()
    database = ms.tune_tir(
        codegen.merge({"main": task.compute()}),
        task.target.tvm,
        str(folder),
        max_trials_global=trials,
        builder=ms.builder.LocalBuilder(max_workers=physical_cores(), f_build=build_with(task)),
        runner=ms.runner.LocalRunner(),
        space=space,
        strategy="replay-trace",
    )
    seconds = time.monotonic() - started
    times = [float(r.run_secs[0]) for r in database.get_all_tuning_records() if r.run_secs]
    good = [t for t in times if t < 1e9]
    return len(times), seconds, min(good, default=float("nan"))


def ours(task: Task, trials: int, log: Path) -> tuple[int, float, float]:
    """(trials, seconds, best seconds) of convtvm, without the confirmation at the end."""
    summary = tune(
        [task.workload],
        task.target,
        algorithms=[task.algorithm_name],
        trials=trials,
        log=log,
        confirm=False,
    )
    best = summary.tasks[0].best
    return summary.measured, summary.seconds, best.seconds if best else float("nan")


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--workload", default="mb1ic64ih56oc64oh56kh3ph1")
    parser.add_argument("--algorithm", default="direct")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    records.shipped_logs = list  # what others have tuned before is no part of the comparison
    workload, target = ConvWorkload.parse(options.workload), resolve("native", options.threads)
    task = Task(workload, options.algorithm, target)
    sheet.peak(target)
    taken: dict[str, list[tuple[int, float, float]]] = {"convtvm": [], "stock": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            taken["convtvm"].append(ours(task, options.trials, Path(folder) / "x.jsonl"))
            taken["stock"].append(stock(task, options.trials, Path(folder) / "stock"))
    rates = {}
    for name, rows in taken.items():
        count = sum(row[0] for row in rows)
        shown = sheet.time(f"a trial of {name}", Timing.of([secs / n for n, secs, _ in rows]))
        rates[name] = 60 * count / sum(secs for _, secs, _ in rows)
        best = min(row[2] for row in rows)
        share = workload.flops / best / sheet.peak(target)
        sheet.found[name] = {"trials": count, "a_minute": rates[name], "best_seconds": best}
        print(
            f"{name:8} {count:4} trials = {rates[name]:6.1f} a minute{shown.mark} ({shown.about}); "
            f"best {best * 1e3:.4g} ms, {100 * share:.0f} % of peak"
        )
    sheet.found["ratio"] = rates["convtvm"] / rates["stock"]
    print(f"ratio: {sheet.found['ratio']:.2f}x the trials per minute")


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
