"""The machine's fp32 peak, measured: a register-tiled product of two matrices that stay in L1."""

from __future__ import annotations

import tvm

from convtvm.measure.pace import products
from convtvm.targets import CompileTarget

_REPEATS = 64  # products per thread and call, to outweigh the launch


def measure_peak(target: CompileTarget, samples: int = 15) -> float:
    """FLOP/s of `target.threads` cores on this machine; the fastest of `samples` timings."""
    module, args, flops = products(target, _REPEATS)
    timer = module.time_evaluator("main", tvm.cpu(), number=10, repeat=samples)
    return flops / min(float(s) for s in timer(*args).results)
