"""CPU template of 1x1 convolution in NCHW: a register tile of tile_c channels by tile_p vectors of
pixels.

Data and output are read and written by whole vectors as they lie; the weight is broadcast. Where
the pixels of an image do not fill tiles, or a deep sum would touch a new cache line with every
channel, the data is first copied tile by tile. Uncopied, the next panel can be fetched while all
channels meet this one.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from schedules.cpu.registers import (
    PREFETCH_DATA,
    CpuModel,
    extents,
    find_block,
    fits,
    image_counts,
    layout,
    number_pixels,
    oc_block,
    tile_cost,
    tile_order,
    vectorize_innermost,
    waste,
)
from schedules.knobs import Decisions, Space

VERSION = 3
COMPUTE_KNOBS = ("tile_c", "tile_p", "pack")


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`, for the function whose tile is one channel by one vector."""
    images, channels, padded, depth = extents(sch, "conv")
    pixels = _pixels(sch)
    block = oc_block(sch)
    streams = layout(sch) == "NCHW" and 4.0 * depth * pixels > cpu.l2_bytes / 2
    knobs = {
        "tile_c": tuple(t for t in range(1, min(block, channels) + 1) if block % t == 0),
        "tile_p": tuple(t for t in (1, 2, 3, 4, 6) if t * cpu.lanes <= padded),
        # tiles that meet a tile of channels one after another
        "panel": (1, 2, 4, 8, 16),
        # images that meet a tile of channels one after another
        "images": image_counts(sch),
        "unroll": tuple(u for u in (1, 2, 4) if depth % u == 0),
        "pack": (0, 1),
        "prefetch": (0, 1) if streams else (0,),
    }

    def is_valid(d: Decisions) -> bool:
        tile = d["tile_p"] * cpu.lanes
        return (
            fits(d["tile_c"], d["tile_p"], cpu)
            and d["panel"] <= -(-pixels // tile)
            and (d["pack"] == 1 or pixels % tile == 0)
            # The copy reads as the data lies, a single reading leaves no time to fetch, and what
            # follows is fetched within an image.
            and (
                d["prefetch"] == 0
                or (d["pack"] == 0 and d["tile_c"] < channels and d["images"] == 1)
            )
        )

    def is_worthwhile(d: Decisions) -> bool:
        return (
            d["tile_c"] * d["tile_p"] >= 4
            and waste(pixels, d["tile_p"] * cpu.lanes) <= 0.34
            and waste(channels, d["tile_c"]) <= 0.34
        )

    def useless(d: Decisions) -> float:
        return (1 + waste(pixels, d["tile_p"] * cpu.lanes)) * (1 + waste(channels, d["tile_c"]))

    def cost(d: Decisions) -> float:
        tile = tile_cost(d["tile_c"], d["tile_p"], cpu)
        # The copy costs a read and a write for each element, which meets every channel.
        copy = 8 / channels if d["pack"] else 0.1 * (depth >= 512)
        # A cache line of pixels is what a channel has to give at once.
        lines = 0.02 * abs(d["tile_p"] - 2)
        # Short sums leave little to wait for.
        fetched = 0.03 * d["prefetch"] * (-1 if depth >= 128 else 1)
        return (
            tile * useless(d)
            + copy
            + lines
            + fetched
            + 0.005 * abs(d["unroll"] - 2)
            + 0.002 * abs(d["panel"] - 4)
        )

    def features(d: Decisions) -> dict[str, float]:
        return {
            "accumulators": d["tile_c"] * d["tile_p"],
            "tile": tile_cost(d["tile_c"], d["tile_p"], cpu),
            "useless": useless(d),
            "panel_bytes": 4.0 * d["panel"] * d["tile_p"] * cpu.lanes * depth,
        }

    def turns(d: Decisions) -> int:
        panels = -(-pixels // (d["tile_p"] * cpu.lanes * d["panel"]))
        return images * panels * -(-channels // d["tile_c"])

    return Space(knobs, is_valid, is_worthwhile, cost, features, turns, cpu.threads)


def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    number_pixels(sch, lambda n, c, y, x, ow: (n, c, y * ow + x))
    conv, out = sch.get_sblock("conv"), sch.get_sblock("out")

    # Cut the output into register tiles; a panel of them meets all channels.
    n, c, p, k = sch.get_loops(conv)
    co, ci = sch.split(c, [None, d["tile_c"]])
    panel, po, pv, lane = sch.split(p, [None, d["panel"], d["tile_p"], cpu.lanes])
    ko, ki = sch.split(k, [None, d["unroll"]])
    tile = tile_order(d["tile_c"], d["tile_p"], [ci], [pv])
    no, ni = sch.split(n, [None, d["images"]])
    sch.reorder(no, panel, co, ni, po, ko, ki, *tile, lane)
    readings = int(sch.get(co).extent)
    sch.parallel(sch.fuse(no, panel, co, ni))
    # A ragged last tile gets its own copy of the loop nest, so that full tiles test nothing.
    sch.annotate(po, "pragma_loop_partition_hint", 1)
    sch.vectorize(lane)
    for loop in (ki, *tile):
        sch.unroll(loop)
    if d["prefetch"]:
        planes = int(sch.get(ko).extent) * d["unroll"]
        run = d["panel"] * d["tile_p"] * cpu.lanes
        pixels = extents(sch, "out")[-1]
        sch.annotate(po, PREFETCH_DATA, [planes, pixels, run, d["panel"], readings])
    sch.reverse_compute_at(out, po, preserve_unit_loops=True)
    vectorize_innermost(sch, sch.decompose_reduction(conv, ko), unroll=2)

    # The tile goes out by whole vectors.
    c, p = sch.get_loops(out)[-2:]
    if layout(sch) == "NHWC":
        c, p = p, c
        sch.reorder(c, p)
    pv, lane = sch.split(p, [None, cpu.lanes])
    sch.vectorize(lane)
    sch.unroll(c)
    sch.unroll(pv)

    copy = find_block(sch, "data_pack")
    if copy is not None:
        n, q, _, lane = sch.get_loops(copy)
        _, lane = sch.split(lane, [None, cpu.lanes])
        sch.vectorize(lane)
        sch.annotate(q, "pragma_loop_partition_hint", 1)
        sch.parallel(n if extents(sch, "data_pack")[1] == 1 else q)


def _pixels(sch: Schedule) -> int:
    """Pixels of an output image."""
    loops = extents(sch, "out")
    high, wide = loops[1:3] if layout(sch) == "NHWC" else loops[2:4]
    return high * wide
