"""Copied windows of MEC: the orders in which they may lie, the knobs of a tile over them, the
copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from schedules.cpu.registers import (
    CpuModel,
    ic_block,
    layout,
)
from schedules.cpu.tiles import TileRules
from schedules.knobs import Decisions, Space

# Values of the knob `order`, how the copied windows lie in memory. A tile reads the same element of
# neighbouring pixels: whole windows are often a multiple of 4 KB apart and evict each other from
# the L1 cache, blocks of channels are neighbours. Pixels innermost is what NCHW copies fastest.
WINDOWS, BLOCKS, PIXELS = 0, 1, 2


@dataclass(frozen=True)
class _Rules(TileRules):
    orders: tuple[int, ...]

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        return {**self.tile_knobs, "rows_outer": (0, 1), "order": self.orders}

    def is_worthwhile(self, d: Decisions) -> bool:
        transposes = self.layout == "NHWC" and d["order"] == PIXELS
        return super().is_worthwhile(d) and not transposes

    def cost(self, d: Decisions) -> float:
        # The windows are larger than the weight: better read them once than once a channel tile.
        windows_again = 0.02 * (1 - d["rows_outer"])
        return (
            self.sums(d) + 0.02 * (d["tile_oh"] - 1) + windows_again + 0.05 * (d["order"] != BLOCKS)
        )


def window_space(sch: Schedule, cpu: CpuModel, orders: tuple[int, ...]) -> Space:
    """Knobs of a register tile over copied windows, which may lie in any of `orders`."""
    return Space(_Rules.of(sch, cpu, orders), cpu.threads)


def copy_windows(
    sch: Schedule,
    order: int,
    rows: Sequence[LoopRV],
    kernel: Sequence[LoopRV],
    x: LoopRV,
    c: LoopRV,
) -> None:
    """Copy windows in the order in which they are stored, rows in parallel."""
    co, ci = sch.split(c, [None, ic_block(sch)])
    if order == WINDOWS:
        sch.reorder(*rows, x, *kernel, co, ci)
    elif order == BLOCKS:
        sch.reorder(*rows, co, *kernel, x, ci)
    else:
        sch.reorder(*rows, co, *kernel, ci, x)
    if layout(sch) == "NHWC" and order != PIXELS:
        sch.vectorize(ci)
    sch.parallel(sch.fuse(*rows))
