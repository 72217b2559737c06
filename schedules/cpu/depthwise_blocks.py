"""CPU template of depthwise convolution in blocks of channels: a vector is a block, and a block's
image is computed by itself, a few rows at a time.

The padded copy holds the rows that these need and stays in the L1 cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule

from schedules.cpu.registers import CpuModel, extents, find_block, vectorize_innermost, waste
from schedules.knobs import Decisions, Rules, Space

LAYOUT = "blocks"  # what a compute of this form states as its layout
_TILE_W = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)


@dataclass(frozen=True)
class _Rules(Rules):
    """Sizes of the convolution and of a row of the padded image."""

    cpu: CpuModel
    images: int
    chunks: int
    high: int
    wide: int
    kh: int
    kw: int
    columns: int
    is_copied: bool

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        return {
            "tile_h": tuple(t for t in (1, 2, 3, 4, 7) if t <= self.high),
            "tile_w": tuple(t for t in _TILE_W if t <= self.wide),
            # tiles of a column whose rows are copied together
            "rows": tuple(t for t in (1, 2, 4, 8, 16, 32) if self.is_copied and t <= self.high)
            or (1,),
            "unroll_taps": (0, 1) if self.kh * self.kw <= 25 else (0,),
        }

    def is_valid(self, d: Decisions) -> bool:
        return d["tile_h"] * d["tile_w"] + 2 <= self.cpu.registers

    def is_worthwhile(self, d: Decisions) -> bool:
        fits = d["tile_h"] * d["rows"] <= self.high or d["rows"] == 1
        even = waste(self.high, d["tile_h"]) <= 0.34 and waste(self.wide, d["tile_w"]) <= 0.34
        return even and fits

    def copied_bytes(self, d: Decisions) -> float:
        rows = min(self.high, d["tile_h"] * d["rows"]) + self.kh - 1
        return 4.0 * rows * self.columns * self.cpu.lanes if self.is_copied else 0.0

    def useless(self, d: Decisions) -> float:
        return (1 + waste(self.high, d["tile_h"])) * (1 + waste(self.wide, d["tile_w"]))

    def cost(self, d: Decisions) -> float:
        reads = (d["tile_h"] + self.kh - 1) / d["tile_h"] * (d["tile_w"] + self.kw - 1)
        reads /= d["tile_w"]
        latency = max(1.0, 6 / (d["tile_h"] * d["tile_w"]))
        rows = min(self.high, d["tile_h"] * d["rows"])
        copied = 0.3 * (rows + self.kh - 1) / rows if self.is_copied else 0.0
        outgrown = 0.3 if self.copied_bytes(d) > self.cpu.l1_bytes * 0.75 else 0.0
        crowded = 0.2 if d["tile_h"] * d["tile_w"] > self.cpu.registers // 2 else 0.0
        work = self.useless(d) * (0.3 * reads + latency) + copied + outgrown + crowded
        return work - 0.1 * d["unroll_taps"]

    def features(self, d: Decisions) -> dict[str, float]:
        return {
            "accumulators": d["tile_h"] * d["tile_w"],
            "useless": self.useless(d),
            "copied_bytes": self.copied_bytes(d),
        }

    def turns(self, d: Decisions) -> int:
        return self.images * self.chunks


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`; tile_w counts pixels."""
    images, chunks, high, wide, _, kh, kw = extents(sch, "conv")
    is_copied = find_block(sch, "data_pad") is not None
    columns = extents(sch, "data_pad")[3] if is_copied else 0
    sizes = (images, chunks, high, wide, kh, kw, columns, is_copied)
    return Space(_Rules(cpu, *sizes), cpu.threads)


def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    conv, out = sch.get_sblock("conv"), sch.get_sblock("out")
    n, c, y, x, lane, ky, kx = sch.get_loops(conv)
    yp, yo, yi = sch.split(y, [None, d["rows"], d["tile_h"]])
    xo, xi = sch.split(x, [None, d["tile_w"]])
    sch.reorder(n, c, yp, yo, xo, ky, kx, yi, xi, lane)
    sch.parallel(sch.fuse(n, c))
    sch.annotate(xo, "pragma_loop_partition_hint", 1)
    sch.vectorize(lane)
    taps = (ky, kx) if d["unroll_taps"] else ()
    for loop in (*taps, yi, xi):
        sch.unroll(loop)

    pad = find_block(sch, "data_pad")
    if pad is not None:
        sch.compute_at(pad, yp, preserve_unit_loops=True)
        column, pad_lane = sch.get_loops(pad)[-2:]
        sch.annotate(column, "pragma_loop_partition_hint", 1)
        sch.vectorize(pad_lane)
    sch.reverse_compute_at(out, xo, preserve_unit_loops=True)
    vectorize_innermost(sch, out, unroll=2)
    vectorize_innermost(sch, sch.decompose_reduction(conv, ky), unroll=2)
