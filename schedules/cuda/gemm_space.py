"""Knobs of the matrix product in float32, what may be built, and what it would cost."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule

from schedules.cuda import estimate
from schedules.cuda.estimate import Delays, Size, Step, blocks, ceil_div
from schedules.cuda.gemm import VECTOR, attribute, thread_extents
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions, Rules, Space

COMPUTE_KNOBS = ("tile_p", "tile_c", "tile_k", "split_k")

# Of `estimate`, in cycles or instructions of a warp.
_ISSUED = 4.0  # instructions of warps a cycle,
_ALONE = 4.6  # and cycles of one of four warps that wait for nobody else
_SHARPNESS = 3.3  # of issuing and reading at once
_READ = 2.1  # cycles of one vector for each thread of a warp, from shared memory
_COPY = 12.0  # instructions of one copy to shared memory, its address included
_GATHER = 40.0  # of one whose address is that of a pixel under a window
_CACHED = 1024  # instructions of a step that are at hand; more are fetched,
_UNCACHED = 0.25  # which slows down a step of twice as many by this share
_WARP = 1.0  # cycles of a warp in every step, barrier and loop
_STEP = 190.0  # of a step that nothing hides
_STORE = 1.1 / 32  # of an element of the sums
_DELAYS = Delays(fetch=500.0, launch=4700.0, sharpness=4.4)
_STAGED = 32  # floats of a thread on their way to shared memory, if it fetches them itself
_SPARE_REGISTERS = 32  # addresses and counters of a thread


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
    fitting = min(
        gpu.threads_total // (y * x),
        gpu.shared_total // (shared_bytes(d, depth_inner) + 1024),
        gpu.registers // (registers(d, depth_inner) * y * x),
    )
    return max(1, fitting)


@dataclass(frozen=True)
class _Rules(Rules):
    """`depth_inner` says whether the sum's axis is innermost in memory, `vector` how many elements
    one copy of the left factor takes, `gathered` whether they may be in the padding."""

    size: Size
    gpu: GpuModel
    depth_inner: bool
    vector: int
    gathered: bool
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
        return sum(self.cycles(d))

    def cycles(self, d: Decisions) -> tuple[float, float, float]:
        """Of the busiest processor: to multiply, to wait for operands, and for the rest."""
        fitting = resident(d, self.gpu, self.depth_inner)
        return estimate.cycles(self.size, d, self.gpu, fitting, self.step(d), _DELAYS)

    def step(self, d: Decisions) -> Step:
        threads, lanes = self.threads(d), self.gpu.multiply_adds / 32
        warps = ceil_div(threads, self.gpu.warp)
        products = d["thread_p"] * d["thread_c"] * d["tile_k"]
        reads = (ceil_div(d["thread_p"], VECTOR) + ceil_div(d["thread_c"], VECTOR)) * d["tile_k"]
        left, right = (d[name] * d["tile_k"] / threads for name in ("tile_p", "tile_c"))
        copies = (_GATHER if self.gathered else _COPY) * left / self.vector + _COPY * right / VECTOR
        issued = products + reads + copies
        fetched = 1 + _UNCACHED * max(0.0, issued / _CACHED - 1)
        issue = max(issued / _ISSUED, products / lanes) * fetched
        warp = estimate.together((issue, _READ * reads), _SHARPNESS)
        return Step(
            busy=warps * (warp + _WARP),
            alone=_ALONE * warp * ceil_div(warps, 4) + _STEP,
            words=(d["tile_p"] + d["tile_c"]) * d["tile_k"],
            store=_STORE * d["tile_p"] * d["tile_c"],
            ahead=d["stages"] - 1,
        )

    def features(self, d: Decisions) -> dict[str, float]:
        compute, fetch, rest = self.cycles(d)
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
    vector, gathered = attribute(sch, "vector"), is_gathered(sch)
    return Space(_Rules(Size.of(sch), gpu, depth_inner, vector, gathered, max_split))


def is_gathered(sch: Schedule) -> bool:
    """Whether elements of the left factor exist under a condition."""
    value = sch.get(sch.get_sblock("lhs")).body.value
    return "if_then_else" in str(getattr(value, "op", ""))
