r"""Seconds of the first calls after a break, and for how long a library's threads spin after one.

    scripts/figures/time_after_breaks.py mb1ic512ih14oc512kh3ph1sh2 --threads 2 \
        --peers onnxruntime,openvino

Both say how a benchmark must not time: see "What a timing says" in docs/performance.md. ~ marks a
noisy time, after which the exit status is 3; the first calls after a break may be as they like.

Quoted by docs/performance.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sheet import Sheet, main, parser_of

import convtvm
from convtvm.compare.peers import select_peers
from convtvm.machine.targets import resolve
from convtvm.measure.timing import Timing, mean_seconds, warm_up
from convtvm.problem.reference import random_inputs

SHOWN = (0, 1, 3, 7, 11)  # calls after a break
ROUNDS = 9
LOOK, LONGEST = 0.003, 0.6  # seconds


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("workload")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", default="", help="as of convtvm bench")
    parser.add_argument("--breaks", default="0,10,50", help="milliseconds")
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    w = convtvm.ConvWorkload.parse(options.workload)
    peers = select_peers([name for name in options.peers.split(",") if name])
    library = convtvm.compile([w], threads=options.threads, keep="best")
    data, weight, bias = random_inputs(w, seed=0)
    plan, out = library.plan(w, weight, bias), np.empty(w.out_shape(), np.float32)
    runs: dict[str, Callable[[], Any]] = {"convtvm": lambda: plan(data, out=out)}
    for peer in peers.values():
        runs.update(peer(w, data, weight, bias, options.threads))
    target = resolve("native", options.threads)
    sheet.peak(target)
    for name, run in runs.items():
        warm_up(run)
        spins = spinning(run)
        sheet.found[name] = {"spins": spins, "after": {}}
        print(f"{name}: threads spin for {1e3 * spins:.0f} ms")
        for pause in map(float, options.breaks.split(",")):
            timings = after(run, pause / 1e3)
            sheet.found[name]["after"][pause] = [timing.seconds for timing in timings]
            last = f"{name} {pause:.0f} ms after a break, call {SHOWN[-1] + 1}"
            shown = sheet.time(last, timings[-1], w.flops, target)
            calls = " ".join(f"{1e3 * timing.seconds:.2f}" for timing in timings)
            print(f"    {pause:4.0f} ms of rest, then ms: {calls}{shown.mark} {shown.about}")


def spinning(run: Callable[[], Any]) -> float:
    """Seconds after a call during which this process is busy although nobody calls."""
    time.sleep(LONGEST)
    run()
    started, last = time.perf_counter(), 0.0
    while time.perf_counter() - started < LONGEST:
        cpu, wall = time.process_time(), time.perf_counter()
        time.sleep(LOOK)
        now = time.perf_counter()
        if time.process_time() - cpu > (now - wall) / 2:
            last = now - started
    return last


def after(run: Callable[[], Any], pause: float) -> list[Timing]:
    """Times of the calls SHOWN after a break of `pause` seconds."""
    time.sleep(LONGEST)
    warm_up(run)
    series = []
    for _ in range(ROUNDS):
        time.sleep(pause)
        series.append([mean_seconds(run, 1) for _ in range(SHOWN[-1] + 1)])
    columns = list(zip(*series, strict=True))
    return [Timing.of(columns[call]) for call in SHOWN]


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
