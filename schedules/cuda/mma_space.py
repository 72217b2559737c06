"""Knobs of the matrix product on tensor cores, what may be built, and what it would cost."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule

from schedules.cuda import mma
from schedules.cuda.gemm import attribute
from schedules.cuda.gemm_space import Size, blocks, blocks_at_once, ceil_div, whole_walk
from schedules.cuda.mma import DEPTH, LANES, SQUARE, VECTOR, warps
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions, Rules, Space

# Estimates in cycles of a processor, from published figures of Ampere and Hopper; their ratios
# matter. One instruction multiplies two halves of a square.
_SQUARE = 4.0  # a square's multiply-add by one step of its depth
_FRAGMENT = 4.0  # of it from shared memory, 512 bytes
_COPY = 2.0  # one vector of every lane of a warp to shared memory
_STEP = 120.0  # of a step that nothing hides: barrier, first fragments
_CHAIN = 30.0  # of a multiply-add whose sums the next one needs
_STAGED = 32  # registers of a thread on their way to shared memory, if it fetches them itself
_SPARE_REGISTERS = 48  # addresses and counters of a thread


def registers(d: Decisions) -> int:
    """Estimate of a thread's registers: the sums, fragments of two steps, and the rest."""
    sums = d["warp_p"] * d["warp_c"] // LANES
    fragments = 4 * (d["warp_p"] + d["warp_c"]) // SQUARE
    return sums + 2 * fragments + _SPARE_REGISTERS


def element_bytes(kind: str) -> int:
    """Bytes of an operand's element."""
    return 16 // VECTOR[kind]


def shared_bytes(d: Decisions, kind: str, depth_inner: bool) -> int:
    """Bytes of shared memory of a block, padded rows included: every stage has its own tiles."""
    by_lane = kind == "tf32"
    vector = VECTOR[kind]

    def padded(row: int, along_depth: bool) -> int:
        factor, offset = (LANES, 8) if by_lane and not along_depth else (2 * vector, vector)
        return row + (offset - row) % factor

    left = (
        d["tile_p"] * padded(d["tile_k"], True)
        if depth_inner
        else d["tile_k"] * padded(d["tile_p"], False)
    )
    right = d["tile_k"] * padded(d["tile_c"], False)
    return element_bytes(kind) * d["stages"] * (left + right)


def resident(d: Decisions, gpu: GpuModel, shared: int) -> int:
    """Blocks that fit on one processor at once."""
    threads = LANES * warps(d)
    return min(
        gpu.threads_total // threads,
        gpu.shared_total // (shared + 1024),
        gpu.registers // (registers(d) * threads),
    )


@dataclass(frozen=True)
class _Rules(Rules):
    """`kind` is that of the operands, `depth_inner` says whether the sum's axis is innermost in
    memory, `vector` how many elements one copy of the left factor takes."""

    size: Size
    gpu: GpuModel
    kind: str
    depth_inner: bool
    vector: int

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        tiles, size = (16, 32, 64, 128, 256), self.size
        return {
            # The first tile that has all of an axis is the last one of use.
            "tile_p": tuple(t for t in tiles if t < 2 * size.pixels or t <= 16),
            "tile_c": tuple(t for t in tiles if t < 2 * size.channels or t <= 16),
            "tile_k": (16, 32, 64),
            "warp_p": (16, 32, 64),
            "warp_c": (16, 32, 64),
            # Parts of the sum that different blocks compute: small images have too few tiles.
            "split_k": (1, 2, 3, 4, 6, 8, 12, 16),
            # Steps in shared memory at once; from 2 on, copies are asynchronous.
            "stages": (1, 2, 3, 4),
        }

    def shared(self, d: Decisions) -> int:
        return shared_bytes(d, self.kind, self.depth_inner)

    def steps(self, d: Decisions) -> int:
        return ceil_div(self.size.depth, d["tile_k"] * d["split_k"])

    def is_valid(self, d: Decisions) -> bool:
        if d["tile_p"] % d["warp_p"] or d["tile_c"] % d["warp_c"]:
            return False
        gpu, threads = self.gpu, LANES * warps(d)
        return (
            threads <= gpu.max_threads
            # All threads fetch, and all of them the same number of vectors.
            and (d["tile_p"] * d["tile_k"]) % (threads * self.vector) == 0
            and (d["tile_c"] * d["tile_k"]) % (threads * VECTOR[self.kind]) == 0
            and self.shared(d) <= gpu.shared_bytes
            and registers(d) <= gpu.max_registers
            and registers(d) * threads <= gpu.registers
            and self.steps(d) >= d["stages"]
            and (d["split_k"] == 1 or self.size.batch * d["split_k"] <= 65535)
        )

    def is_worthwhile(self, d: Decisions) -> bool:
        # Copies that are not asynchronous pass through registers, which nvcc may then lack.
        copied = (d["tile_p"] + d["tile_c"]) * d["tile_k"] * element_bytes(self.kind)
        staged = copied / 4 / (LANES * warps(d))
        shared_out = blocks(self.size, d) <= 4 * self.gpu.processors and self.steps(d) >= 4
        return (d["stages"] > 1 or staged <= _STAGED) and (d["split_k"] == 1 or shared_out)

    def cycles(self, d: Decisions) -> tuple[float, float, float]:
        fitting = resident(d, self.gpu, self.shared(d))
        return _cycles(self.size, d, self.gpu, self.kind, fitting, self.vector)

    def cost(self, d: Decisions) -> float:
        return sum(self.cycles(d))

    def features(self, d: Decisions) -> dict[str, float]:
        compute, fetch, rest = self.cycles(d)
        return {
            "threads": LANES * warps(d),
            "blocks": blocks(self.size, d),
            "resident": resident(d, self.gpu, self.shared(d)),
            "shared": self.shared(d),
            "registers": registers(d),
            "compute": compute,
            "fetch": fetch,
            "rest": rest,
        }


def space(sch: Schedule, gpu: GpuModel) -> Space:
    """Knobs of `mma.multiply`, for the function whose tiles are single elements."""
    depth_inner = bool(attribute(sch, "depth_inner"))
    operands, vector = mma.operands(sch), attribute(sch, "vector")
    return Space(_Rules(Size.of(sch), gpu, operands, depth_inner, vector))


def _cycles(
    size: Size, d: Decisions, gpu: GpuModel, kind: str, fitting: int, vector: int
) -> tuple[float, float, float]:
    """Cycles of the busiest processor: to multiply, to wait for operands, and for the rest."""
    together = blocks_at_once(size, d, gpu, fitting)
    turns = d["tile_k"] // DEPTH[kind]
    left, right = d["warp_p"] // SQUARE, d["warp_c"] // SQUARE
    squares = _SQUARE * warps(d) * left * right * turns
    fragments = _FRAGMENT * warps(d) * (left + right) * turns
    copied = (d["tile_p"] / vector + d["tile_c"] / VECTOR[kind]) * d["tile_k"] / LANES
    busy = max(squares, fragments + _COPY * copied)
    alone = _STEP + turns * max(_CHAIN, _SQUARE * left * right * ceil_div(warps(d), 4))
    compute = max(together * busy, alone)
    words = (d["tile_p"] + d["tile_c"]) * d["tile_k"] * element_bytes(kind) / 4
    return whole_walk(size, d, gpu, together, compute, words)
