#!/usr/bin/env python3
"""Trials per minute: convtvm against stock MetaSchedule on the same template, in one run.

    scripts/figures/compare_tuners.py [--workload W] [--algorithm A] [--trials N] [--threads N]

Stock is `tune_tir` with its LocalBuilder and LocalRunner at their settings, as many builders as
cores, over the same valid points: every knob is a sampled categorical, drawn at random (its fastest
strategy), and its build function applies the template. Both begin with nothing; the whole call is
timed, start-up included. Compare the trials per minute, not the best times.

Quoted by docs/tuning.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from tvm.s_tir import meta_schedule as ms

from convtvm.kernels import codegen
from convtvm.kernels.task import Task, annotate_knobs, decisions_of
from convtvm.logs import records
from convtvm.machine.cpu import physical_cores
from convtvm.machine.targets import resolve
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="mb1ic64ih56oc64oh56kh3ph1")
    parser.add_argument("--algorithm", default="direct")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    records.shipped_logs = list  # what others have tuned before is no part of the comparison
    workload, target = ConvWorkload.parse(args.workload), resolve("native", args.threads)
    task = Task(workload, args.algorithm, target)
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            "convtvm": ours(task, args.trials, Path(folder) / "x.jsonl"),
            "stock": stock(task, args.trials, Path(folder) / "stock"),
        }
    rates = {}
    for name, (count, seconds, best) in rows.items():
        rates[name] = 60 * count / seconds
        print(
            f"{name:8} {count:4} trials in {seconds:7.1f} s = {rates[name]:6.1f} a minute; "
            f"best {best * 1e3:.4g} ms"
        )
    print(f"ratio: {rates['convtvm'] / rates['stock']:.2f}x the trials per minute")


if __name__ == "__main__":
    main()
