"""CPU template of depthwise convolution: a few rows of a few vectors in registers, all taps in
turn.

There is little arithmetic for each byte, so what counts is that every input row is read once: the
padded copy is made for a few channels (NCHW) or one image (NHWC) at a time, and stays in cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from schedules.cpu.registers import (
    CpuModel,
    extents,
    find_block,
    layout,
    vectorize_innermost,
    waste,
)
from schedules.knobs import Decisions, Rules, Space

VERSION = 3
COMPUTE_KNOBS: tuple[str, ...] = ()

_TILE_W = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)


@dataclass(frozen=True)
class _Rules(Rules):
    """Sizes of the convolution: `wide` counts vectors of `row_block` pixels along the row (NCHW) or
    pixels (NHWC), `multiplier` output channels for each input channel."""

    cpu: CpuModel
    by_channel: bool
    images: int
    channels: int
    multiplier: int
    high: int
    wide: int
    row_block: int
    kh: int
    kw: int

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        return {
            # channels that are copied before the first is computed: what was just stored in pieces
            # cannot be read as a vector at once
            "channels": tuple(filter(self._copied_together, (1, 2, 4, 8, 16)))
            if self.by_channel
            else (1,),
            "tile_h": tuple(t for t in (1, 2, 3, 4, 7) if t <= self.high),
            "tile_w": tuple(t for t in _TILE_W if t <= self.wide),
            # Unrolled taps share loads between rows, but large kernels become very long code.
            "unroll_taps": (0, 1) if self.kh * self.kw <= 25 else (0,),
        }

    def _copied_together(self, count: int) -> bool:
        whole = self.multiplier % count == 0 or count % self.multiplier == 0
        return self.channels % count == 0 and whole

    def is_valid(self, d: Decisions) -> bool:
        return d["tile_h"] * d["tile_w"] + 2 <= self.cpu.registers

    def is_worthwhile(self, d: Decisions) -> bool:
        return waste(self.high, d["tile_h"]) <= 0.34 and waste(self.wide, d["tile_w"]) <= 0.34

    def useless(self, d: Decisions) -> float:
        return (1 + waste(self.high, d["tile_h"])) * (1 + waste(self.wide, d["tile_w"]))

    def copied_bytes(self, d: Decisions) -> float:
        """Of the padded copy that the kernel keeps at a time, roughly."""
        pixels = self.high * self.wide * self.row_block
        return 4.0 * d["channels"] * pixels if self.by_channel else 0.0

    def cost(self, d: Decisions) -> float:
        # Rows of a tile share input rows; a tap needs a load for each vector and a broadcast.
        reads = (d["tile_h"] + self.kh - 1) / d["tile_h"]
        latency = max(1.0, 6 / (d["tile_h"] * d["tile_w"]))
        too_soon = 0.3 / d["channels"] if self.by_channel else 0.0
        outgrown = 0.3 if self.copied_bytes(d) > self.cpu.l1_bytes / 2 else 0.0
        work = self.useless(d) * (0.3 * reads + latency)
        return work - 0.1 * d["unroll_taps"] + too_soon + outgrown

    def features(self, d: Decisions) -> dict[str, float]:
        return {
            "accumulators": d["tile_h"] * d["tile_w"],
            "useless": self.useless(d),
            "copied_bytes": self.copied_bytes(d),
        }

    def turns(self, d: Decisions) -> int:
        if self.by_channel:
            return self.images * (self.channels // d["channels"])
        return self.images * -(-self.high // d["tile_h"])


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`; tile_w counts vectors along the row (NCHW) or pixels (NHWC)."""
    if layout(sch) == "NCHW":
        images, channels, high, wide, kh, kw = extents(sch, "conv")
        multiplier, block = channels // int(sch.mod["main"].params[0].shape[1]), _row_block(sch)
        sizes = (images, channels, multiplier, high, wide // block, block, kh, kw)
        return Space(_Rules(cpu, True, *sizes), cpu.threads)
    images, high, wide, channels, kh, kw = extents(sch, "conv")
    return Space(_Rules(cpu, False, images, channels, 1, high, wide, 1, kh, kw), cpu.threads)


def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    conv, out = sch.get_sblock("conv"), sch.get_sblock("out")
    rows_of_pixels = layout(sch) == "NCHW"
    if rows_of_pixels:
        n, c, y, x, ky, kx = sch.get_loops(conv)
        block = _row_block(sch)
        x, lane = sch.split(x, [None, block])
        c, ci = sch.split(c, [None, d["channels"]])
        outer, inner = [n, c], [ci]
    else:
        n, y, x, c, ky, kx = sch.get_loops(conv)
        block = cpu.lanes
        c, lane = sch.split(c, [None, block])
        outer, inner = [n], []
    yo, yi = sch.split(y, [None, d["tile_h"]])
    xo, xi = sch.split(x, [None, d["tile_w"]])
    tail = [] if rows_of_pixels else [c]
    sch.reorder(*outer, *inner, yo, xo, *tail, ky, kx, yi, xi, lane)
    whole = sch.fuse(*outer) if rows_of_pixels else sch.fuse(*outer, yo)
    sch.parallel(whole)
    sch.annotate(xo, "pragma_loop_partition_hint", 1)
    sch.vectorize(lane)
    taps = (ky, kx) if d["unroll_taps"] else ()
    for loop in (*taps, yi, xi):
        sch.unroll(loop)

    pad = find_block(sch, "data_pad")
    if pad is not None and rows_of_pixels:
        sch.compute_at(pad, whole, preserve_unit_loops=True)
        _copy_phases(sch, pad)
    elif pad is not None:
        loops = sch.get_loops(pad)
        sch.parallel(sch.fuse(*loops[:2]))
        sch.vectorize(loops[-1])
    sch.reverse_compute_at(out, xo if rows_of_pixels else c, preserve_unit_loops=True)
    loops = sch.get_loops(out)[-4:]
    _, lane = sch.split(loops[-1], [None, block])
    sch.vectorize(lane)
    for loop in loops[1:3]:
        sch.unroll(loop)
    vectorize_innermost(sch, sch.decompose_reduction(conv, ky), unroll=2)


def _row_block(sch: Schedule) -> int:
    """Pixels of a vector of a row, which the compute states as an attribute."""
    return int(sch.mod["main"].attrs["row_block"])


def _copy_phases(sch: Schedule, pad: SBlockRV) -> None:
    """Copy the rows of one channel, all phases of a column together.

    Columns in the middle have a copy of the loop without tests, which LLVM vectorises: it reads
    whole vectors and deals them out to the phases.
    """
    y, phase, x = sch.get_loops(pad)[-3:]
    if int(sch.get(phase).extent) == 1:
        return
    sch.reorder(y, x, phase)
    sch.unroll(phase)
    for loop in (y, x):
        sch.annotate(loop, "pragma_loop_partition_hint", 1)
