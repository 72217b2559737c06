"""Knobs of the matrix product in float32, what may be built, and what it would cost."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule

from schedules.cuda.gemm import VECTOR, attribute, thread_extents
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions, Rules, Space

COMPUTE_KNOBS = ("tile_p", "tile_c", "tile_k", "split_k")

# Estimates in cycles of a processor, from published figures of Hopper; their ratios matter.
_ISSUED = 4.0  # instructions of warps a cycle, as many as multiply-adds of 32 threads
_READ = 2.0  # one vector for each thread of a warp, from shared memory
_COPY = 8.0  # instructions of one copy to shared memory, its address included
_STEP = 150.0  # of a step that nothing hides: barrier, first reads
_LATENCY = 700.0  # of a fetch from memory
_WORDS = 6.0  # that a processor gets from the L2 cache in one cycle
_LAUNCH = 3500.0  # of one more kernel
_STAGED = 32  # floats of a thread on their way to shared memory, if it fetches them itself
_SPARE_REGISTERS = 40  # addresses and counters of a thread


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


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def registers(d: Decisions, depth_inner: bool) -> int:
    """Estimate of a thread's registers: the sums, the operands of one step, and the rest."""
    operands = d["thread_p"] * (VECTOR if depth_inner else 1) + d["thread_c"]
    return d["thread_p"] * d["thread_c"] + operands + _SPARE_REGISTERS


def shared_bytes(d: Decisions, depth_inner: bool) -> int:
    """Bytes of shared memory of a block: every stage has its own tiles."""
    depth = d["tile_k"] + (VECTOR if depth_inner else 0)
    return 4 * d["stages"] * (d["tile_p"] * depth + d["tile_c"] * d["tile_k"])


def resident(d: Decisions, gpu: GpuModel, depth_inner: bool) -> int:
    """Blocks that fit on one processor at once."""
    y, x = thread_extents(d, depth_inner)
    return min(
        gpu.threads_total // (y * x),
        gpu.shared_total // (shared_bytes(d, depth_inner) + 1024),
        gpu.registers // (registers(d, depth_inner) * y * x),
    )


@dataclass(frozen=True)
class _Rules(Rules):
    """`depth_inner` says whether the sum's axis is innermost in memory, `vector` how many elements
    one copy of the left factor takes."""

    size: Size
    gpu: GpuModel
    depth_inner: bool
    vector: int
    max_split: int

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        tiles, size = (8, 16, 32, 64, 128, 256), self.size
        splits = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
        return {
            # The first tile that has all of an axis is the last one of use.
            "tile_p": tuple(t for t in tiles if t < 2 * size.pixels or t <= 16),
            "tile_c": tuple(t for t in tiles[1:] if t < 2 * size.channels or t <= 16),
            "tile_k": (8, 16, 32),
            "thread_p": (2, 4, 8),
            "thread_c": (4, 8),
            # Parts of the sum that different blocks compute: small images have too few tiles.
            "split_k": tuple(s for s in splits if s <= self.max_split),
            # Steps in shared memory at once; from 2 on, copies are asynchronous.
            "stages": (1, 2, 3, 4),
        }

    def threads(self, d: Decisions) -> int:
        y, x = thread_extents(d, self.depth_inner)
        return y * x

    def steps(self, d: Decisions) -> int:
        return ceil_div(self.size.depth, d["tile_k"] * d["split_k"])

    def is_valid(self, d: Decisions) -> bool:
        gpu, count = self.gpu, self.threads(d)
        return (
            gpu.warp <= count <= gpu.max_threads
            # All threads fetch, and all of them the same number of vectors.
            and (d["tile_p"] * d["tile_k"]) % (count * self.vector) == 0
            and (d["tile_c"] * d["tile_k"]) % (count * VECTOR) == 0
            and shared_bytes(d, self.depth_inner) <= gpu.shared_bytes
            and registers(d, self.depth_inner) <= gpu.max_registers
            and registers(d, self.depth_inner) * count <= gpu.registers
            and self.steps(d) >= d["stages"]
            and (d["split_k"] == 1 or self.size.batch * d["split_k"] <= 65535)
        )

    def is_worthwhile(self, d: Decisions) -> bool:
        # Copies that are not asynchronous pass through registers, which nvcc may then lack.
        staged = (d["tile_p"] + d["tile_c"]) * d["tile_k"] / self.threads(d)
        shared_out = blocks(self.size, d) <= 4 * self.gpu.processors and self.steps(d) >= 4
        return (d["stages"] > 1 or staged <= _STAGED) and (d["split_k"] == 1 or shared_out)

    def cost(self, d: Decisions) -> float:
        return sum(_cycles(self.size, d, self.gpu, self.depth_inner))

    def features(self, d: Decisions) -> dict[str, float]:
        compute, fetch, rest = _cycles(self.size, d, self.gpu, self.depth_inner)
        return {
            "threads": self.threads(d),
            "blocks": blocks(self.size, d),
            "resident": resident(d, self.gpu, self.depth_inner),
            "shared": shared_bytes(d, self.depth_inner),
            "registers": registers(d, self.depth_inner),
            "compute": compute,
            "fetch": fetch,
            "rest": rest,
        }


