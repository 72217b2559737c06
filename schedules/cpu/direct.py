"""CPU template of direct convolution: a register tile of tile_oh x tile_ow pixels by tile_oc
vectors.

The tile stays in registers through the reduction; data elements are broadcast, so they are read
from the interface layout as they are.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from schedules.cpu import epilogue
from schedules.cpu.registers import (
    CpuModel,
    extents,
    find_block,
    fits,
    layout,
    tile_cost,
    tile_order,
    vectorize_innermost,
    waste,
)
from schedules.knobs import Decisions, Space

VERSION = 1
COMPUTE_KNOBS = ("tile_ic",)

# Terms summed before they are added to the total: longer sums lose accuracy, shorter ones speed.
_MAX_TERMS = 768
_MAX_UNROLLED_ROWS = 4


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`, for the function whose reduction is not yet cut (tile_ic = 1)."""
    chunks_in, _, channels, oh, ow, _, kh, kw, ic_block = extents(sch, "partial")
    block = _oc_block(sch)
    chunks_out = channels // block
    terms = kh * kw * ic_block
    rows = tuple(t for t in range(1, cpu.registers) if t <= ow)
    knobs = {
        "tile_ow": rows,
        "tile_oh": tuple(t for t in range(1, _MAX_UNROLLED_ROWS + 1) if t <= oh),
        "tile_oc": tuple(t for t in (1, 2, 3, 4, 6) if t <= chunks_out),
        "tile_ic": tuple(
            t
            for t in range(1, chunks_in + 1)
            if chunks_in % t == 0 and (t == 1 or t * terms <= _MAX_TERMS)
        ),
        "unroll_ic": tuple(u for u in (1, 2, 4) if ic_block % u == 0),
        "rows_outer": (0, 1),
    }

    def is_valid(d: Decisions) -> bool:
        pixels = d["tile_ow"] * d["tile_oh"]
        return fits(pixels, d["tile_oc"], cpu) and chunks_out % d["tile_oc"] == 0

    def is_worthwhile(d: Decisions) -> bool:
        return (
            d["tile_ow"] * d["tile_oh"] * d["tile_oc"] >= 4
            and waste(oh, d["tile_oh"]) <= 0.34
            and (waste(ow, d["tile_ow"]) <= 0.34 or d["tile_oh"] == 1)
        )

    def useless(d: Decisions) -> float:
        return (1 + waste(oh, d["tile_oh"])) * (1 + waste(ow, d["tile_ow"]))

    def cost(d: Decisions) -> float:
        tile = tile_cost(d["tile_ow"] * d["tile_oh"], d["tile_oc"], cpu)
        short = 1 + 4 / (d["tile_ic"] * terms)
        long_rows = 0.02 * (d["tile_oh"] - 1)
        return (
            tile * useless(d) * short
            + long_rows
            + 0.01 * (d["unroll_ic"] - 1)
            + 0.005 * d["rows_outer"]
        )

    def features(d: Decisions) -> dict[str, float]:
        pixels = d["tile_ow"] * d["tile_oh"]
        return {
            "accumulators": pixels * d["tile_oc"],
            "tile": tile_cost(pixels, d["tile_oc"], cpu),
            "useless": useless(d),
            "terms": d["tile_ic"] * terms,
            "weight_tile_bytes": 4.0 * d["tile_oc"] * block * chunks_in * terms,
        }

    return Space(knobs, is_valid, is_worthwhile, cost, features)


def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    conv, partial, out = (sch.get_sblock(name) for name in ("conv", "partial", "out"))
    block = _oc_block(sch)

    # Cut the output into register tiles; one thread owns the rows of a channel tile.
    n, c, y, x, k = sch.get_loops(conv)
    co, ci, cb = sch.split(c, [None, d["tile_oc"], block])
    yo, yi = sch.split(y, [None, d["tile_oh"]])
    xo, xi = sch.split(x, [None, d["tile_ow"]])
    outer = (n, yo, co) if d["rows_outer"] else (n, co, yo)
    sch.reorder(*outer, xo, k, yi, xi, ci, cb)
    sch.parallel(sch.fuse(*outer))
    # A ragged last tile gets its own copy of the loop nest, so that full tiles test nothing.
    sch.annotate(xo, "pragma_loop_partition_hint", 1)
    sch.vectorize(cb)
    for loop in (yi, xi, ci):
        sch.unroll(loop)

    # The partial sum over a few channel blocks lives in the same tile, as does the epilogue.
    sch.compute_at(partial, k, preserve_unit_loops=True)
    sch.reverse_compute_at(out, xo, preserve_unit_loops=True)
    sch.transform_layout(conv, ("write", 0), lambda n, c, y, x: [n, c // block, y, x, c % block])
    sch.transform_layout(
        partial, ("write", 0), lambda k, n, c, y, x: [k, n, c // block, y, x, c % block]
    )

    # Reduction outside, tile inside; the channel block is innermost in the packed weight.
    _, _, c, y, x, io, ky, kx, ii = sch.get_loops(partial)[-9:]
    ci, cb = sch.split(c, [None, block])
    iio, iii = sch.split(ii, [None, d["unroll_ic"]])
    tile = tile_order(d["tile_ow"] * d["tile_oh"], d["tile_oc"], [y, x], [ci])
    sch.reorder(io, ky, kx, iio, iii, *tile, cb)
    sch.vectorize(cb)
    for loop in (iii, *tile):
        sch.unroll(loop)
    vectorize_innermost(sch, sch.decompose_reduction(partial, io), unroll=3)
    vectorize_innermost(sch, sch.decompose_reduction(conv, k), unroll=3)

    epilogue.store_tile(sch, out, block)
    _copy_padded_input(sch)


def _oc_block(sch: Schedule) -> int:
    """Lanes of an output-channel vector: the last axis of the packed weight."""
    return int(sch.mod["main"].params[1].shape[-1])


def _copy_padded_input(sch: Schedule) -> None:
    pad = find_block(sch, "data_pad")
    if pad is None:
        return
    loops = sch.get_loops(pad)
    if layout(sch) == "NHWC":
        sch.parallel(sch.fuse(*loops[:2]))
        sch.vectorize(loops[-1])
    else:
        sch.parallel(sch.fuse(*loops[:3]))
