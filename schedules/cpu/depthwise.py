"""CPU template of depthwise convolution: a few rows of a few vectors in registers, all taps in
turn.

There is little arithmetic for each byte, so what counts is that every input row is read once: the
padded copy is made for a few channels (NCHW) or one image (NHWC) at a time, and stays in cache. In
place, NCHW copies as much of a channel as the stack holds, and NHWC nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from schedules.cpu import depthwise_blocks
from schedules.cpu.registers import (
    BORDERS,
    CpuModel,
    extents,
    find_block,
    is_inplace,
    layout,
    vectorize_innermost,
    waste,
)
from schedules.knobs import Decisions, Rules, Space

VERSION = 3
COMPUTE_KNOBS: tuple[str, ...] = ()

STACK_BYTES = 8192  # of a copy in place
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
            # 1: row by row of the kernel, all rows of a tile for each tap; 2 (NCHW): column by
            # column, all taps of a column for each row, so that few rows of the data are needed at
            # a time
            "unroll_taps": self._unrolled_taps(),
        }

    def _unrolled_taps(self) -> tuple[int, ...]:
        if self.kh * self.kw > 25:
            return (0,)
        return (0, 1, 2) if self.by_channel and self.kh > 1 else (0, 1)

    def _copied_together(self, count: int) -> bool:
        whole = self.multiplier % count == 0 or count % self.multiplier == 0
        return self.channels % count == 0 and whole

    def live_registers(self, d: Decisions) -> int:
        """Vector registers that a tile needs: its sums, and for unrolled taps the data that LLVM
        loads once and keeps for the next tap, or the weights of a column and the rows they meet."""
        sums = d["tile_h"] * d["tile_w"]
        if d["unroll_taps"] == 2:
            return sums + 2 * self.kh
        if not d["unroll_taps"]:
            return sums + 2
        # Neighbouring vectors of pixels have none in common, neighbouring pixels most of them.
        of_row = d["tile_w"] * self.kw if self.by_channel else d["tile_w"] + self.kw - 1
        return sums + 2 + of_row * (d["tile_h"] - 1 if self.kh > 1 else 0)

    def is_valid(self, d: Decisions) -> bool:
        return d["tile_h"] * d["tile_w"] + 2 <= self.cpu.registers

    def is_worthwhile(self, d: Decisions) -> bool:
        even = waste(self.high, d["tile_h"]) <= 0.34 and waste(self.wide, d["tile_w"]) <= 0.34
        # The taps of a single row are what they are.
        return even and (d["unroll_taps"] < 2 or d["tile_h"] > 1)

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
        unrolled = 0.1 * (d["unroll_taps"] > 0)
        spilled = 0.005 * max(0, self.live_registers(d) - self.cpu.registers)
        return work - unrolled + spilled + too_soon + outgrown

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


@dataclass(frozen=True)
class _PartRules(_Rules):
    """Of NCHW in place: a copy holds part_h x part_w tiles of a few channels and stays on the
    stack. Rows of outputs take `row_step` rows each of the `rows` of the padded image, and its
    columns have `phases`, each of them `columns`."""

    row_step: int
    rows: int
    phases: int
    columns: int

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        def counts(tiles: int) -> tuple[int, ...]:
            return (*(c for c in (1, 2, 4, 8, 16) if c < tiles), tiles)

        return {**super().knobs, "part_h": counts(self.high), "part_w": counts(self.wide)}

    def is_valid(self, d: Decisions) -> bool:
        rows, wide = -(-self.high // d["tile_h"]), -(-self.wide // d["tile_w"])
        return (
            super().is_valid(d)
            and d["part_h"] <= rows
            and d["part_w"] <= wide
            and self.copied_bytes(d) <= STACK_BYTES
        )

    def is_worthwhile(self, d: Decisions) -> bool:
        """Neighbouring parts overlap: rows are only cut where a whole one is too long."""
        whole_row = {**d, "part_h": 1, "part_w": -(-self.wide // d["tile_w"])}
        cut = d["part_w"] < whole_row["part_w"]
        return super().is_worthwhile(d) and not (cut and self.is_valid(whole_row))

    def _part(self, d: Decisions) -> tuple[int, int]:
        """Rows of outputs and columns of a phase that a part has, without what is beside them."""
        wide = d["part_w"] * d["tile_w"]
        return min(self.high, d["part_h"] * d["tile_h"]), min(self.wide, wide) * self.row_block

    def copied_bytes(self, d: Decisions) -> float:
        high, wide = self._part(d)
        rows = self.rows - (self.high - high) * self.row_step
        columns = self.columns - self.wide * self.row_block + wide
        copied = max(1, d["channels"] // self.multiplier)
        return 4.0 * copied * rows * self.phases * columns

    def cost(self, d: Decisions) -> float:
        high, wide = self._part(d)
        used = 4.0 * high * self.row_step * wide * self.phases
        again = self.copied_bytes(d) / (max(1, d["channels"] // self.multiplier) * used) - 1
        return super().cost(d) + 0.3 * again


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`; tile_w counts vectors along the row (NCHW) or pixels (NHWC)."""
    if layout(sch) == "NCHW":
        images, channels, high, wide, kh, kw = extents(sch, "conv")
        multiplier, block = channels // int(sch.mod["main"].params[0].shape[1]), _block(sch)
        sizes = (images, channels, multiplier, high, wide // block, block, kh, kw)
        if is_inplace(sch):
            step = int(sch.mod["main"].attrs["row_step"])
            part = (step, *extents(sch, "data_pad")[-3:])
            return Space(_PartRules(cpu, True, *sizes, *part), cpu.threads)
        return Space(_Rules(cpu, True, *sizes), cpu.threads)
    if layout(sch) == depthwise_blocks.LAYOUT:
        return depthwise_blocks.space(sch, cpu)
    images, high, wide, channels, kh, kw = extents(sch, "conv")
    return Space(_Rules(cpu, False, images, channels, 1, high, wide, 1, kh, kw), cpu.threads)


def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    if layout(sch) == depthwise_blocks.LAYOUT:
        depthwise_blocks.schedule(sch, cpu, d)
        return
    if layout(sch) == "NCHW":
        tiles = stored_at = _cut_rows(sch, d)
    else:
        tiles, stored_at = _cut_channels(sch, d)
    conv, out = sch.get_sblock("conv"), sch.get_sblock("out")
    ky, kx, yi, xi, lane = sch.get_loops(conv)[-5:]
    first_tap = ky
    if d["unroll_taps"] == 2:
        sch.reorder(kx, xi, yi, ky, lane)
        first_tap = kx
    sch.annotate(tiles, "pragma_loop_partition_hint", 1)
    sch.vectorize(lane)
    taps = (ky, kx) if d["unroll_taps"] else ()
    for loop in (*taps, yi, xi):
        sch.unroll(loop)
    sch.reverse_compute_at(out, stored_at, preserve_unit_loops=True)
    loops = sch.get_loops(out)[-4:]
    _, lane = sch.split(loops[-1], [None, _block(sch)])
    sch.vectorize(lane)
    for loop in loops[1:3]:
        sch.unroll(loop)
    vectorize_innermost(sch, sch.decompose_reduction(conv, first_tap), unroll=2)


def _cut_rows(sch: Schedule, d: Decisions) -> LoopRV:
    """NCHW: threads share channels, which are copied a few at a time, whole or a part after the
    other. Returns the loop over the tiles of a row."""
    n, c, y, x, ky, kx = sch.get_loops(sch.get_sblock("conv"))
    block = _block(sch)
    high, wide = int(sch.get(y).extent), int(sch.get(x).extent) // block
    rows, tiles = (-(-extent // d[tile]) for extent, tile in ((high, "tile_h"), (wide, "tile_w")))
    c, ci = sch.split(c, [None, d["channels"]])
    y_part, yo, yi = sch.split(y, [None, d.get("part_h", rows), d["tile_h"]])
    x_part, xo, xi, lane = sch.split(x, [None, d.get("part_w", tiles), d["tile_w"], block])
    sch.reorder(n, c, y_part, x_part, ci, yo, xo, ky, kx, yi, xi, lane)
    sch.parallel(sch.fuse(n, c))
    pad = sch.get_sblock("data_pad")
    sch.compute_at(pad, x_part, preserve_unit_loops=True)
    _copy_phases(sch, pad)
    return xo


def _cut_channels(sch: Schedule, d: Decisions) -> tuple[LoopRV, LoopRV]:
    """NHWC: threads share rows. Returns the loops over the tiles of a row and over the vectors of
    channels inside."""
    n, y, x, c, ky, kx = sch.get_loops(sch.get_sblock("conv"))
    c, lane = sch.split(c, [None, _block(sch)])
    yo, yi = sch.split(y, [None, d["tile_h"]])
    xo, xi = sch.split(x, [None, d["tile_w"]])
    sch.reorder(n, yo, xo, c, ky, kx, yi, xi, lane)
    sch.parallel(sch.fuse(n, yo))
    if is_inplace(sch):
        sch.annotate(xo, BORDERS, 1)
    pad = find_block(sch, "data_pad")
    if pad is not None:
        loops = sch.get_loops(pad)
        sch.parallel(sch.fuse(*loops[:2]))
        sch.vectorize(loops[-1])
    return xo, c


def _block(sch: Schedule) -> int:
    """Pixels of a row (NCHW) or channels of a vector, which the compute states as an attribute."""
    return int(sch.mod["main"].attrs["block"])


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
