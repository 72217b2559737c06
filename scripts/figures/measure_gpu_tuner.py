#!/usr/bin/env python3
"""What the tuner itself takes for each trial on a GPU: one core's time, whatever the others build.

    python scripts/figures/measure_gpu_tuner.py [SOURCE]... [--target cuda:sm_90] [--dtype float16]
        [--layout NHWC] [--batch 1] [--trials 300] [--rounds 3]

Candidates are proposed, recorded and learned from as in any run, but they are built and measured in
no time: a candidate is as fast as the template's estimate says. Seconds are CPU time of the process
of the tuner, from its start to the last trial, and of one trial; beside them how many trials come
to a minute of that core. A run opens with each task's default decisions, which it has to find.

Quoted by docs/tuning.md.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sheet import Sheet, main, parser_of

from convtvm.measure import workbench
from convtvm.measure.jobs import BuildJob, Limits, Outcome
from convtvm.measure.timing import Timing
from convtvm.problem.sources import merge_duplicates, read_source
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning import builders, tuner

_CLOCK = 1e9  # cycles a second


class Free:
    """A helper process that is none: what it builds and runs takes no time."""

    def __init__(self, deadline: float = math.inf, *_: Any, **__: Any) -> None:
        self.deadline, self.farm, self.folder = deadline, None, Path("/nonexistent")
        self.asked: set[str] = set()
        self._count = 0

    def start_ahead(self) -> None:
        """There is no process."""

    def close(self) -> None:
        """There is none."""

    def __enter__(self) -> Free:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fresh_path(self, suffix: str) -> Path:
        self._count += 1
        return self.folder / f"{id(self)}-{self._count}{suffix}"

    def call(self, kind: str, jobs: Sequence[Any], _: Limits) -> Iterator[tuple[int, Outcome]]:
        for index, job in enumerate(jobs):
            if isinstance(job, BuildJob) and job.decisions is not None:
                seconds = job.task.space.cost(job.decisions) / _CLOCK
                _SECONDS[job.path] = seconds
            timed = ([_SECONDS[job.path]] * 5, 0.0, True) if kind == "run" else 0
            yield index, Outcome(timed)


_SECONDS: dict[str, float] = {}  # by path, what a candidate takes


def run(workloads: Sequence[ConvWorkload], options: argparse.Namespace) -> tuple[int, float]:
    """(trials, CPU seconds of this process) of a run."""
    with contextlib.ExitStack() as stack:
        for module in (tuner, builders):
            stack.enter_context(patch.object(module, "Zygote", Free))
        stack.enter_context(patch.object(workbench, "write_problem", lambda *_: None))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        began = time.process_time()
        summary = tuner.tune(
            workloads,
            options.target,
            total_trials=options.trials,
            log=Path(folder, "log.jsonl"),
            layout=options.layout,
            confirm=False,
        )
        return summary.measured, time.process_time() - began


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("sources", nargs="*", default=["resnet50"], metavar="SOURCE")
    parser.add_argument("--target", default="cuda:sm_90")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--layout", default="NHWC")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    layers = [w for source in options.sources for w in read_source(source)]
    made = (replace(w, n=options.batch, dtype=options.dtype) for w in layers)
    workloads = merge_duplicates(made)
    taken = [run(workloads, options) for _ in range(options.rounds)]
    each = [seconds / trials for trials, seconds in taken]
    shown = sheet.time("a trial", Timing.of(each))
    seconds = statistics.median(each)
    sheet.found = {"trials": taken[0][0], "a_trial": seconds, "a_minute": 60 / seconds}
    print(
        f"{len(workloads)} layers, {taken[0][0]} trials: {1e3 * seconds:.1f} ms each{shown.mark} "
        f"({shown.about}), {60 / seconds:.0f} a minute"
    )


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
