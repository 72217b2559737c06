"""CPU template of im2col and GEMM: columns packed for register tiles, panels that stay in cache.

A tile covers tile_ow pixels, numbered through the image, by tile_oc channel vectors. Packed, the
columns of a tile are neighbours in memory and a window element of all its pixels is one short run;
unpacked, which only a 1x1 kernel offers, they are the data as it is. A panel of `panel` tiles
meets all channel tiles before the next panel begins, so that it stays in cache while the weight
streams past.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from schedules.cpu import epilogue
from schedules.cpu.registers import (
    CpuModel,
    accumulate_in_tile,
    find_block,
    ic_block,
    image_counts,
    layout,
    number_pixels,
    oc_block,
    unroll_values,
    waste,
)
from schedules.cpu.tiles import TileRules
from schedules.knobs import Decisions, Space

VERSION = 4
COMPUTE_KNOBS = ("tile_ic", "tile_ow", "panel", "pack")

_FEW_TILES = 16
_MAX_ROUNDING = 0.2  # share of pixels computed only to fill the last tile or panel


@dataclass(frozen=True)
class _Rules(TileRules):
    """`copies` says whether the compute has columns; without, they are the data as it is."""

    image_counts: tuple[int, ...]
    unrolled: tuple[int, ...]  # values of unroll_ic
    copies: bool

    @property
    def streams(self) -> bool:
        """Whether the weight is too large to stay in the L2 cache beside the data."""
        weight_bytes = 4.0 * self.channels * self.chunks_in * self.terms
        return weight_bytes > self.cpu.l2_bytes / 2

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        tile = self.tile_knobs
        return {
            "tile_ow": tile["tile_ow"],
            "tile_oc": tile["tile_oc"],
            "tile_ic": tile["tile_ic"],
            "unroll_ic": self.unrolled,
            "panel": (1, 2, 4, 8, 16, 32),
            # images that meet a block of the weight in turn
            "images": self.image_counts,
            "pack": (1,) if self.copies else (0, 1),
            "prefetch": (0, 1) if self.streams else (0,),
        }

    def tiles(self, d: Decisions) -> int:
        """Register tiles that meet a block of the weight in turn."""
        return d["images"] * (d["panel"] if d["panel"] > 1 else -(-self.ow // d["tile_ow"]))

    def pixels(self, d: Decisions) -> int:
        return d["tile_ow"]

    def rounding(self, d: Decisions) -> float:
        return waste(self.ow, d["tile_ow"] * d["panel"])

    def useless(self, d: Decisions) -> float:
        return 1 + self.rounding(d)

    def is_valid(self, d: Decisions) -> bool:
        return (
            super().is_valid(d)
            # Without a copy nothing can fill the last panel.
            and (d["pack"] == 1 or d["panel"] == 1 or self.rounding(d) == 0)
            # Shared by several images, the weight is waited for too seldom to prefetch it.
            and (d["prefetch"] == 0 or (self.tiles(d) > 1 and d["images"] == 1))
        )

    def is_worthwhile(self, d: Decisions) -> bool:
        return d["tile_ow"] * d["tile_oc"] >= 4 and self.rounding(d) <= _MAX_ROUNDING

    def panel_bytes(self, d: Decisions) -> float:
        return 4.0 * self.chunks_in * self.terms * d["tile_ow"] * self.tiles(d)

    def cost(self, d: Decisions) -> float:
        streamed = 0.2 if d["panel"] > 1 and self.streams else 0.0
        outgrown = 0.1 if self.panel_bytes(d) > 0.75 * self.cpu.l2_bytes else 0.0
        copied = d["pack"] * 8 / self.channels
        # A window of the data in NCHW takes one cache line for every channel.
        lines = self.chunks_in * self.terms * 64
        far_apart = self.layout == "NCHW" and not d["pack"] and lines >= self.cpu.l1_bytes
        scattered = 0.5 if far_apart else 0.0
        again = streamed * 32 / (d["tile_ow"] * self.tiles(d))
        # Where few tiles share a block of the weight, waiting for it counts.
        fetched = 0.05 * d["prefetch"] * (-1 if self.tiles(d) <= _FEW_TILES else 1)
        unrolled = 0.01 * (d["unroll_ic"] - 1)
        return self.sums(d) + again + fetched + outgrown + copied + scattered + unrolled

    def features(self, d: Decisions) -> dict[str, float]:
        return {**super().features(d), "panel_bytes": self.panel_bytes(d)}

    def turns(self, d: Decisions) -> int:
        panels = -(-self.ow // (d["tile_ow"] * d["panel"])) if d["panel"] > 1 else 1
        return self.images * panels * (self.chunks_out // d["tile_oc"])


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`, for the function of whole columns (all compute knobs at their least)."""
    copies = find_block(sch, "columns") is not None
    rules = _Rules.of(sch, cpu, image_counts(sch), unroll_values(ic_block(sch)), copies)
    return Space(rules, cpu.threads)


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
