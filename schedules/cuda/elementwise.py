"""Kernels without sums: copies, transforms, repacking, one thread for each element or vector."""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

_THREADS = 256


def spread(sch: Schedule, loops: list[LoopRV], vector: int = 1) -> LoopRV:
    """Bind perfectly nested loops, in the order of memory, to blocks of threads; the innermost
    `vector` elements are one access. Returns the loop over threads."""
    fused = sch.fuse(*loops)
    total = int(sch.get(fused).extent) // vector
    block, thread, lanes = sch.split(fused, [None, min(_THREADS, total), vector])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    if vector > 1:
        sch.vectorize(lanes)
    return thread


def spread_block(sch: Schedule, block: SBlockRV, vector: int = 1) -> LoopRV:
    """`spread` all loops of a block."""
    return spread(sch, sch.get_loops(block), vector)
