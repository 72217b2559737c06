"""CPU template of direct convolution: a register tile of tile_oh x tile_ow pixels by tile_oc
vectors.

The tile stays in registers through the reduction; data elements are broadcast, so they are read
from the interface layout as they are.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from schedules.cpu import epilogue
from schedules.cpu.registers import (
    ALIAS_BYTES,
    CpuModel,
    accumulate_in_tile,
    extents,
    find_block,
    fits,
    image_counts,
    layout,
    number_pixels,
    oc_block,
    tile_cost,
    tile_ic_values,
    waste,
)
from schedules.knobs import Decisions, Space

VERSION = 3
COMPUTE_KNOBS = ("tile_ic", "flat")

_MAX_UNROLLED_ROWS = 4


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`, for the function whose reduction is not yet cut (tile_ic = 1)."""
    chunks_in, images, channels, oh, ow, _, kh, kw, ic_block = extents(sch, "partial")
    block = oc_block(sch)
    chunks_out = channels // block
    terms = kh * kw * ic_block
    rows = tuple(t for t in range(1, cpu.registers) if t <= ow)
    aliases = layout(sch) == "NCHW" and 4 * oh * ow % ALIAS_BYTES == 0
    knobs = {
        "tile_ow": rows,
        "tile_oh": tuple(t for t in range(1, _MAX_UNROLLED_ROWS + 1) if t <= oh),
        "tile_oc": tuple(t for t in (1, 2, 3, 4, 6) if t <= chunks_out),
        "tile_ic": tile_ic_values(chunks_in, terms),
        "unroll_ic": tuple(u for u in (1, 2, 4) if ic_block % u == 0),
        "rows_outer": (0, 1),
        # images that meet a block of the weight in turn
        "images": image_counts(sch),
        # 1: pixels are numbered through, a tile may go from the end of a row into the next
        "flat": (0, 1) if oh > 1 else (0,),
    }

    def is_valid(d: Decisions) -> bool:
        pixels = d["tile_ow"] * d["tile_oh"]
        return (
            fits(pixels, d["tile_oc"], cpu)
            and chunks_out % d["tile_oc"] == 0
            # Numbered through, there is a single row.
            and not (d["flat"] and (d["tile_oh"] > 1 or d["rows_outer"]))
            and not (d["images"] > 1 and d["rows_outer"])
        )

    def is_worthwhile(d: Decisions) -> bool:
        return (
            d["tile_ow"] * d["tile_oh"] * d["tile_oc"] >= 4
            and waste(oh, d["tile_oh"]) <= 0.34
            and (waste(ow, d["tile_ow"]) <= 0.34 or d["tile_oh"] == 1)
            and not (d["flat"] and ow % d["tile_ow"] == 0)
        )

    def useless(d: Decisions) -> float:
        if d["flat"]:
            return 1 + waste(oh * ow, d["tile_ow"])
        return (1 + waste(oh, d["tile_oh"])) * (1 + waste(ow, d["tile_ow"]))

    def cost(d: Decisions) -> float:
        tile = tile_cost(d["tile_ow"] * d["tile_oh"], d["tile_oc"], cpu)
        short = 1 + 4 / (d["tile_ic"] * terms)
        long_rows = 0.02 * (d["tile_oh"] - 1)
        # A tile should write few planes that alias, and whole cache lines.
        crowded = 0.5 * (d["tile_oc"] - 1) + 0.2 * (d["tile_ow"] % 16 > 0) if aliases else 0.0
        return (
            tile * useless(d) * short
            + long_rows
            + crowded
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

    def turns(d: Decisions) -> int:
        rows = 1 if d["flat"] else -(-oh // d["tile_oh"])
        return images * rows * (chunks_out // d["tile_oc"])

    return Space(knobs, is_valid, is_worthwhile, cost, features, turns, cpu.threads)


def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    if d["flat"]:
        number_pixels(sch, lambda n, c, y, x, ow: (n, c, y * ow + x))
    out, partial = sch.get_sblock("out"), epilogue.cut_off(sch, d["tile_oh"], d["tile_ow"])
    accumulate_in_tile(sch, out, d, d["unroll_ic"])
    epilogue.store_tile(sch, out, oc_block(sch), partial)
    _copy_padded_input(sch)


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
