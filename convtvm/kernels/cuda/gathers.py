"""Vectors of a tile that no single instruction fetches: through registers, element by element.

Templates say GATHERED of the outermost loop of such a copy to shared memory: the elements of a
vector are apart in memory, or not all there (3 of 4 channels). They promise that elements exist
together, but for those that never do by their place in the vector, and that these lie at distances
that depend on nothing else. Here they are fetched under one condition, from one address and
constants on, and vectors are stored as a whole. Between the steps of a pipeline, elements are
fetched before a step is computed and stored behind it, so that nobody waits for memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad, Var
from tvm.tirx import BufferLoad, BufferStore, For, IfThenElse
from tvm.tirx.stmt import AllocBuffer

from convtvm.kernels.cuda.copies import is_guarded
from convtvm.kernels.lowering.loops import Nest, const, put, sequence_of, terms_of, variables
from schedules.cuda.mma import GATHERED


@dataclass(frozen=True)
class Gather:
    """The parts of a copy: where its elements wait, what fetches them, and what stores them."""

    registers: AllocBuffer
    fetch: Any
    store: Any

    @classmethod
    def of(cls, loop: For) -> Gather:
        """The parts of an annotated nest of loops, of which the innermost is over a vector."""
        nest = Nest.of(loop)
        assert not nest.terms, "every thread has the same number of vectors"
        (*turns, lanes), store = nest.loops, nest.store
        count, width = math.prod(int(each.extent) for each in turns), int(lanes.extent)
        name, dtype = f"{store.buffer.name}_gathered", str(store.buffer.dtype)
        registers = tirx.decl_buffer((count * width,), dtype, name, scope="local")
        first = const(0)
        for each in turns:
            first = first * each.extent + each.loop_var * width
        # No two loops may share a variable.
        fresh = {each.loop_var: tirx.Var(each.loop_var.name, "int32") for each in nest.loops}
        vector = BufferLoad(registers, [first + lanes.loop_var])
        stored = BufferStore(store.buffer, vector, store.indices)
        return cls(
            AllocBuffer(registers),
            _nested(turns, [o.loop_var for o in turns], _fetched(registers, first, store, lanes)),
            _nested(nest.loops, list(fresh.values()), put(stored, fresh, simplify=False)),
        )

    @classmethod
    def within(cls, stmt: Any) -> Gather | None:
        """The parts of the annotated copy in a statement, each in all that is around the copy;
        None if there is no such copy."""
        found: list[For] = []

        def on_loop(loop: For) -> None:
            if GATHERED in loop.annotations:
                found.append(loop)

        tvm_ffi.structural_walk(stmt, (For, on_loop), order="pre")
        if not found:
            return None
        parts = cls.of(found[0])
        return cls(parts.registers, _instead(stmt, parts.fetch), _instead(stmt, parts.store))


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.Gathers")
def insert(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func`, the annotated copies that are still there fetched and stored at one place."""

    def on_loop(loop: For) -> Any:
        if GATHERED not in loop.annotations:
            return loop
        parts = Gather.of(loop)
        return sequence_of([parts.registers, parts.fetch, parts.store])

    return tvm_ffi.structural_map(func, [(For, on_loop)], order="post")


def _fetched(registers: Any, first: Any, store: BufferStore, lanes: For) -> Any:
    """Elements of one vector into the registers from `first` on."""
    values = [put(store.value, {lanes.loop_var: const(i)}) for i in range(int(lanes.extent))]
    guard = values[0].args[0] if is_guarded(values[0]) else None
    load = store.value.args[1] if is_guarded(store.value) else store.value
    loads, zeros = [], []
    for at, value in enumerate(values):
        exists = is_guarded(value) or isinstance(value, TensorLoad)
        if exists:
            element = BufferLoad(load.source, _in_lane(load.indices, lanes.loop_var, at))
            loads.append(BufferStore(registers, element, [first + at]))
        if guard is not None or not exists:
            zero = tirx.const(0, str(registers.dtype))
            zeros.append(BufferStore(registers, zero, [first + at]))
    there = sequence_of(loads)
    if guard is None:
        return sequence_of([*zeros, there])
    # All terms, and one branch: nvcc would make one of each term.
    condition = reduce(tirx.bitwise_and, terms_of(guard))
    return sequence_of([*zeros, IfThenElse(condition, there, None)])


def _in_lane(indices: Sequence[Any], var: Var, lane: int) -> list[Any]:
    """Indices of an element: those of the vector's first one, and how far it is from there."""

    def alone(index: Any, value: int) -> int:
        """The index where all else is 0."""
        others = {v: const(0) for v in variables(index) if not v.same_as(var)}
        return int(put(index, {**others, var: const(value)}))

    return [put(i, {var: const(0)}) + (alone(i, lane) - alone(i, 0)) for i in indices]


def _instead(stmt: Any, of_copy: Any) -> Any:
    """`stmt` with another statement where its annotated copy was."""

    def on_loop(loop: For) -> Any:
        return of_copy if GATHERED in loop.annotations else loop

    return tvm_ffi.structural_map(stmt, [(For, on_loop)], order="post")


def _nested(loops: Sequence[For], variables: Sequence[Var], body: Any) -> Any:
    """Loops like these around `body`."""
    for loop, var in reversed(list(zip(loops, variables, strict=True))):
        kept = {k: v for k, v in loop.annotations.items() if k != GATHERED}
        body = For(var, loop.min, loop.extent, loop.kind, body, None, kept)
    return body
