"""The register tile: which tiles fit the vector registers, and the steps that make LLVM keep
them."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV


@dataclass(frozen=True)
class CpuModel:
    """What templates need to know of a CPU: fp32 lanes and number of vector registers, threads,
    caches."""

    lanes: int
    registers: int
    threads: int
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10


def live_registers(rows: int, vectors: int) -> int:
    """Vector registers that a tile of `rows` x `vectors` accumulators needs.

    LLVM keeps every operand of the inner unrolled loop alive across the outer one, so the inner
    loop runs over the operand with fewer distinct values; one more register holds the outer
    operand.
    """
    shared = 0 if rows == 1 or vectors == 1 else min(rows, vectors)
    return rows * vectors + 1 + shared


def fits(rows: int, vectors: int, cpu: CpuModel) -> bool:
    """Whether the tile avoids spilling, which costs 2x and makes timings depend on stack
    alignment."""
    return live_registers(rows, vectors) <= cpu.registers


def tile_order(rows: int, vectors: int, row_loops: list, vector_loops: list) -> list:
    """The unrolled loops of a tile, the operand with fewer distinct values innermost."""
    return [*row_loops, *vector_loops] if rows >= vectors else [*vector_loops, *row_loops]


def loads_per_fma(rows: int, vectors: int) -> float:
    """Vector loads and broadcasts that one multiply-add needs in the inner loop."""
    return (rows + vectors) / (rows * vectors)


def tile_cost(rows: int, vectors: int, cpu: CpuModel) -> float:
    """Estimated cycles per multiply-add: too few accumulators wait for latency, too many loads
    stall."""
    latency = max(1.0, 8.0 / (rows * vectors))
    return latency * (1.0 + max(0.0, loads_per_fma(rows, vectors) - 0.7))


def waste(extent: int, tile: int) -> float:
    """Share of extra work when `extent` is covered by whole tiles."""
    return -(-extent // tile) * tile / extent - 1.0


def vectorize_innermost(sch: Schedule, block: SBlockRV, unroll: int) -> list[LoopRV]:
    """Vectorise the innermost loop of `block`, unroll the `unroll` loops around it."""
    loops = list(sch.get_loops(block))
    sch.vectorize(loops[-1])
    for loop in loops[-1 - unroll : -1]:
        sch.unroll(loop)
    return loops


def find_block(sch: Schedule, name: str) -> SBlockRV | None:
    """The block called `name`, or None where the compute has no such stage."""
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        if sch.get(block).name_hint == name:
            return block
    return None


def extents(sch: Schedule, block: str) -> list[int]:
    """Extents of the loops around a block, outermost first."""
    return [int(sch.get(loop).extent) for loop in sch.get_loops(sch.get_sblock(block))]


def layout(sch: Schedule) -> str:
    """Interface layout of the function, which its compute states as an attribute."""
    return str(sch.mod["main"].attrs["layout"])
