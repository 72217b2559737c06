"""The CPU schedule of what convolution kernels do not compute: inlined, shared out, in vectors.

Elementwise stages become part of those that read them. What is left is written by a loop nest of
its own: the outer loops parallel, runs of neighbours in vectors, a reduction in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, TensorLoad, Var
from tvm.s_tir import Schedule, ScheduleError
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx import IntImm, IterVar

from convtvm.kernels.lowering.loops import step_of
from convtvm.machine.targets import CompileTarget

_SMALL = 1 << 12  # elements below which threads do not pay
_UNROLLED = 16  # steps of a reduction that are written out
_TURNS = 16  # of a parallel loop for each thread
_LONG = 32  # steps of a reduction that waits for its additions
_HEAVY = {f"tirx.{name}" for name in ("exp", "tanh", "erf", "sigmoid", "log", "pow", "sqrt")}


def schedule(func: tirx.PrimFunc, target: CompileTarget) -> tirx.PrimFunc:
    """`func` of static shapes with a schedule for `target`.

    Raises ScheduleError for a function that is not made of plain blocks.
    """
    sch = Schedule(func)
    _inline(sch)
    done: set[str] = set()
    named = [(str(sch.get(block).name_hint), block) for block in _blocks(sch)]
    for name, block in reversed(named):
        if name not in done:
            done |= _nest(sch, block, target)
    return sch.mod["main"]


def _blocks(sch: Schedule) -> list[SBlockRV]:
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def _is_reduction(sch: Schedule, block: SBlockRV) -> bool:
    return any(v.iter_type == IterVar.CommReduce for v in sch.get(block).iter_vars)


def _inline(sch: Schedule) -> None:
    """Make elementwise stages part of what reads them; not functions that would run many times."""
    for block in _blocks(sch):
        readers = sch.get_consumers(block)
        if not readers or _is_reduction(sch, block):
            continue
        repeated = len(readers) > 1 or any(_is_reduction(sch, r) for r in readers)
        if repeated and _is_heavy(sch, block):
            continue
        try:
            sch.compute_inline(block)
        except ScheduleError:  # a stage that writes several elements, or in another order
            continue


def _is_heavy(sch: Schedule, block: SBlockRV) -> bool:
    found: list[Call] = []
    tvm_ffi.structural_walk(sch.get(block).body, (Call, found.append), order="pre")
    return any(getattr(call.op, "name", "") in _HEAVY for call in found)


def _nest(sch: Schedule, block: SBlockRV, target: CompileTarget) -> set[str]:
    """Schedule a block, and with it a reduction that only it reads; the names of both."""
    producers = [p for p in sch.get_producers(block) if _is_reduction(sch, p)]
    names = {str(sch.get(block).name_hint)}
    if _is_reduction(sch, block):
        if len(sch.get(block).writes) > 1:
            _share_out_results(sch, block, target.threads)
        else:
            _reduce(sch, block, target)
        return names
    partner = producers[0] if len(producers) == 1 else None
    if partner is not None and not _is_partner(sch, partner, block):
        partner = None
    if partner is None:
        _spread(sch, block, target)
        return names
    names.add(str(sch.get(partner).name_hint))
    _reduce_into(sch, partner, block, target)
    return names


def _is_partner(sch: Schedule, reduction: SBlockRV, block: SBlockRV) -> bool:
    """Whether `block` alone reads the reduction, each element once in the same order."""
    if len(sch.get_consumers(reduction)) != 1 or len(sch.get(reduction).writes) != 1:
        return False
    vars_ = [v.var for v in sch.get(block).iter_vars]
    buffer = sch.get(reduction).writes[0].source
    reads = [o for o in _loads(sch, block) if o.source.same_as(buffer)]
    return bool(reads) and all(
        len(o.indices) == len(vars_)
        and all(i.same_as(v) for i, v in zip(o.indices, vars_, strict=True))
        for o in reads
    )


def _spread(sch: Schedule, block: SBlockRV, target: CompileTarget) -> None:
    """An elementwise stage: the longest run of neighbours in vectors, the rest in parallel."""
    loops = list(sch.get_loops(block))
    run = _run_length(sch, block, len(loops))
    outer, inner = loops[: len(loops) - run], loops[len(loops) - run :]
    if not loops:
        return
    line = sch.fuse(*inner) if len(inner) > 1 else inner[0]
    if not outer and _extent(sch, line) >= _SMALL:
        share, line = sch.split(line, [None, -(-_extent(sch, line) // (4 * target.threads))])
        outer = [share]
    _share_out(sch, outer, prod(_extent(sch, o) for o in (*outer, line)), target.threads)
    _vectorize(sch, line, target.lanes)


def _reduce(sch: Schedule, block: SBlockRV, target: CompileTarget) -> None:
    """A reduction that several stages read, or the result itself."""
    write = sch.cache_write(block, 0, "global")
    _reduce_into(sch, block, write, target)


def _reduce_into(
    sch: Schedule, reduction: SBlockRV, block: SBlockRV, target: CompileTarget
) -> None:
    """A reduction in registers, a vector or an element at a time, stored by `block`."""
    loops = list(sch.get_loops(block))
    if not loops:
        return
    steps = _steps(sch, reduction)
    if _extent(sch, loops[-1]) < target.lanes or not _is_smooth(sch, reduction):
        sch.compute_at(reduction, loops[-1], preserve_unit_loops=True)
        _unroll_short(sch, list(sch.get_loops(reduction))[-len(steps) :])
        work = prod(_extent(sch, o) for o in loops) * prod(steps)
        _share_out(sch, loops, work, target.threads)
        return
    tile = _Tile.of([_extent(sch, o) for o in loops], prod(steps), target.lanes)
    *outer, line = loops
    columns, vector, lane = sch.split(line, [None, tile.vectors, target.lanes])
    inside = [vector]
    if outer:
        outer[-1], row = sch.split(outer[-1], [None, tile.rows])
        inside = [row, vector]
    sch.reorder(*outer, columns, *inside, lane)
    sch.compute_at(reduction, columns, preserve_unit_loops=True)
    if tile.is_ragged:
        sch.annotate(columns, "pragma_loop_partition_hint", 1)
    _accumulate(sch, reduction, len(loops), len(steps), target.lanes)
    for loop in inside:
        sch.unroll(loop)
    sch.vectorize(lane)
    work = prod(_extent(sch, o) for o in (*outer, columns)) * prod(steps) * target.lanes
    _share_out(sch, outer if tile.is_ragged else [*outer, columns], work, target.threads)
    init = sch.decompose_reduction(reduction, sch.get_loops(reduction)[-len(steps) - 3])
    sch.vectorize(sch.get_loops(init)[-1])


def _accumulate(sch: Schedule, reduction: SBlockRV, axes: int, count: int, lanes: int) -> None:
    """The loops of a tile: the reduction outside, rows and vectors inside."""
    inner = list(sch.get_loops(reduction))[-axes - count :]
    *before, line = inner[:axes]
    vector, lane = sch.split(line, [None, lanes])
    if before:
        row = before.pop()
    else:
        row, vector = sch.split(vector, [1, None])
    steps = inner[axes:]
    sch.reorder(*before, *steps, row, vector, lane)
    _unroll_short(sch, steps)
    for loop in (row, vector):
        sch.unroll(loop)
    sch.vectorize(lane)


@dataclass(frozen=True)
class _Tile:
    """Rows and vectors of columns whose sums are in registers at the same time."""

    rows: int
    vectors: int
    is_ragged: bool

    @classmethod
    def of(cls, extents: Sequence[int], steps: int, lanes: int) -> _Tile:
        """One vector for a short reduction, and where rows end within a vector; of a long one
        several, since each addition waits for the one before."""
        is_ragged = extents[-1] % lanes > 0
        if is_ragged or steps < _LONG:
            return cls(1, 1, is_ragged)
        columns = extents[-1] // lanes
        rows = next(r for r in (2, 1) if (len(extents) > 1 and extents[-2] % r == 0) or r == 1)
        return cls(rows, next(v for v in (4, 2, 1) if columns % v == 0), False)


def _steps(sch: Schedule, reduction: SBlockRV) -> list[int]:
    """The extents of a reduction's own axes."""
    vars_ = sch.get(reduction).iter_vars
    return [int(v.dom.extent) for v in vars_ if v.iter_type == IterVar.CommReduce]


