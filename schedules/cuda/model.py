"""What templates need to know of a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuModel:
    """Limits and rates of a GPU; registers have 32 bits.

    `arch` is the oldest architecture that the code must run on, as in sm_80; `processors` counts
    multiprocessors; `shared_bytes` is the most that one block may use in scope shared.dyn (static
    shared memory ends at 48 KB), `shared_total` what a processor has. Rates are for one cycle of
    one processor: multiply-adds of float32, and of float16 on tensor cores; words of 4 bytes from
    the L2 cache.
    """

    arch: str
    processors: int
    shared_bytes: int
    shared_total: int
    threads_total: int  # resident on one processor
    multiply_adds: float
    tensor: float
    l2_words: float
    max_threads: int = 1024  # of one block
    warp: int = 32
    registers: int = 65536  # of a processor, and of one block
    max_registers: int = 255  # of one thread
