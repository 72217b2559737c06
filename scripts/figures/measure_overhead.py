"""What a call of a plan costs above the bare kernel call, on a convolution of eight numbers.

    python scripts/figures/measure_overhead.py [--rounds N]

The bare call has its four tensors ready. Each way is timed in bursts, all ways in turn; shown is
the fastest burst, in microseconds, since whatever else runs can only add to it. An output that the
call allocates includes the array library's own time for that, which is shown beside it.

Quoted by docs/speed.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import tvm_ffi

import convtvm

CALLS = 2000


def burst(call: Callable[[], object]) -> float:
    """Microseconds a call."""
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - started) / CALLS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds

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
    best = {name: min(burst(way) for _ in range(3)) for name, way in ways.items()}
    for _ in range(rounds):
        for name, way in ways.items():
            best[name] = min(best[name], burst(way))
    bare = best["bare kernel"]
    print(f"{'':24}{'us a call':>12}{'above bare':>12}")
    for name, microseconds in best.items():
        print(f"{name:24}{microseconds:12.2f}{microseconds - bare:12.2f}")


if __name__ == "__main__":
    main()