def _unroll_short(sch: Schedule, steps: Sequence[LoopRV]) -> None:
    if prod(_extent(sch, step) for step in steps) <= _UNROLLED:
        for step in steps:
            sch.unroll(step)


def _share_out_results(sch: Schedule, block: SBlockRV, threads: int) -> None:
    """Several reductions in one: their results in parallel, each element by element."""
    vars_, loops = sch.get(block).iter_vars, sch.get_loops(block)
    spatial = [o for o, v in zip(loops, vars_, strict=True) if v.iter_type == IterVar.DataPar]
    rest = [o for o, v in zip(loops, vars_, strict=True) if v.iter_type != IterVar.DataPar]
    sch.reorder(*spatial, *rest)
    _share_out(sch, spatial, prod(_extent(sch, o) for o in loops), threads)


def _is_smooth(sch: Schedule, block: SBlockRV) -> bool:
    """Whether neighbours in the last axis read neighbours, or the same."""
    spatial = [v for v in sch.get(block).iter_vars if v.iter_type == IterVar.DataPar]
    lane = spatial[-1].var
    for load in _loads(sch, block):
        *before, last = load.indices
        if any(step_of(index, lane) != 0 for index in before) or step_of(last, lane) not in (0, 1):
            return False
    return True


def _share_out(sch: Schedule, loops: Sequence[LoopRV], elements: int, threads: int) -> None:
    """The first loops in parallel, as many as threads need: an index of fused loops has to be taken
    apart again."""
    if not loops or elements < _SMALL:
        return
    first: list[LoopRV] = []
    for loop in loops:
        first.append(loop)
        if prod(_extent(sch, o) for o in first) >= _TURNS * threads:
            break
    sch.parallel(sch.fuse(*first) if len(first) > 1 else first[0])


