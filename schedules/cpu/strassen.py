"""CPU template of Strassen's product: a panel of pixel pairs goes through sums, products and sums
in cache.

For a panel, the sums V of quarters of the columns fit the L2 cache, and the products M of a channel
tile the L1 cache, so that only the packed weight streams from further away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from schedules.cpu import epilogue
from schedules.cpu.products import multiply
from schedules.cpu.registers import (
    CpuModel,
    extents,
    fits,
    ic_block,
    layout,
    tile_cost,
    vectorize_innermost,
    waste,
)
from schedules.knobs import Decisions, Rules, Space

VERSION = 1
COMPUTE_KNOBS = ("panel",)

_MAX_PANEL = 128  # pairs of pixels
_MAX_ROUNDING = 0.15  # share of pairs computed only to fill the last panel


@dataclass(frozen=True)
class _Rules(Rules):
    """Sizes of the 7**levels products: pixels of a part of an image, vectors of a part of the
    output's channels, and `terms` to sum."""

    cpu: CpuModel
    levels: int
    images: int
    pixels: int
    chunks_out: int
    terms: int

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        panels = range(1, min(self.pixels, _MAX_PANEL) + 1)
        return {
            "panel": tuple(p for p in panels if waste(self.pixels, p) <= _MAX_ROUNDING),
            "tile_p": tuple(range(1, self.cpu.registers)),
            "tile_oc": tuple(t for t in (1, 2, 3, 4, 6) if self.chunks_out % t == 0),
            # 0: sums of one panel at a time; 1: of all images first, then panels x channels
            "input_first": (0, 1),
            # 1: the next block of the weight comes from memory while the tiles of a panel use this
            # one
            "prefetch": (0, 1),
        }

    def is_valid(self, d: Decisions) -> bool:
        return (
            # TVM cannot bound a ragged tile: it would live in memory instead of registers.
            d["panel"] % d["tile_p"] == 0
            and fits(d["tile_p"], d["tile_oc"], self.cpu)
            and (d["prefetch"] == 0 or d["panel"] > d["tile_p"])
        )

    def is_worthwhile(self, d: Decisions) -> bool:
        return d["tile_p"] * d["tile_oc"] >= 4 and d["panel"] >= min(8, self.pixels)

    def footprint(self, d: Decisions) -> float:
        """Bytes of V and M that one panel keeps."""
        return 4.0 * 7**self.levels * d["panel"] * (self.terms + d["tile_oc"] * self.cpu.lanes)

    def cost(self, d: Decisions) -> float:
        anew = self.cpu.lanes / 16 * max(0.0, 1 / d["tile_p"] - 0.2)
        tile = tile_cost(d["tile_p"], d["tile_oc"], self.cpu) + anew
        weight = 4 / d["panel"]
        outgrown = 0.5 / (d["tile_oc"] * self.cpu.lanes)
        cache = min(max(0.0, self.footprint(d) / self.cpu.l2_bytes - 0.6), outgrown)
        work = (1 + waste(self.pixels, d["panel"])) * (tile + weight + cache)
        return work + 0.01 * d["input_first"] - 0.05 * d["prefetch"]

    def features(self, d: Decisions) -> dict[str, float]:
        return {
            "accumulators": d["tile_p"] * d["tile_oc"],
            "tile": tile_cost(d["tile_p"], d["tile_oc"], self.cpu),
            "useless": 1 + waste(self.pixels, d["panel"]),
            "footprint": self.footprint(d),
        }

    def turns(self, d: Decisions) -> int:
        panels = self.images * -(-self.pixels // d["panel"])
        return panels * (self.chunks_out // d["tile_oc"] if d["input_first"] else 1)


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`, for the function whose panel is a single pair of pixels."""
    *products, images, chunks_out, pixels, _, io, ky, kx, ii = extents(sch, "products")
    sizes = (len(products), images, pixels, chunks_out, io * ky * kx * ii)
    return Space(_Rules(cpu, *sizes), cpu.threads)


def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    sums, out, gemm = (sch.get_sblock(b) for b in ("sums", "out", "products"))
    levels, lanes = len(extents(sch, "products")) - 8, cpu.lanes
    _pack_data_sums(sch, levels, d["tile_p"])

    # Panels outside, channel tiles inside them, the parts of an output tile innermost.
    n, *halves, c, p, cb = sch.get_loops(out)
    co, ci = sch.split(c, [None, d["tile_oc"]])
    panel, po, pi = sch.split(p, [None, d["panel"] // d["tile_p"], d["tile_p"]])
    sch.reorder(n, panel, co, po, ci, *halves, pi, cb)
    panel = sch.fuse(n, panel)
    if d["input_first"]:
        panel = co = sch.fuse(panel, co)
    sch.parallel(panel)
    for loop in halves:
        sch.unroll(loop)

    # The stages before join its loops.
    sch.compute_at(sums, ci, preserve_unit_loops=True)
    _sum_products(sch, sums, 2 * levels)
    if levels > 1:
        sch.compute_at(sch.get_sblock("inner_sums"), ci, preserve_unit_loops=True)
        _sum_products(sch, sch.get_sblock("inner_sums"), 3)
    sch.compute_at(gemm, co, preserve_unit_loops=True)
    if not d["input_first"]:
        sch.compute_at(sch.get_sblock("data_sums"), panel, preserve_unit_loops=True)
    multiply(sch, gemm, d, at_channels=True)
    _sum_quarters(sch, levels, d["tile_p"], bool(d["input_first"]))
    if layout(sch) == "NHWC":
        vectorize_innermost(sch, out, unroll=1)
    else:
        sch.reorder(cb, pi)
        sch.add_unit_loop(cb)
        partial = int(sch.mod["main"].attrs["pixels"]) % d["tile_p"]
        epilogue.transpose_tile(sch, out, lanes, partial)


def schedule_pack(sch: Schedule) -> None:
    """Unroll the products of the packing function, so that the matrix folds away."""
    *products, co, io, ky, kx, ii, cb = sch.get_loops(sch.get_sblock("pack"))
    sch.reorder(co, io, ky, kx, ii, cb, *products)
    sch.parallel(co)
    for loop in products:
        sch.unroll(loop)


def _pack_data_sums(sch: Schedule, levels: int, tile: int) -> None:
    """Lay V out as register tiles read it: pixels innermost (NCHW) or blocks of channels (NHWC)."""
    b, by_channel = ic_block(sch), layout(sch) == "NCHW"

    def packed(*indices: Any) -> list[Any]:
        n, c, ky, kx, p = indices[levels:]
        within = (c % b, p % tile) if by_channel else (p % tile, c % b)
        return [*indices[:levels], n, p // tile, c // b, ky, kx, *within]

    sch.transform_layout(sch.get_sblock("data_sums"), ("write", 0), packed)


def _sum_quarters(sch: Schedule, levels: int, tile: int, at_root: bool) -> None:
    """All sums of a run of pixels or channels, unrolled so that the matrix folds away."""
    v, by_channel = sch.get_sblock("data_sums"), layout(sch) == "NCHW"
    *products, n, c, ky, kx, p = sch.get_loops(v)[-5 - levels :]
    po, pi = sch.split(p, [None, tile])
    co, ci = sch.split(c, [None, ic_block(sch)])
    around, run = ([ci, ky, kx], pi) if by_channel else ([ky, kx, pi], ci)
    sch.reorder(*((n, po, co) if at_root else (n, co, po)), *around, *products, run)
    if levels > 1:
        sch.compute_at(sch.get_sblock("outer_data"), around[-1], preserve_unit_loops=True)
    _run(sch, v, run, products)
    if levels > 1:
        outer = sch.get_sblock("outer_data")
        *products, n, c, ky, kx, p = sch.get_loops(outer)[-8:]
        sch.reorder(n, ky, kx, *((c,) if by_channel else (p,)), *products, p if by_channel else c)
        _run(sch, outer, p if by_channel else c, products)
    if at_root:
        sch.parallel(sch.fuse(*sch.get_loops(v)[:2]))


def _sum_products(sch: Schedule, sums: SBlockRV, count: int) -> None:
    """All sums of the products of a pixel, the loops over which are `count`, unrolled so that the
    matrix folds away."""
    loops = sch.get_loops(sums)
    p, lane = loops[-2:]
    inner = loops[-4 - count : -4] if count == 3 else loops[-3 - count : -3]
    sch.reorder(p, *inner, lane)
    sch.vectorize(lane)
    for loop in inner:
        sch.unroll(loop)


def _run(sch: Schedule, block: SBlockRV, run: LoopRV, products: list[LoopRV]) -> None:
    if layout(sch) == "NCHW" and not int(sch.mod["main"].attrs["runs"]):
        sch.unroll(run)
    else:
        sch.vectorize(run)
    for loop in products:
        sch.unroll(loop)
