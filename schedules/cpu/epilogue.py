"""The block `out` at the end of a register tile: bias, crop, store in the interface layout."""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from schedules.cpu.registers import TRANSPOSE_OUT, extents, layout


def store_tile(sch: Schedule, out: SBlockRV, block: int, partial: int) -> None:
    """Schedule the innermost loops of `out`, a tile whose channels are vectors of `block` lanes.

    NHWC stores whole vectors. NCHW has pixels innermost: the tile is transposed on its way out; at
    the edge of the image `partial` pixels of its rows are left, 0 where none are cut off.
    """
    if layout(sch) == "NHWC":
        store_vectors(sch, out, block)
    else:
        transpose_tile(sch, out, block, partial)


def cut_off(sch: Schedule, tile_h: int, tile_w: int) -> int:
    """Pixels that are left of a tile's rows at the edge of the image, 0 if they all fit; of `out`
    as it is before tiling. In an image one pixel wide, columns lie in memory as rows do."""
    high, wide = extents(sch, "out")[-2:]
    return wide % tile_w if wide > 1 else high % tile_h


def transpose_tile(sch: Schedule, out: SBlockRV, block: int, partial: int) -> None:
    """Schedule the innermost three loops of `out`, among them channels and pixels, for NCHW."""
    loops = sch.get_loops(out)[-3:]
    if block % 4 == 0:
        sch.annotate(loops[0], TRANSPOSE_OUT, [block, partial])
    else:
        for loop in loops:
            sch.unroll(loop)


def store_vectors(sch: Schedule, store: SBlockRV, block: int) -> None:
    """Schedule the innermost loops y, x, c of `store`, a tile whose channels lie together."""
    y, x, c = sch.get_loops(store)[-3:]
    chunk, lane = sch.split(c, [None, block])
    sch.vectorize(lane)
    for loop in (y, x, chunk):
        sch.unroll(loop)