def _vectorize(sch: Schedule, line: LoopRV, lanes: int) -> None:
    """A run in whole vectors; what is left of it element by element."""
    extent = _extent(sch, line)
    if extent < lanes:
        return
    outer, lane = sch.split(line, [None, lanes])
    if extent % lanes:
        sch.annotate(outer, "pragma_loop_partition_hint", 1)
    sch.vectorize(lane)


def _run_length(sch: Schedule, block: SBlockRV, most: int) -> int:
    """How many of the last loops run over neighbours in all that the block reads and writes; at
    least one."""
    vars_ = [v.var for v in sch.get(block).iter_vars]
    extents = [int(v.dom.extent) for v in sch.get(block).iter_vars]
    store = sch.get(block).body
    if len(vars_) != most or not isinstance(store, tirx.BufferStore):
        return min(1, most)
    places = [(o.source, o.indices) for o in _loads(sch, block)]
    places.append((store.buffer, store.indices))
    for run in range(most, 1, -1):
        if all(_is_run(buffer, i, vars_[-run:], extents[-run:]) for buffer, i in places):
            return run
    return min(1, most)


def _is_run(buffer: Var, indices: Sequence, vars_: Sequence[Var], extents: Sequence[int]) -> bool:
    """Whether the indices end with `vars_`, over all of their axes, or read none of them."""
    if not any(step_of(index, var) != 0 for index in indices for var in vars_):
        return True
    if len(indices) < len(vars_):
        return False
    shape = buffer.ty.shape
    whole = all(
        isinstance(size, IntImm) and int(size) == extent
        for size, extent in zip(shape[len(shape) - len(extents) + 1 :], extents[1:], strict=True)
    )
    last = indices[len(indices) - len(vars_) :]
    return (
        whole
        and all(index.same_as(var) for index, var in zip(last, vars_, strict=True))
        and not any(step_of(index, var) != 0 for index in indices[: -len(vars_)] for var in vars_)
    )


def _loads(sch: Schedule, block: SBlockRV) -> list[TensorLoad]:
    """What a block reads besides its own sums."""
    body, written = sch.get(block).body, sch.get(block).writes[0].source
    found: list[TensorLoad] = []
    tvm_ffi.structural_walk(body, (TensorLoad, found.append), order="pre")
    return [load for load in found if not load.source.same_as(written)]


def _extent(sch: Schedule, loop: LoopRV) -> int:
    return int(sch.get(loop).extent)
