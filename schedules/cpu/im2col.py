"""CPU template of im2col: the column matrix in an order that suits the product, then register
tiles.

The tile is that of `direct`; it reads the columns instead of the data, one row of pixels after
another, without strides, dilations or padding.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from schedules.cpu import epilogue
from schedules.cpu.registers import (
    CpuModel,
    accumulate_in_tile,
    extents,
    find_block,
    fits,
    layout,
    oc_block,
    tile_cost,
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
    return tile_space(sch, cpu, orders=(0, 1, 2) if find_block(sch, "columns") else (0,))


def tile_space(sch: Schedule, cpu: CpuModel, orders: tuple[int, ...]) -> Space:
    chunks_in, _, channels, oh, ow, _, kh, kw, ic_block = extents(sch, "partial")
    chunks_out = channels // oc_block(sch)
    terms = kh * kw * ic_block
    knobs = {
        "tile_ow": tuple(t for t in range(1, cpu.registers) if t <= ow),
        "tile_oh": tuple(t for t in range(1, _MAX_UNROLLED_ROWS + 1) if t <= oh),
        "tile_oc": tuple(t for t in (1, 2, 3, 4, 6) if t <= chunks_out),
        "tile_ic": tuple(
            t
            for t in range(1, chunks_in + 1)
            if chunks_in % t == 0 and (t == 1 or t * terms <= _MAX_TERMS)
        ),
        "rows_outer": (0, 1),
        "order": orders,
    }

    def is_valid(d: Decisions) -> bool:
        return fits(d["tile_ow"] * d["tile_oh"], d["tile_oc"], cpu) and chunks_out % d["tile_oc"] == 0

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
        return (
            tile * useless(d) * short
            + 0.02 * (d["tile_oh"] - 1)
            + 0.005 * (1 - d["rows_outer"])
        )

    def features(d: Decisions) -> dict[str, float]:
        pixels = d["tile_ow"] * d["tile_oh"]
        return {
            "accumulators": pixels * d["tile_oc"],
            "tile": tile_cost(pixels, d["tile_oc"], cpu),
            "useless": useless(d),
            "terms": d["tile_ic"] * terms,
        }

    return Space(knobs, is_valid, is_worthwhile, cost, features)


def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    out, columns = sch.get_sblock("out"), find_block(sch, "columns")
    ic_block = int(sch.mod["main"].params[1].shape[-2])
    if columns is not None:
        b = ic_block
        if d["order"]==1:
            sch.transform_layout(columns, ("write", 0), lambda n, y, x, ky, kx, c: [n, y, c // b, ky, kx, x, c % b])
        if d["order"]==2:
            sch.transform_layout(columns, ("write", 0), lambda n, y, x, ky, kx, c: [n, y, c // b, ky, kx, c % b, x])
        n, y, x, ky, kx, c = sch.get_loops(columns)
        lower(sch, [n, y], x, [ky, kx], c, b, d["order"])
    accumulate_in_tile(sch, out, d)
    epilogue.store_tile(sch, out, oc_block(sch))


def lower(sch, outer, x, kernel, c, b, order):
    co, ci = sch.split(c, [None, b])
    if order == 0:
        sch.reorder(*outer, x, *kernel, co, ci)
    elif order == 1:
        sch.reorder(*outer, co, *kernel, x, ci)
    else:
        sch.reorder(*outer, co, *kernel, ci, x)
    if layout(sch)=="NHWC" and order < 2:
        sch.vectorize(ci)
    sch.parallel(sch.fuse(*outer, *([co] if order else [])))
