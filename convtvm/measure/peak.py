"""The machine's fp32 peak, measured: a register-tiled product of two matrices that stay in L1."""

from __future__ import annotations

from convtvm.machine.targets import CompileTarget
from convtvm.measure.pace import products
from convtvm.measure.timing import mean_seconds

_REPEATS = 64  # products per thread and call, to outweigh the launch
_SECONDS = 0.2  # cores that were idle need 10 ms and more to reach their full speed


def measure_peak(target: CompileTarget, samples: int = 30) -> float:
    """FLOP/s of `target.threads` cores on this machine; the fastest of `samples` timings."""
    work = products(target, _REPEATS)
    work.run()
    number = max(1, int(_SECONDS / samples / mean_seconds(work.run, 10)))
    return work.flops / min(mean_seconds(work.run, number) for _ in range(samples))
