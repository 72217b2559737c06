"""The block `out` at the end of a register tile: bias, crop, store in the interface layout."""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from schedules.cpu.registers import layout


def store_tile(sch: Schedule, out: SBlockRV, block: int) -> None:
    """Schedule the innermost four loops of `out`, a tile whose channels are vectors of `block`
    lanes.

    NHWC stores whole vectors. NCHW has pixels innermost: the tile is transposed on its way out, by
    scalar moves that overlap with the next tile's arithmetic.
    """
    if layout(sch) == "NHWC":
        store_vectors(sch, out, block)
        return
    for loop in sch.get_loops(out)[-3:]:
        sch.unroll(loop)


def store_vectors(sch: Schedule, store: SBlockRV, block: int) -> None:
    """Schedule the innermost loops y, x, c of `store`, a tile whose channels lie together."""
    y, x, c = sch.get_loops(store)[-3:]
    chunk, lane = sch.split(c, [None, block])
    sch.vectorize(lane)
    for loop in (y, x, chunk):
        sch.unroll(loop)
