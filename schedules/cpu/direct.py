"""CPU template of direct convolution: a register tile of tile_oh x tile_ow pixels by tile_oc
vectors.

The tile stays in registers through the reduction; data elements are broadcast, so they are read
from the interface layout as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule

from schedules.cpu import epilogue
from schedules.cpu.registers import (
    ALIAS_BYTES,
    CpuModel,
    accumulate_in_tile,
    find_block,
    ic_block,
    image_counts,
    is_inplace,
    layout,
    number_pixels,
    oc_block,
    unroll_values,
    waste,
)
from schedules.cpu.tiles import TileRules
from schedules.knobs import Decisions, Space

VERSION = 3
COMPUTE_KNOBS = ("tile_ic", "flat")


@dataclass(frozen=True)
class _Rules(TileRules):
    image_counts: tuple[int, ...]
    unrolled: tuple[int, ...]  # values of unroll_ic
    is_inplace: bool

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        return {
            **self.tile_knobs,
            "unroll_ic": self.unrolled,
            "rows_outer": (0, 1),
            # images that meet a block of the weight in turn
            "images": self.image_counts,
            # 1: pixels are numbered through, a tile may go from the end of a row into the next
            "flat": (0, 1) if self.oh > 1 and not self.is_inplace else (0,),
        }

    def is_valid(self, d: Decisions) -> bool:
        return (
            super().is_valid(d)
            # Numbered through, there is a single row.
            and not (d["flat"] and (d["tile_oh"] > 1 or d["rows_outer"]))
            and not (d["images"] > 1 and d["rows_outer"])
        )

    def is_worthwhile(self, d: Decisions) -> bool:
        return super().is_worthwhile(d) and not (d["flat"] and self.ow % d["tile_ow"] == 0)

    def useless(self, d: Decisions) -> float:
        return 1 + waste(self.oh * self.ow, d["tile_ow"]) if d["flat"] else super().useless(d)

    def cost(self, d: Decisions) -> float:
        long_rows = 0.02 * (d["tile_oh"] - 1)
        # A tile should write few planes that alias, and whole cache lines.
        aliases = self.layout == "NCHW" and 4 * self.oh * self.ow % ALIAS_BYTES == 0
        crowded = 0.5 * (d["tile_oc"] - 1) + 0.2 * (d["tile_ow"] % 16 > 0) if aliases else 0.0
        return (
            self.sums(d)
            + long_rows
            + crowded
            + 0.01 * (d["unroll_ic"] - 1)
            + 0.005 * d["rows_outer"]
        )

    def turns(self, d: Decisions) -> int:
        rows = 1 if d["flat"] else -(-self.oh // d["tile_oh"])
        return self.images * rows * (self.chunks_out // d["tile_oc"])


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`, for the function whose reduction is not yet cut (tile_ic = 1)."""
    rules = _Rules.of(sch, cpu, image_counts(sch), unroll_values(ic_block(sch)), is_inplace(sch))
    return Space(rules, cpu.threads)


def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    if d["flat"]:
        number_pixels(sch, lambda n, c, y, x, ow: (n, c, y * ow + x))
    out, partial = sch.get_sblock("out"), epilogue.cut_off(sch, d["tile_oh"], d["tile_ow"])
    accumulate_in_tile(sch, out, d, d["unroll_ic"])
    epilogue.store_tile(sch, out, oc_block(sch), partial)
    _copy_padded_input(sch)


def _copy_padded_input(sch: Schedule) -> None:
    pad = find_block(sch, "data_pad")
    if pad is None:
        return
    loops = sch.get_loops(pad)
    if layout(sch) == "NHWC":
        sch.parallel(sch.fuse(*loops[:2]))
        sch.vectorize(loops[-1])
    else:
        sch.parallel(sch.fuse(*loops[:3]))
