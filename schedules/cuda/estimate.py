"""Cycles that a matrix product would take on a GPU, from what a block does in one step.

Blocks come in waves: every processor runs as many at once as fit, the last wave what is left. A
step of the blocks on a processor takes as long as the slowest of what happens meanwhile; where
several take nearly as long, they are in each other's way, which `_together` says.

Rates are those of the machine. The other coefficients were fitted to the trials of an H200, layer
by layer left out (scripts/figures/evaluate_costs.py says how well they rank a log's).
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule

from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions


@dataclass(frozen=True)
class Size:
    """Extents of the unrounded product."""

    batch: int
    pixels: int
    channels: int
    depth: int

    @classmethod
    def of(cls, sch: Schedule) -> Size:
        loops = sch.get_loops(sch.get_sblock("gemm"))
        return cls(*(int(sch.get(loop).extent) for loop in loops[-4:]))


@dataclass(frozen=True)
class Step:
    """What a block does, in cycles of a processor: `busy` in a step, of the unit that it needs
    most; `alone` in a step that nothing hides; `store` for its sums. It fetches `words` of 4 bytes
    for a step, so many steps `ahead`."""

    busy: float
    alone: float
    words: float
    store: float
    ahead: int


@dataclass(frozen=True)
class Delays:
    """Cycles of a fetch from memory and of one more kernel; and how sharply the slowest part of a
    step decides (1: all add up; large: it alone counts)."""

    fetch: float
    launch: float
    sharpness: float


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def blocks(size: Size, d: Decisions) -> int:
    """Blocks of threads of the product."""
    tiles = ceil_div(size.pixels, d["tile_p"]) * ceil_div(size.channels, d["tile_c"])
    return size.batch * tiles * d["split_k"]


def together(times: tuple[float, ...], sharpness: float) -> float:
    """The time of what happens at once."""
    longest = max(times)
    return longest * sum((t / longest) ** sharpness for t in times) ** (1 / sharpness)


def cycles(
    size: Size, d: Decisions, gpu: GpuModel, resident: int, step: Step, delays: Delays
) -> tuple[float, float, float]:
    """Cycles of the busiest processor, of which `resident` blocks fit: to multiply, to wait for
    operands, and for the rest."""
    steps = ceil_div(size.depth, d["tile_k"] * d["split_k"])
    whole, left = divmod(blocks(size, d), gpu.processors * resident)
    compute = wait = rest = 0.0
    for at_once, count in ((resident, whole), (ceil_div(left, gpu.processors), int(left > 0))):
        if count == 0:
            continue
        multiply = max(at_once * step.busy, step.alone)
        ahead = delays.fetch / step.ahead if step.ahead else 0.0
        alone = step.alone + (0.0 if step.ahead else delays.fetch)
        times = at_once * step.busy, alone, ahead, at_once * step.words / gpu.l2_words
        compute += count * steps * multiply
        wait += count * steps * (together(times, delays.sharpness) - multiply)
        rest += count * (delays.fetch + at_once * step.store)
    if d["split_k"] > 1:
        parts = size.batch * size.pixels * size.channels * d["split_k"]
        rest += delays.launch + parts / (gpu.l2_words * gpu.processors)
    return compute, wait, rest
