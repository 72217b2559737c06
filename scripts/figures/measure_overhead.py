"""What a call of a plan costs above the bare kernel call, on a convolution of eight numbers.

    python scripts/figures/measure_overhead.py [--rounds N]

The bare call has its four tensors ready. Each way is timed in bursts, all ways in turn; shown is
the fastest burst, in microseconds, since whatever else runs can only add to it. An output that the
call allocates includes the array library's own time for that, which is shown beside it. A time is
noisy where bursts differ: the exit status is then 3, although the fastest may still be right.

Quoted by docs/speed.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import tvm_ffi
from sheet import Sheet, main, parser_of

import convtvm
from convtvm.measure.timing import Timing

CALLS = 2000
WARM_UP = 3  # bursts that do not count


def burst(call: Callable[[], object]) -> float:
    """Microseconds a call."""
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - started) / CALLS * 1e6


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    ways = ways_to_call()
    for way in ways.values():
        for _ in range(WARM_UP):
            burst(way)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            taken[name].append(burst(way))
    bare = min(taken["bare kernel"])
    print(f"{'':24}{'us a call':>12}{'above bare':>12}{'median':>12}")
    for name, series in taken.items():
        timing = Timing.of([microseconds / 1e6 for microseconds in series])
        shown, least = sheet.time(name.strip(" ()"), timing), min(series)
        sheet.found[name.strip(" ()")] = {"us": least, "above_bare": least - bare}
        median = f"{1e6 * timing.seconds:12.2f}{shown.mark}"
        print(f"{name:24}{least:12.2f}{least - bare:12.2f}{median} {shown.about}")


def ways_to_call() -> dict[str, Callable[[], object]]:
    """The bare kernel and a plan, with what arrays there are."""
    w = convtvm.ConvWorkload.parse("mb1ic8ih1oc8kh1")
    library = convtvm.compile(
        [w], threads=1, logs=[], algorithms=["direct"], epilogues=["clip", "add"]
    )
    weight = np.ones(w.weight_shape, np.float32)
    plan = library.plan(w, weight)
    ending = library.plan(w, weight, activation="relu", residual=True)
    data, out = np.ones(w.data_shape(), np.float32), np.empty(w.out_shape(), np.float32)
    residual = np.ones_like(out)

    kernel = library.function(plan.choice.kernel.function)
    args = (tvm_ffi.from_dlpack(data), plan._packed, plan._bias, tvm_ffi.from_dlpack(out))
    ways: dict[str, Callable[[], object]] = {
        "bare kernel": lambda: kernel(*args),
        "numpy, out=": lambda: plan(data, out=out),
        "numpy, out=, residual": lambda: ending(data, out=out, residual=residual),
        "numpy, allocates": lambda: plan(data),
        "  (np.empty alone)": lambda: np.empty(out.shape, np.float32),
    }
    try:
        import torch
    except ImportError:
        print("no PyTorch here: its tensors are left out")
    else:
        x, y = torch.from_numpy(data), torch.from_numpy(out)
        ways |= {
            "torch, out=": lambda: plan(x, out=y),
            "torch, allocates": lambda: plan(x),
            "  (torch.empty alone)": lambda: torch.empty(y.shape),
        }
    return ways


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