def space(sch: Schedule, gpu: GpuModel, max_split: int = 32) -> Space:
    """Knobs of `gemm.multiply`, for the function whose tiles are single elements."""
    depth_inner = bool(attribute(sch, "depth_inner"))
    return Space(_Rules(Size.of(sch), gpu, depth_inner, attribute(sch, "vector"), max_split))


def blocks(size: Size, d: Decisions) -> int:
    """Blocks of threads of the product."""
    tiles = ceil_div(size.pixels, d["tile_p"]) * ceil_div(size.channels, d["tile_c"])
    return size.batch * tiles * d["split_k"]


def _cycles(
    size: Size, d: Decisions, gpu: GpuModel, depth_inner: bool
) -> tuple[float, float, float]:
    """Cycles of the busiest processor: to multiply, to wait for operands, and for the rest."""
    y, x = thread_extents(d, depth_inner)
    warps = ceil_div(y * x, gpu.warp)
    together = blocks_at_once(size, d, gpu, resident(d, gpu, depth_inner))

    # A warp's step when the processor is full, and a block's when it is alone there.
    products = d["thread_p"] * d["thread_c"] * d["tile_k"]
    reads = (ceil_div(d["thread_p"], VECTOR) + ceil_div(d["thread_c"], VECTOR)) * d["tile_k"]
    copied = (d["tile_p"] * (1 if depth_inner else VECTOR) + d["tile_c"]) / VECTOR * d["tile_k"]
    issue = (products + reads + _COPY * copied / (y * x)) / _ISSUED
    warp = max(issue, _READ * reads) + 0.2 * min(issue, _READ * reads)
    alone = _ISSUED * warp * ceil_div(warps, 4) + _STEP
    compute = max(together * warps * warp, alone)

    words = (d["tile_p"] + d["tile_c"]) * d["tile_k"]
    return whole_walk(size, d, gpu, together, compute, words)


def blocks_at_once(size: Size, d: Decisions, gpu: GpuModel, fitting: int) -> int:
    """Blocks that the busiest processor runs at once, of those that fit there."""
    return max(1, min(ceil_div(blocks(size, d), gpu.processors), fitting))


def whole_walk(
    size: Size, d: Decisions, gpu: GpuModel, together: int, compute: float, words: float
) -> tuple[float, float, float]:
    """Cycles of the busiest processor: to multiply, to wait for operands, and for the rest.

    `together` blocks multiply for `compute` cycles a step; each fetches `words` of 4 bytes for it.
    """
    turns = ceil_div(blocks(size, d), gpu.processors)
    steps = ceil_div(size.depth, d["tile_k"] * d["split_k"])
    fetch = together * words / _WORDS
    ahead = _LATENCY / (d["stages"] - 1) if d["stages"] > 1 else compute + _LATENCY / together
    wait = max(0.0, max(fetch, ahead) - compute)
    rounds = ceil_div(turns, together) * steps
    rest = _LATENCY
    if d["split_k"] > 1:
        parts = size.batch * size.pixels * size.channels * d["split_k"]
        rest += _LAUNCH + 2 * parts / (_WORDS * gpu.processors)
    return rounds * compute, rounds * wait, rest
