"""Copied windows of MEC: the orders in which they may lie, the knobs of a tile over them, the
copy."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from schedules.cpu.registers import (
    CpuModel,
    extents,
    fits,
    ic_block,
    layout,
    oc_block,
    tile_cost,
    tile_ic_values,
    waste,
)
from schedules.knobs import Decisions, Space

# Values of the knob `order`, how the copied windows lie in memory. A tile reads the same element of
# neighbouring pixels: whole windows are often a multiple of 4 KB apart and evict each other from
# the L1 cache, blocks of channels are neighbours. Pixels innermost is what NCHW copies fastest.
WINDOWS, BLOCKS, PIXELS = 0, 1, 2

_MAX_UNROLLED_ROWS = 4


def window_space(sch: Schedule, cpu: CpuModel, orders: tuple[int, ...]) -> Space:
    """Knobs of a register tile over copied windows, which may lie in any of `orders`."""
    chunks_in, images, channels, oh, ow, _, kh, kw, ic_block = extents(sch, "partial")
    block, transposes = oc_block(sch), layout(sch) == "NHWC"
    chunks_out, terms = channels // block, kh * kw * ic_block
    knobs = {
        "tile_ow": tuple(t for t in range(1, cpu.registers) if t <= ow),
        "tile_oh": tuple(t for t in range(1, _MAX_UNROLLED_ROWS + 1) if t <= oh),
        "tile_oc": tuple(t for t in (1, 2, 3, 4, 6) if t <= chunks_out),
        "tile_ic": tile_ic_values(chunks_in, terms),
        "rows_outer": (0, 1),
        "order": orders,
    }

    def is_valid(d: Decisions) -> bool:
        pixels = d["tile_ow"] * d["tile_oh"]
        return fits(pixels, d["tile_oc"], cpu) and chunks_out % d["tile_oc"] == 0

    def is_worthwhile(d: Decisions) -> bool:
        return (
            d["tile_ow"] * d["tile_oh"] * d["tile_oc"] >= 4
            and waste(oh, d["tile_oh"]) <= 0.34
            and (waste(ow, d["tile_ow"]) <= 0.34 or d["tile_oh"] == 1)
            and not (transposes and d["order"] == PIXELS)
        )

    def useless(d: Decisions) -> float:
        return (1 + waste(oh, d["tile_oh"])) * (1 + waste(ow, d["tile_ow"]))

    def cost(d: Decisions) -> float:
        tile = tile_cost(d["tile_ow"] * d["tile_oh"], d["tile_oc"], cpu)
        short = 1 + 4 / (d["tile_ic"] * terms)
        # The windows are larger than the weight: better read them once than once a channel tile.
        windows_again = 0.02 * (1 - d["rows_outer"])
        return (
            tile * useless(d) * short
            + 0.02 * (d["tile_oh"] - 1)
            + windows_again
            + 0.05 * (d["order"] != BLOCKS)
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

    def turns(d: Decisions) -> int:
        return images * -(-oh // d["tile_oh"]) * (chunks_out // d["tile_oc"])

    return Space(knobs, is_valid, is_worthwhile, cost, features, turns, cpu.threads)


def copy_windows(
    sch: Schedule,
    order: int,
    rows: Sequence[LoopRV],
    kernel: Sequence[LoopRV],
    x: LoopRV,
    c: LoopRV,
) -> None:
    """Copy windows in the order in which they are stored, rows in parallel."""
    co, ci = sch.split(c, [None, ic_block(sch)])
    if order == WINDOWS:
        sch.reorder(*rows, x, *kernel, co, ci)
    elif order == BLOCKS:
        sch.reorder(*rows, co, *kernel, x, ci)
    else:
        sch.reorder(*rows, co, *kernel, ci, x)
    if layout(sch) == "NHWC" and order != PIXELS:
        sch.vectorize(ci)
    sch.parallel(sch.fuse(*rows))
