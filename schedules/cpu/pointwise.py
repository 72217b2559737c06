"""CPU template of 1x1 convolution in NCHW: a register tile of tile_c channels by tile_p vectors of
pixels.

Data and output are read and written by whole vectors as they lie; the weight is broadcast. Where
the pixels of an image do not fill tiles, or a deep sum would touch a new cache line with every
channel, the data is first copied tile by tile. Uncopied, the next panel can be fetched while all
channels meet this one.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    unroll_values,
    vectorize_innermost,
    waste,
)
from schedules.knobs import Decisions, Rules, Space

VERSION = 3
COMPUTE_KNOBS = ("tile_c", "tile_p", "pack")


@dataclass(frozen=True)
class _Rules(Rules):
    """Sizes of the product; `padded` pixels fill whole vectors, `block` channels one of the
    weight."""

    cpu: CpuModel
    layout: str
    images: int
    channels: int
    pixels: int
    padded: int
    depth: int
    block: int
    image_counts: tuple[int, ...]

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        streams = 4.0 * self.depth * self.pixels > self.cpu.l2_bytes / 2
        most = min(self.block, self.channels)
        return {
            "tile_c": tuple(t for t in range(1, most + 1) if self.block % t == 0),
            "tile_p": tuple(t for t in (1, 2, 3, 4, 6) if t * self.cpu.lanes <= self.padded),
            # tiles that meet a tile of channels one after another
            "panel": (1, 2, 4, 8, 16),
            # images that meet a tile of channels one after another
            "images": self.image_counts,
            "unroll": unroll_values(self.depth),
            "pack": (0, 1),
            "prefetch": (0, 1) if self.layout == "NCHW" and streams else (0,),
        }

    def is_valid(self, d: Decisions) -> bool:
        tile = d["tile_p"] * self.cpu.lanes
        return (
            fits(d["tile_c"], d["tile_p"], self.cpu)
            and d["panel"] <= -(-self.pixels // tile)
            and (d["pack"] == 1 or self.pixels % tile == 0)
            # The copy reads as the data lies, a single reading leaves no time to fetch, and what
            # follows is fetched within an image.
            and (
                d["prefetch"] == 0
                or (d["pack"] == 0 and d["tile_c"] < self.channels and d["images"] == 1)
            )
        )

    def is_worthwhile(self, d: Decisions) -> bool:
        return (
            d["tile_c"] * d["tile_p"] >= 4
            and waste(self.pixels, d["tile_p"] * self.cpu.lanes) <= 0.34
            and waste(self.channels, d["tile_c"]) <= 0.34
        )

    def useless(self, d: Decisions) -> float:
        pixels = 1 + waste(self.pixels, d["tile_p"] * self.cpu.lanes)
        return pixels * (1 + waste(self.channels, d["tile_c"]))

    def cost(self, d: Decisions) -> float:
        tile = tile_cost(d["tile_c"], d["tile_p"], self.cpu)
        # The copy costs a read and a write for each element, which meets every channel.
        copy = 8 / self.channels if d["pack"] else 0.1 * (self.depth >= 512)
        # A cache line of pixels is what a channel has to give at once.
        lines = 0.02 * abs(d["tile_p"] - 2)
        # Short sums leave little to wait for.
        fetched = 0.03 * d["prefetch"] * (-1 if self.depth >= 128 else 1)
        loops = 0.005 * abs(d["unroll"] - 2) + 0.002 * abs(d["panel"] - 4)
        return tile * self.useless(d) + copy + lines + fetched + loops

    def features(self, d: Decisions) -> dict[str, float]:
        return {
            "accumulators": d["tile_c"] * d["tile_p"],
            "tile": tile_cost(d["tile_c"], d["tile_p"], self.cpu),
            "useless": self.useless(d),
            "panel_bytes": 4.0 * d["panel"] * d["tile_p"] * self.cpu.lanes * self.depth,
        }

    def turns(self, d: Decisions) -> int:
        panels = -(-self.pixels // (d["tile_p"] * self.cpu.lanes * d["panel"]))
        return self.images * panels * -(-self.channels // d["tile_c"])


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`, for the function whose tile is one channel by one vector."""
    images, channels, padded, depth = extents(sch, "conv")
    sizes = (images, channels, _pixels(sch), padded, depth, oc_block(sch))
    return Space(_Rules(cpu, layout(sch), *sizes, image_counts(sch)), cpu.threads)


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
