"""CPU template of Winograd convolution: one panel of tiles goes through all three stages in cache.

For a panel, the transformed input V and the products M fit the L2 cache, so that only the packed
weight streams from further away; workspace does not grow with the image.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule

from schedules.cpu import epilogue
from schedules.cpu.products import multiply
from schedules.cpu.registers import (
    TRANSPOSE_IN,
    CpuModel,
    extents,
    fits,
    image_counts,
    layout,
    tile_cost,
    vectorize_innermost,
    waste,
)
from schedules.knobs import Decisions, Rules, Space

VERSION = 4
COMPUTE_KNOBS = ("panel_h", "panel_w")

_MAX_PANEL = 64  # tiles
_MAX_ROUNDING = 0.15  # share of tiles computed only to fill the last panel


@dataclass(frozen=True)
class _Rules(Rules):
    """Sizes of the stages: `grid_h` x `grid_w` tiles of alpha_h x alpha_w elements an image,
    `channels_in` and vectors of output channels."""

    cpu: CpuModel
    images: int
    grid_h: int
    grid_w: int
    alpha_h: int
    alpha_w: int
    channels_in: int
    chunks_out: int
    image_counts: tuple[int, ...]

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        widths = range(1, min(self.grid_w, _MAX_PANEL) + 1)
        return {
            # images whose tiles one panel takes
            "images": self.image_counts,
            "panel_h": tuple(p for p in range(1, 9) if p <= self.grid_h),
            "panel_w": tuple(p for p in widths if waste(self.grid_w, p) <= _MAX_ROUNDING),
            "tile_p": tuple(range(1, self.cpu.registers)),
            "tile_oc": tuple(t for t in (1, 2, 3, 4, 6) if self.chunks_out % t == 0),
            # 0: all products of a panel, then all inverse transforms; 1: both for one channel tile
            # at a time
            "gemm_at_oc": (0, 1),
            # 0: input tiles of one panel at a time; 1: of the whole image first, then panels x
            # channels
            "input_first": (0, 1),
            # 1: the next block of the weight comes from memory while the tiles of a panel use this
            # one
            "prefetch": (0, 1),
        }

    def panel(self, d: Decisions) -> int:
        """Tiles of a panel."""
        return d["images"] * d["panel_h"] * d["panel_w"]

    def rounding(self, d: Decisions) -> float:
        rows, cols = waste(self.grid_h, d["panel_h"]), waste(self.grid_w, d["panel_w"])
        return (1 + rows) * (1 + cols) - 1

    def is_valid(self, d: Decisions) -> bool:
        panel, whole = self.panel(d), (self.grid_h, self.grid_w)
        return (
            panel <= _MAX_PANEL
            # Tiles are numbered row by row, image by image: a panel must be one run of numbers.
            and (d["panel_h"] == 1 or d["panel_w"] == self.grid_w)
            and (d["images"] == 1 or (d["panel_h"], d["panel_w"]) == whole)
            # TVM cannot bound a ragged tile: it would live in memory instead of registers.
            and panel % d["tile_p"] == 0
            and fits(d["tile_p"], d["tile_oc"], self.cpu)
            and (d["gemm_at_oc"] == 1 or d["input_first"] == 0)
            and (d["prefetch"] == 0 or panel > d["tile_p"])
        )

    def is_worthwhile(self, d: Decisions) -> bool:
        return (
            d["tile_p"] * d["tile_oc"] >= 4
            and self.panel(d) >= min(8, self.grid_h * self.grid_w)
            and self.rounding(d) <= _MAX_ROUNDING
        )

    def footprint(self, d: Decisions) -> float:
        """Bytes of V and M that one panel keeps."""
        chunks = d["tile_oc"] if d["gemm_at_oc"] else self.chunks_out
        channels = self.channels_in + chunks * self.cpu.lanes
        return 4.0 * self.alpha_h * self.alpha_w * self.panel(d) * channels

    def cost(self, d: Decisions) -> float:
        # Every register tile reads the weight anew, a vector for tile_p products, from a block
        # that may not fit the L1 cache; the wider the vector, the sooner that takes longer.
        anew = self.cpu.lanes / 16 * max(0.0, 1 / d["tile_p"] - 0.2)
        tile = tile_cost(d["tile_p"], d["tile_oc"], self.cpu) + anew
        # Every panel streams the whole packed weight.
        weight = 4 / self.panel(d)
        # A panel that outgrows the cache: every tile of channels reads V anew, and M, of which an
        # element stands for ic products, goes out and comes back.
        outgrown = 1 / (d["tile_oc"] * self.cpu.lanes) + 8 / self.channels_in
        cache = min(max(0.0, self.footprint(d) / self.cpu.l2_bytes - 0.6), outgrown)
        fetched = 0.05 * d["prefetch"]
        work = (1 + self.rounding(d)) * (tile + weight + cache)
        return work + 0.01 * d["input_first"] - fetched

    def features(self, d: Decisions) -> dict[str, float]:
        return {
            "panel": self.panel(d),
            "accumulators": d["tile_p"] * d["tile_oc"],
            "tile": tile_cost(d["tile_p"], d["tile_oc"], self.cpu),
            "useless": 1 + self.rounding(d),
            "footprint": self.footprint(d),
        }

    def turns(self, d: Decisions) -> int:
        rows, cols = -(-self.grid_h // d["panel_h"]), -(-self.grid_w // d["panel_w"])
        panels = self.images // d["images"] * rows * cols
        return panels * (self.chunks_out // d["tile_oc"] if d["input_first"] else 1)


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`, for the function whose panel is a single tile."""
    tile_h, tile_w = _tile(sch)
    batch, _, height, width = extents(sch, "inverse")
    alpha_h, alpha_w, chunks_out, _, _, ic_chunks, ic = extents(sch, "bgemm")
    grid = (height // tile_h, width // tile_w)
    sizes = (batch, *grid, alpha_h, alpha_w, ic_chunks * ic, chunks_out)
    return Space(_Rules(cpu, *sizes, image_counts(sch)), cpu.threads)


def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    inverse, out, gemm, v = (
        sch.get_sblock(b) for b in ("inverse", "out", "bgemm", "data_transform")
    )
    lanes, (tile_h, tile_w) = cpu.lanes, _tile(sch)
    partial = epilogue.cut_off(sch, tile_h, tile_w)

    # Panels of tiles outside, channel tiles inside them, one output tile innermost.
    n, c, y, x = sch.get_loops(inverse)
    n_panel, n_tile = sch.split(n, [None, d["images"]])
    co, ci, cb = sch.split(c, [None, d["tile_oc"], lanes])
    y_panel, y_tile, yi = sch.split(y, [None, d["panel_h"], tile_h])
    x_panel, x_tile, xi = sch.split(x, [None, d["panel_w"], tile_w])
    sch.reorder(n_panel, y_panel, x_panel, co, n_tile, y_tile, x_tile, ci, yi, xi, cb)
    panel = sch.fuse(n_panel, y_panel, x_panel)
    if d["input_first"]:
        panel = co = sch.fuse(panel, co)
    sch.parallel(panel)
    sch.vectorize(cb)
    sch.unroll(yi)
    sch.unroll(xi)

    # The stages before and after the output transform join its loops.
    sch.compute_at(sch.get_sblock("inverse_rows"), ci, preserve_unit_loops=True)
    sch.compute_at(gemm, co if d["gemm_at_oc"] else panel, preserve_unit_loops=True)
    if not d["input_first"]:
        sch.compute_at(v, panel, preserve_unit_loops=True)
    sch.reverse_compute_at(out, ci, preserve_unit_loops=True)
    sch.transform_layout(inverse, ("write", 0), lambda n, c, y, x: [n, c // lanes, y, x, c % lanes])

    _transform_input(sch, bool(d["input_first"]))
    vectorize_innermost(sch, sch.get_sblock("inverse_rows"), unroll=2)
    multiply(sch, gemm, d, bool(d["gemm_at_oc"]))
    _store(sch, lanes, partial)
    _copy_packed_input(sch)


def schedule_pack(sch: Schedule) -> None:
    """Unroll the transform axes of the packing function, so that the matrices fold away."""
    rows, pack = sch.get_sblock("pack_rows"), sch.get_sblock("pack")
    c, i, e, kx = sch.get_loops(rows)
    sch.reorder(c, i, kx, e)
    sch.parallel(c)
    sch.unroll(e)
    e, f, co, io, ii, cb = sch.get_loops(pack)
    sch.reorder(co, io, ii, cb, e, f)
    sch.parallel(co)
    sch.unroll(e)
    sch.unroll(f)


def _tile(sch: Schedule) -> tuple[int, int]:
    """Rows and columns of an output tile, which the compute states as attributes."""
    attributes = sch.mod["main"].attrs
    return int(attributes["tile_h"]), int(attributes["tile_w"])


def _transform_input(sch: Schedule, at_root: bool) -> None:
    """Both 1-D transforms of one tile and channel vector, unrolled so that the matrices fold
    away."""
    v = sch.get_sblock("data_transform")
    e, f, io, p, ii = sch.get_loops(v)[-5:]
    sch.reorder(io, p, e, f, ii)
    sch.compute_at(sch.get_sblock("input_rows"), p, preserve_unit_loops=True)
    if at_root:
        sch.parallel(sch.fuse(io, p))
    sch.vectorize(ii)
    sch.unroll(e)
    sch.unroll(f)
    vectorize_innermost(sch, sch.get_sblock("input_rows"), unroll=2)


def _store(sch: Schedule, lanes: int, partial: int) -> None:
    """Crop, bias and store of one tile of one channel vector."""
    out = sch.get_sblock("out")
    if layout(sch) == "NHWC":
        vectorize_innermost(sch, out, unroll=2)
    else:
        epilogue.transpose_tile(sch, out, lanes, partial)


def _copy_packed_input(sch: Schedule) -> None:
    """Pad and block the channels: NHWC copies whole vectors, NCHW transposes row by row."""
    n, io, y, x, ii = sch.get_loops(sch.get_sblock("data_pad"))
    sch.parallel(sch.fuse(n, io, y))
    if layout(sch) == "NHWC":
        sch.vectorize(ii)
    elif int(sch.mod["main"].attrs["columns_apart"]) == 1:
        sch.annotate(x, TRANSPOSE_IN, 1)
    else:
        sch.unroll(ii)  # neighbours of a phase are none in memory: an element at a time
