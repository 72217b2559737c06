"""CPU template of MEC, Solutions A and B: rows lowered along the width, then register tiles.

A register tile covers pixels of one or more output rows, whose windows overlap in L. Solution A
counts the pixels of all images as one row, so that narrow images fill a tile.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from schedules.cpu import epilogue
from schedules.cpu.registers import (
    CpuModel,
    accumulate_in_tile,
    extents,
    ic_block,
    number_pixels,
    oc_block,
)
from schedules.cpu.windows import BLOCKS, PIXELS, WINDOWS, copy_windows, window_space
from schedules.knobs import Decisions, Space

VERSION = 2
COMPUTE_KNOBS = ("tile_ic",)


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`, for the function whose reduction is not yet cut (tile_ic = 1)."""
    return window_space(sch, cpu, (WINDOWS, BLOCKS, PIXELS))


def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    batch_in_row = "batch_in_row" in sch.mod["main"].attrs
    _lower(sch, d["order"], batch_in_row)
    if batch_in_row:
        number_pixels(sch, lambda n, c, y, x, ow: (y, c, n * ow + x))
    out, partial = sch.get_sblock("out"), epilogue.cut_off(sch, d["tile_oh"], d["tile_ow"])
    accumulate_in_tile(sch, out, d)
    epilogue.store_tile(sch, out, oc_block(sch), partial)


def _lower(sch: Schedule, order: int, batch_in_row: bool) -> None:
    """Order and copy L; with `batch_in_row` the pixels n*ow + x of all images are neighbours."""
    lowered, b, ow = sch.get_sblock("mec_lower"), ic_block(sch), extents(sch, "mec_lower")[1]
    if batch_in_row:
        to_order = {
            WINDOWS: lambda n, x, r, kx, c: [n * ow + x, r, kx, c],
            BLOCKS: lambda n, x, r, kx, c: [r, c // b, kx, n * ow + x, c % b],
            PIXELS: lambda n, x, r, kx, c: [r, c // b, kx, c % b, n * ow + x],
        }
    else:
        to_order = {
            WINDOWS: lambda n, x, r, kx, c: [n, x, r, kx, c],
            BLOCKS: lambda n, x, r, kx, c: [n, r, c // b, kx, x, c % b],
            PIXELS: lambda n, x, r, kx, c: [n, r, c // b, kx, c % b, x],
        }
    sch.transform_layout(lowered, ("write", 0), to_order[order])
    n, x, r, kx, c = sch.get_loops(lowered)
    copy_windows(sch, order, rows=[n, r], kernel=[kx], x=x, c=c)
