"""Knobs of the matrix product on tensor cores, what may be built, and what it would cost."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule

from schedules.cuda import estimate, mma
from schedules.cuda.estimate import Delays, Size, Step, blocks, ceil_div
from schedules.cuda.gemm import attribute
from schedules.cuda.gemm_space import is_gathered
from schedules.cuda.mma import DEPTH, LANES, SQUARE, VECTOR, warps
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions, Rules, Space

# Of `estimate`, in cycles of a processor. One instruction multiplies two halves of a square.
_RATE = 1.45  # of a multiply-add of squares, against what its data sheet says
_FRAGMENT = 0.75  # of one from shared memory, 512 bytes
_COPY = 6.4  # one vector of every lane of a warp to shared memory, its address included
_GATHER = 10.0  # of one whose address is that of a pixel under a window
_LOAD = 2.0  # of one more load from there, if elements are fetched one by one
_WARP = 2.3  # of a warp in every step, barrier and loop
_STEP = 270.0  # of a step that nothing hides,
_ALONE = 1.5  # with its copies, which come one after the other
_STORE = 1.1 / 32  # of an element of the sums
_DELAYS = Delays(fetch=430.0, launch=4000.0, sharpness=2.7)
_STAGED = 32  # registers of a thread on their way to shared memory, if it fetches them itself
_SPARE_REGISTERS = 16  # addresses and counters of a thread
_ADDRESSES = 8  # registers of one turn's places in swizzled tiles
_SPARED = 31  # registers that nvcc needs beside those that are counted


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

    def row(length: int, along_depth: bool) -> int:
        if kind != "tf32":
            return length
        factor, offset = (2 * VECTOR[kind], VECTOR[kind]) if along_depth else (LANES, 8)
        return length + (offset - length) % factor

    left = (
        d["tile_p"] * row(d["tile_k"], True)
        if depth_inner
        else d["tile_k"] * row(d["tile_p"], False)
    )
    right = d["tile_k"] * row(d["tile_c"], False)
    return element_bytes(kind) * d["stages"] * (left + right)


def resident(d: Decisions, gpu: GpuModel, shared: int) -> int:
    """Blocks that fit on one processor at once."""
    threads = LANES * warps(d)
    fitting = min(
        gpu.threads_total // threads,
        gpu.shared_total // (shared + 1024),
        gpu.registers // (registers(d) * threads),
    )
    return max(1, fitting)


@dataclass(frozen=True)
class _Rules(Rules):
    """`kind` is that of the operands, `depth_inner` says whether the sum's axis is innermost in
    memory, `vector` how many elements one copy of the left factor takes and `loads` how many of
    them are fetched one by one, if not 1, `gathered` whether they may be in the padding."""

    size: Size
    gpu: GpuModel
    kind: str
    depth_inner: bool
    vector: int
    loads: int
    gathered: bool

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
        shared_out = blocks(self.size, d) <= 4 * self.gpu.processors and self.steps(d) >= 4
        whole = d["split_k"] == 1 or shared_out
        return self.staged(d) <= _STAGED and whole and self.needed(d) <= self.bound(d)

    def needed(self, d: Decisions) -> float:
        """Registers of a thread whose number nvcc may lack: of parts of sums, with the addresses of
        every turn of a step in swizzled tiles; and with elements that are gathered meanwhile."""
        swizzled = 0 if self.kind == "tf32" else d["tile_k"] // DEPTH[self.kind]
        parts, gathers = d["split_k"] > 1, self.loads > 1 and d["stages"] > 1
        more = parts * _ADDRESSES * swizzled + gathers * self.staged(d)
        return registers(d) + more + (_SPARED if parts or gathers else 0)

    def bound(self, d: Decisions) -> int:
        """Registers that a thread can have in a block of so many."""
        each = self.gpu.registers // (LANES * warps(d))
        return min(self.gpu.max_registers, each // 8 * 8)

    def staged(self, d: Decisions) -> float:
        """Registers of a thread on their way to shared memory, which nvcc may then lack: those of
        copies that are not asynchronous, of one step or of less than 4 bytes."""
        size = element_bytes(self.kind)
        together = 1 if self.vector == 1 or self.loads > 1 else 4 / size  # in a register
        left = d["tile_p"] * d["tile_k"] / together
        right = d["tile_c"] * d["tile_k"] / (4 / size)
        waiting = left + right if d["stages"] == 1 else left * self.by_registers
        return waiting / (LANES * warps(d))

    @property
    def by_registers(self) -> bool:
        """Whether copies of the left factor are never asynchronous."""
        return self.loads > 1 or self.vector * element_bytes(self.kind) < 4

    def cycles(self, d: Decisions) -> tuple[float, float, float]:
        """Of the busiest processor: to multiply, to wait for operands, and for the rest."""
        fitting = resident(d, self.gpu, self.shared(d))
        return estimate.cycles(self.size, d, self.gpu, fitting, self.step(d), _DELAYS)

    def step(self, d: Decisions) -> Step:
        count, turns = warps(d), d["tile_k"] // DEPTH[self.kind]
        left, right = d["warp_p"] // SQUARE, d["warp_c"] // SQUARE
        square = _RATE * SQUARE**3 / self.gpu.tensor * left * right * turns
        copy = (_GATHER if self.gathered else _COPY) + _LOAD * (self.loads - 1)
        copies = copy * d["tile_p"] / self.vector
        copies += _COPY * d["tile_c"] / VECTOR[self.kind]
        copies *= d["tile_k"] / LANES
        fragments = _FRAGMENT * count * (left + right) * turns
        return Step(
            busy=max(count * square, fragments + copies) + _WARP * count,
            alone=_STEP + square * ceil_div(count, 4) + _ALONE * copies,
            words=(d["tile_p"] + d["tile_c"]) * d["tile_k"] * element_bytes(self.kind) / 4,
            store=_STORE * d["tile_p"] * d["tile_c"],
            ahead=min(d["stages"] - 1, 1 if self.loads > 1 else d["stages"]),
        )

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
    vector, loads = attribute(sch, "vector"), attribute(sch, "loads")
    kind, size = mma.operands(sch), Size.of(sch)
    return Space(_Rules(size, gpu, kind, depth_inner, vector, loads, is_gathered(sch)))
