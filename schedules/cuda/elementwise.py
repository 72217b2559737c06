"""Kernels without sums: copies, transforms, repacking, one thread for each element."""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

_THREADS = 256


def spread(sch: Schedule, loops: list[LoopRV], count: int = _THREADS) -> LoopRV:
    """Bind perfectly nested loops, in the order of memory, to blocks of at most `count` threads.
    Returns the loop over threads."""
    fused = sch.fuse(*loops)
    block, thread = sch.split(fused, [None, min(count, int(sch.get(fused).extent))])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    return thread


def spread_block(sch: Schedule, block: SBlockRV) -> LoopRV:
    """`spread` all loops of a block."""
    return spread(sch, sch.get_loops(block))
