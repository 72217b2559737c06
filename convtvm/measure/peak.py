"""The machine's fp32 peak, measured: a register-tiled product of two matrices that stay in L1."""

from __future__ import annotations

import tvm

from convtvm.machine.targets import CompileTarget
from convtvm.measure.pace import products

_REPEATS = 64  # products per thread and call, to outweigh the launch
_SECONDS = 0.2  # cores that were idle need 10 ms and more to reach their full speed


def measure_peak(target: CompileTarget, samples: int = 30) -> float:
    """FLOP/s of `target.threads` cores on this machine; the fastest of `samples` timings."""
    module, args, flops = products(target, _REPEATS)
    once = module.time_evaluator("main", tvm.cpu(), number=10)(*args).mean
    number = max(1, int(_SECONDS / samples / once))
    timer = module.time_evaluator("main", tvm.cpu(), number=number, repeat=samples)
    return flops / min(float(s) for s in timer(*args).results)
