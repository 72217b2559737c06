"""CPU template of im2col and GEMM: columns packed for register tiles, panels that stay in cache.

A tile covers tile_ow pixels, numbered through the image, by tile_oc channel vectors. Packed, the
columns of a tile are neighbours in memory and a window element of all its pixels is one short run;
unpacked, which only a 1x1 kernel offers, they are the data as it is. A panel of `panel` tiles
meets all channel tiles before the next panel begins, so that it stays in cache while the weight
streams past.
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
    ic_block,
    image_counts,
    layout,
    number_pixels,
    oc_block,
    tile_cost,
    tile_ic_values,
    waste,
)
from schedules.knobs import Decisions, Space

VERSION = 4
COMPUTE_KNOBS = ("tile_ic", "tile_ow", "panel", "pack")

_FEW_TILES = 16
_MAX_ROUNDING = 0.2  # share of pixels computed only to fill the last tile or panel


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`, for the function of whole columns (all compute knobs at their least)."""
    chunks_in, images, channels, _, pixels, _, kh, kw, ic = extents(sch, "partial")
    block, copies = oc_block(sch), find_block(sch, "columns") is not None
    chunks_out, terms = channels // block, kh * kw * ic
    far_apart = layout(sch) == "NCHW"
    weight_bytes = 4.0 * channels * chunks_in * terms
    streams = weight_bytes > cpu.l2_bytes / 2
    knobs = {
        "tile_ow": tuple(t for t in range(1, cpu.registers) if t <= pixels),
        "tile_oc": tuple(t for t in (1, 2, 3, 4, 6) if t <= chunks_out),
        "tile_ic": tile_ic_values(chunks_in, terms),
        "unroll_ic": tuple(u for u in (1, 2, 4) if ic % u == 0),
        "panel": (1, 2, 4, 8, 16, 32),
        # images that meet a block of the weight in turn
        "images": image_counts(sch),
        "pack": (1,) if copies else (0, 1),
        "prefetch": (0, 1) if streams else (0,),
    }

    def tiles(d: Decisions) -> int:
        """Register tiles that meet a block of the weight in turn."""
        return d["images"] * (d["panel"] if d["panel"] > 1 else -(-pixels // d["tile_ow"]))

    def rounding(d: Decisions) -> float:
        return waste(pixels, d["tile_ow"] * d["panel"])

    def is_valid(d: Decisions) -> bool:
        return (
            fits(d["tile_ow"], d["tile_oc"], cpu)
            and chunks_out % d["tile_oc"] == 0
            # Without a copy nothing can fill the last panel.
            and (d["pack"] == 1 or d["panel"] == 1 or rounding(d) == 0)
            # Shared by several images, the weight is waited for too seldom to prefetch it.
            and (d["prefetch"] == 0 or (tiles(d) > 1 and d["images"] == 1))
        )

    def is_worthwhile(d: Decisions) -> bool:
        return d["tile_ow"] * d["tile_oc"] >= 4 and rounding(d) <= _MAX_ROUNDING

    def panel_bytes(d: Decisions) -> float:
        return 4.0 * chunks_in * terms * d["tile_ow"] * tiles(d)

    def cost(d: Decisions) -> float:
        tile = tile_cost(d["tile_ow"], d["tile_oc"], cpu)
        short = 1 + 4 / (d["tile_ic"] * terms)
        streamed = 0.2 if d["panel"] > 1 and streams else 0.0
        outgrown = 0.1 if panel_bytes(d) > 0.75 * cpu.l2_bytes else 0.0
        copied = d["pack"] * 8 / channels
        # A window of the data in NCHW takes one cache line for every channel.
        unpacked = far_apart and not d["pack"] and chunks_in * terms * 64 >= cpu.l1_bytes
        scattered = 0.5 if unpacked else 0.0
        again = streamed * 32 / (d["tile_ow"] * tiles(d))
        # Where few tiles share a block of the weight, waiting for it counts.
        fetched = 0.05 * d["prefetch"] * (-1 if tiles(d) <= _FEW_TILES else 1)
        return (
            tile * short * (1 + rounding(d))
            + again
            + fetched
            + outgrown
            + copied
            + scattered
            + 0.01 * (d["unroll_ic"] - 1)
        )

    def features(d: Decisions) -> dict[str, float]:
        return {
            "accumulators": d["tile_ow"] * d["tile_oc"],
            "tile": tile_cost(d["tile_ow"], d["tile_oc"], cpu),
            "useless": 1 + rounding(d),
            "terms": d["tile_ic"] * terms,
            "panel_bytes": panel_bytes(d),
            "weight_tile_bytes": 4.0 * d["tile_oc"] * block * chunks_in * terms,
        }

    def turns(d: Decisions) -> int:
        panels = -(-pixels // (d["tile_ow"] * d["panel"])) if d["panel"] > 1 else 1
        return images * panels * (chunks_out // d["tile_oc"])

    return Space(knobs, is_valid, is_worthwhile, cost, features, turns, cpu.threads)


def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    columns = find_block(sch, "columns")
    if columns is not None:
        _copy_columns(sch, columns, d["tile_ow"])
    number_pixels(sch, lambda n, c, y, x, ow: (n, c, y * ow + x))
    out, partial = sch.get_sblock("out"), epilogue.cut_off(sch, 1, d["tile_ow"])
    accumulate_in_tile(sch, out, {**d, "tile_oh": 1, "rows_outer": 0}, d["unroll_ic"])
    epilogue.store_tile(sch, out, oc_block(sch), partial)


def _copy_columns(sch: Schedule, columns: SBlockRV, tile: int) -> None:
    """Copy tile by tile: pixels innermost (NCHW) or blocks of channels (NHWC), as they are read."""
    b, by_channel = ic_block(sch), layout(sch) == "NCHW"

    packed = {
        True: lambda n, c, ky, kx, p: [n, p // tile, c // b, ky, kx, c % b, p % tile],
        False: lambda n, c, ky, kx, p: [n, p // tile, c // b, ky, kx, p % tile, c % b],
    }
    sch.transform_layout(columns, ("write", 0), packed[by_channel])
    n, c, ky, kx, p = sch.get_loops(columns)
    co, ci = sch.split(c, [None, b])
    po, pi = sch.split(p, [None, tile])
    if by_channel:
        sch.reorder(n, po, co, ci, ky, kx, pi)
        sch.unroll(pi)
    else:
        sch.reorder(n, po, co, ky, kx, pi, ci)
        sch.vectorize(ci)
    sch.parallel(sch.fuse(n, po))
