"""Many threads, many calls, many loads: right results, and memory that does not grow.

    python scripts/figures/stress_run_time.py [--threads 8] [--calls 10000] [--loads 1000]

Threads call one plan at once, each with data of its own, every result compared exactly. Then the
library is loaded, planned, run and dropped again and again. Resident memory is shown along the way;
the exit status is 1 for a wrong result, or a growth of more than 2 MiB over the second half.

Quoted by docs/speed.md.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from sheet import Sheet, main, parser_of

import convtvm
from convtvm.measure.timing import Timing
from convtvm.problem.reference import conv2d_reference, random_inputs

GROWTH = 2 << 20
W = convtvm.ConvWorkload.parse("mb1ic16ih12oc16oh12kh3ph1")


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def many_calls(path: Path, threads: int, calls: int) -> dict[str, Any]:
    """How many results were wrong, and whether these were none and memory stayed."""
    library = convtvm.load(path)
    data, weight, bias = random_inputs(W, 1, "NCHW", "integer")
    plan = library.plan(W, weight, bias, activation="relu")
    exact = np.maximum(conv2d_reference(W, data, weight, bias), 0).astype(np.float32)
    halves: list[list[int]] = [[], []]
    wrong = [0] * threads

    def work(number: int) -> None:
        mine = data.copy() if number % 2 == 0 else np.zeros_like(data)
        expected = (
            exact
            if number % 2 == 0
            else np.maximum(np.broadcast_to(bias.reshape(1, -1, 1, 1), exact.shape), 0)
        )
        out = np.empty(W.out_shape(), np.float32)
        for call in range(calls):
            result = plan(mine, out=out) if call % 3 else plan(mine)
            wrong[number] += not np.array_equal(result, expected)
            if call % 500 == 250:
                halves[call >= calls // 2].append(resident())

    started = time.perf_counter()
    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    grown = max(halves[1]) - max(halves[0])
    print(
        f"{threads} threads x {calls} calls on one plan ({plan.algorithm}): {sum(wrong)} wrong, "
        f"{seconds:.1f} s, resident {max(halves[0]):,} then {max(halves[1]):,} bytes"
    )
    fine = not sum(wrong) and grown <= GROWTH
    return {"wrong": sum(wrong), "grown": grown, "seconds": seconds, "fine": fine}


def many_loads(path: Path, loads: int) -> dict[str, Any]:
    data, weight, bias = random_inputs(W, 1, "NCHW", "integer")
    expected = conv2d_reference(W, data, weight, bias)
    seen, files, wrong = [], [], 0
    started = time.perf_counter()
    for number in range(loads):
        library = convtvm.load(path)
        wrong += not np.array_equal(library.plan(W, weight, bias)(data), expected)
        del library
        if number % 50 == 49:
            gc.collect()
            seen.append(resident())
            files.append(len(os.listdir("/proc/self/fd")))
    middle, end = seen[len(seen) // 2], seen[-1]
    print(
        f"{loads} loads: {wrong} wrong, {time.perf_counter() - started:.1f} s, resident "
        f"{seen[0]:,}, {middle:,}, {end:,} bytes; open files {files[0]}, {files[-1]}"
    )
    fine = not wrong and end - middle <= GROWTH and files[0] == files[-1]
    return {"wrong": wrong, "grown": end - middle, "files": files[-1] - files[0], "fine": fine}


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--loads", type=int, default=1_000)
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.so"
        library = convtvm.compile(
            [W], threads=1, logs=[], algorithms=["direct"], epilogues=["clip"]
        )
        library.export(path)
        sheet.found["calls"] = found = many_calls(path, options.threads, options.calls)
        sheet.time(f"calls of {options.threads} threads", Timing.of([found["seconds"]]))
        sheet.found["loads"] = many_loads(path, options.loads)
    return not all(each["fine"] for each in sheet.found.values())


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
