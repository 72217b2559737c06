"""Stores of a thread's neighbours as one instruction: 16 bytes instead of eight times 2.

A thread computes its neighbours one by one, by whatever epilogue. Where a template says WIDE of the
loop over them, they come together in registers first; what they read of global memory along the
same axis, the bias and tensors like the output, is fetched by whole vectors as well. The template
promises that all neighbours exist where the first one does, whose place is a multiple of their
number, and that they follow it; TVM cannot always see that.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.tirx import BufferLoad, BufferStore, For, ForKind, IfThenElse
from tvm.tirx.stmt import AllocBuffer

from convtvm.kernels.lowering.loops import (
    Nest,
    Unexpected,
    conjunction,
    const,
    loads,
    put,
    sequence_of,
    variables,
)
from schedules.cuda.mma import WIDE


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.WideStores")
def widen(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func`, with flat buffers and before loops become vectors."""
    return tvm_ffi.structural_map(func, [(For, _widened)], order="post")


def _widened(loop: For) -> Any:
    """The statements instead of an annotated loop; the loop where its store is of another form."""
    if WIDE not in loop.annotations:
        return loop
    try:
        nest = Nest.of(loop)
    except Unexpected:
        return loop
    store, var = nest.store, loop.loop_var
    if len(nest.loops) > 1 or not _follows(store.indices[0], var):
        return loop
    count, stmts, value = int(loop.extent), [], store.value
    for load in _neighbours(value, var):
        fetched = _registers(load.source, count)
        stmts += [AllocBuffer(fetched), _vector(fetched, load, var, count, out=False)]
        value = _replaced(value, load, BufferLoad(fetched, [var]))
    made = _registers(store.buffer, count)
    each = For(var, const(0), const(count), ForKind.UNROLLED, BufferStore(made, value, [var]))
    target = BufferLoad(store.buffer, store.indices)
    stmts += [AllocBuffer(made), each, _vector(made, target, var, count, out=True)]
    body = sequence_of(stmts)
    there = conjunction(nest.terms, {var: const(0)})
    return IfThenElse(there, body, None) if nest.terms else body


def _follows(index: Any, var: Any) -> bool:
    """Whether an index runs along `var`: where all else is 0, the second follows the first."""
    first, second = (
        put(index, {v: const(at if v.same_as(var) else 0) for v in variables(index)})
        for at in (0, 1)
    )
    return int(second) - int(first) == 1


def _neighbours(value: Any, var: Any) -> list[TensorLoad]:
    """The loads of global memory that run along `var`, each once."""
    found: list[TensorLoad] = []
    for load in loads(value):
        known = any(tvm_ffi.structural_equal(load, other) for other in found)
        is_global = str(load.source.scope()) == "global"
        if is_global and not known and _follows(load.indices[0], var):
            found.append(load)
    return found


def _registers(like: Any, count: int) -> Any:
    """A thread's own place for so many elements."""
    return tirx.decl_buffer((count,), str(like.dtype), f"{like.name}_wide", scope="local")


def _vector(registers: Any, place: Any, var: Any, count: int, out: bool) -> For:
    """One copy between registers and the neighbours at a place in memory."""
    lane = tirx.Var("lane", "int32")
    memory = [put(place.indices[0], {var: const(0)}) + lane]
    if out:
        copy = BufferStore(place.source, BufferLoad(registers, [lane]), memory)
    else:
        copy = BufferStore(registers, BufferLoad(place.source, memory), [lane])
    return For(lane, const(0), const(count), ForKind.VECTORIZED, copy)


def _replaced(value: Any, load: TensorLoad, by: Any) -> Any:
    def on_load(other: TensorLoad) -> Any:
        return by if tvm_ffi.structural_equal(other, load) else other

    return tvm_ffi.structural_map(value, [(TensorLoad, on_load)], order="post")
