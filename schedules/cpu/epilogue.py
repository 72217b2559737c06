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
    loops = sch.get_loops(out)[-4:]
    if layout(sch) == "NHWC":
        _, y, x, c = loops
        chunk, lane = sch.split(c, [None, block])
        sch.vectorize(lane)
        for loop in (y, x, chunk):
            sch.unroll(loop)
        return
    for loop in loops[1:]:
        sch.unroll(loop)
