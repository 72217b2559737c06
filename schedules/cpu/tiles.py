"""The rules of a register tile over windows, which direct convolution, im2col and MEC share.

A tile is tile_oh x tile_ow pixels by tile_oc vectors of output channels; its sums are cut into
partial ones of tile_ic blocks of input channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule

from schedules.cpu.registers import (
    CpuModel,
    extents,
    fits,
    layout,
    loads_per_fma,
    oc_block,
    tile_cost,
    tile_ic_values,
    waste,
)
from schedules.knobs import Decisions, Rules

_MAX_UNROLLED_ROWS = 4
_LOOKAHEAD = 100  # multiply-adds of later sums that a core begins while it waits for this one


@dataclass(frozen=True)
class TileRules(Rules):
    """Sizes of the block `partial`, whose reduction is not yet cut; `block` channels are a vector
    of the packed weight, and `terms` are the products of a pixel and a block of input channels."""

    cpu: CpuModel
    layout: str
    images: int
    channels: int
    oh: int
    ow: int
    chunks_in: int
    terms: int
    block: int

    @classmethod
    def of(cls, sch: Schedule, cpu: CpuModel, *more: object) -> TileRules:
        """The rules for a function; `more` are a subclass's own fields."""
        chunks_in, images, channels, oh, ow, _, kh, kw, ic = extents(sch, "partial")
        sizes = (images, channels, oh, ow, chunks_in, kh * kw * ic, oc_block(sch))
        return cls(cpu, layout(sch), *sizes, *more)

    @property
    def chunks_out(self) -> int:
        return self.channels // self.block

    @property
    def tile_knobs(self) -> dict[str, tuple[int, ...]]:
        return {
            "tile_ow": tuple(t for t in range(1, self.cpu.registers) if t <= self.ow),
            "tile_oh": tuple(t for t in range(1, _MAX_UNROLLED_ROWS + 1) if t <= self.oh),
            "tile_oc": tuple(t for t in (1, 2, 3, 4, 6) if t <= self.chunks_out),
            "tile_ic": tile_ic_values(self.chunks_in, self.terms),
        }

    def pixels(self, d: Decisions) -> int:
        """Of a tile."""
        return d["tile_ow"] * d["tile_oh"]

    def is_valid(self, d: Decisions) -> bool:
        in_registers = fits(self.pixels(d), d["tile_oc"], self.cpu)
        return in_registers and self.chunks_out % d["tile_oc"] == 0

    def is_worthwhile(self, d: Decisions) -> bool:
        return (
            self.pixels(d) * d["tile_oc"] >= 4
            and waste(self.oh, d["tile_oh"]) <= 0.34
            and (waste(self.ow, d["tile_ow"]) <= 0.34 or d["tile_oh"] == 1)
        )

    def useless(self, d: Decisions) -> float:
        """Pixels computed for each of the image."""
        return (1 + waste(self.oh, d["tile_oh"])) * (1 + waste(self.ow, d["tile_ow"]))

    def tile(self, d: Decisions) -> float:
        """Cycles per multiply-add of a tile in full swing."""
        return tile_cost(self.pixels(d), d["tile_oc"], self.cpu)

    def sums(self, d: Decisions) -> float:
        """Cycles per multiply-add, with useless pixels and the ends of partial sums."""
        terms = d["tile_ic"] * self.terms
        together = max(1.0, _LOOKAHEAD / (self.pixels(d) * d["tile_oc"] * terms))
        tile = tile_cost(self.pixels(d), d["tile_oc"], self.cpu, together)
        tile *= 1 + 0.2 * max(0.0, loads_per_fma(self.pixels(d), d["tile_oc"]) - 0.6)
        return tile * self.useless(d) * (1 + 4 / terms) * self.anew(d)

    def weight_tile_bytes(self, d: Decisions) -> float:
        """Of the weight that one tile reads, and the next one again."""
        return 4.0 * d["tile_oc"] * self.block * self.chunks_in * self.terms

    def anew(self, d: Decisions) -> float:
        """How much longer a multiply-add takes by the weight, of which a tile of few pixels reads
        more than the L2 cache gives, if it does not stay in the L1 cache from tile to tile."""
        kept = 2 * self.weight_tile_bytes(d) <= self.cpu.l1_bytes
        once = self.oh * self.ow <= self.pixels(d)
        return 1.0 if kept or once else 1 + 0.25 * max(0.0, 4 / self.pixels(d) - 1)

    def features(self, d: Decisions) -> dict[str, float]:
        return {
            "accumulators": self.pixels(d) * d["tile_oc"],
            "tile": self.tile(d),
            "useless": self.useless(d),
            "terms": d["tile_ic"] * self.terms,
            "weight_tile_bytes": self.weight_tile_bytes(d),
        }

    def turns(self, d: Decisions) -> int:
        return self.images * -(-self.oh // d["tile_oh"]) * (self.chunks_out // d["tile_oc"])
