#!/usr/bin/env python3
"""What the process that measures on a GPU costs the host for each candidate, on the emulated GPU.

    python scripts/figures/measure_gpu_runner.py [--batches 50] [--rounds 5]

A candidate with hardly any work comes alone in its batch, again and again, as most do while tuning:
it is loaded, runs, its answer is compared, guards and inputs are looked at. Seconds of a batch are
CPU time of the helper and of all processes that it starts, and by the clock; once for the answer
only, once with a trial's times, whose calls the emulator computes.

Quoted by docs/tuning.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
from sheet import Sheet, main, parser_of
from tvm.s_tir.meta_schedule.builder import BuilderInput

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from emulator import emulated
from emulator.plain import PlainTask

from convtvm.errors import ConvtvmError
from convtvm.machine.targets import resolve
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import Limits, RunJob
from convtvm.measure.timing import Timing
from convtvm.measure.workbench import Workbench
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning.search import candidate

TASK = PlainTask(ConvWorkload.make(5, 8, 7, kh=3, padding=1), "direct", resolve("cuda:sm_90"))
WAYS = {"the answer": 0, "answer and times": 5}  # samples of a trial


def built(zygote: Zygote) -> RunJob:
    """The default candidate's job, as the tuner has it."""
    bench = Workbench(TASK, zygote)
    made = candidate(TASK.space, TASK.space.default)
    (result,) = bench.builder.build([BuilderInput(made.sch.mod, TASK.target.tvm)])
    if result.error_msg:
        raise ConvtvmError(str(result.error_msg))
    path = str(result.artifact_path)
    return replace(bench.runner.job, path=path, scratch=bench.builder.scratch[path])


def spent(zygote: Zygote) -> float:
    """CPU seconds of the helper and its children, living and dead."""
    assert zygote._process is not None
    helper = psutil.Process(zygote._process.pid)
    every = (helper, *helper.children(recursive=True))
    return sum(sum(process.cpu_times()[:4]) for process in every)


def batches(zygote: Zygote, job: RunJob, count: int, samples: int) -> tuple[float, float]:
    """(CPU seconds, seconds) of a batch of one candidate, the mean of `count`."""
    limits, used, began = Limits(timeout=60.0, samples=samples), spent(zygote), time.monotonic()
    for _ in range(count):
        for _, outcome in zygote.call("run", [job], limits):
            if outcome.kind:
                raise ConvtvmError(f"{outcome.kind}: {outcome.message}")
    return (spent(zygote) - used) / count, (time.monotonic() - began) / count


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--batches", type=int, default=50, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    with emulated() as zygote:
        job = built(zygote)
        batches(zygote, job, 1, 0)  # starts the process
        print(f"{'a batch of one':20}{'CPU, ms':>10}{'ms':>8}")
        for name, samples in WAYS.items():
            taken = [batches(zygote, job, options.batches, samples) for _ in range(options.rounds)]
            used, shown = (
                statistics.median(cpu for cpu, _ in taken),
                sheet.time(name, Timing.of([seconds for _, seconds in taken])),
            )
            seconds = sheet.times[name].seconds
            sheet.found[name] = {"cpu_seconds": used, "seconds": seconds}
            print(f"{name:20}{1e3 * used:10.1f}{1e3 * seconds:8.1f}{shown.mark} ({shown.about})")


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
