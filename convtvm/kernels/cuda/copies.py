"""Copies to shared memory, of whole vectors and under conditions, asynchronous if they may be.

TVM takes a vector apart whose condition it cannot prove to be the same for all elements, and makes
cp.async only of single elements or of vectors that are always there. But the `vector` of a product
(convtvm.compute.cuda.gemm) promises neighbours that exist together; so here a vector that may be in
the padding is one instruction as well, which then writes zeros. Copies of 2 bytes, which cp.async
lacks, stay ordinary.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.ir import Call, TensorLoad
from tvm.tirx import AttrStmt, BufferLoad, BufferStore, For, ForKind, Ramp

from convtvm.kernels.lowering.loops import const, put

COPY = "async_scope"  # TVM's attribute of the copies that may be asynchronous
_BYTES = (4, 8, 16)  # of one cp.async


def _source(count: int, guarded: bool) -> str:
    """PTX ISA, "cp.async": of `count` bytes as many are read as the last operand says, the others
    are zero. Only copies of 16 bytes leave out the L1 cache."""
    name, parameter = ("copy_if", ", bool there") if guarded else ("copy", "")
    size, operand = (", %3", f', "r"(there ? {count} : 0)') if guarded else ("", "")
    return f"""template <class T>
static __forceinline__ __device__ void {name}_{count}(T &to, const T &from{parameter}) {{
  unsigned int addr = __cvta_generic_to_shared(&to);
  asm volatile("cp.async.{"cg" if count == 16 else "ca"}.shared.global [%0], [%1], %2{size};"
               :: "r"(addr), "l"(&from), "n"({count}){operand});
}}
"""


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.WholeVectors")
def keep_vectors(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func`, before loops become vectors, with guarded vectors that exist where their first
    element does, and whose elements are neighbours."""

    def on_loop(loop: For) -> For:
        store = loop.body
        if loop.kind != ForKind.VECTORIZED or not isinstance(store, BufferStore):
            return loop
        value, lane = store.value, {loop.loop_var: const(0)}
        if not is_guarded(value) or not isinstance(value.args[1], TensorLoad):
            return loop
        condition, load, zero = value.args
        index = put(load.indices[0], lane) + loop.loop_var
        there = put(condition, lane)
        chosen = tirx.if_then_else(there, BufferLoad(load.source, [index]), zero)
        body = BufferStore(store.buffer, chosen, store.indices)
        return For(loop.loop_var, loop.min, loop.extent, loop.kind, body, None, loop.annotations)

    return tvm_ffi.structural_map(func, [(For, on_loop)], order="post")


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.AsynchronousCopies")
def insert(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func` with instructions instead of the stores that may be asynchronous."""

    def on_attr(attr: AttrStmt) -> Any:
        if attr.attr_key != COPY:
            return attr
        return tvm_ffi.structural_map(attr.body, [(BufferStore, _copied)], order="post")

    return tvm_ffi.structural_map(func, [(AttrStmt, on_attr)], order="post")


def _copied(store: BufferStore) -> Any:
    """The store as an instruction, if there is one for it."""
    value, condition = store.value, None
    if is_guarded(value):
        condition, value, otherwise = value.args
        if not _is_zero(otherwise):
            return store
    to, count = _start(store.indices[0])
    if not isinstance(value, TensorLoad) or not str(store.buffer.scope()).startswith("shared"):
        return store
    if str(value.source.scope()) != "global":
        return store
    start, lanes = _start(value.indices[0])
    bytes_copied = count * tvm.DataType(str(store.buffer.dtype)).bits // 8
    if to is None or start is None or lanes != count or bytes_copied not in _BYTES:
        return store
    operands = [BufferLoad(store.buffer, [to]), BufferLoad(value.source, [start])]
    guarded = condition is not None
    name = f"copy_if_{bytes_copied}" if guarded else f"copy_{bytes_copied}"
    source = _source(bytes_copied, guarded)
    return tirx.Evaluate(
        cuda_func_call(name, *operands, *([condition] if guarded else []), source_code=source)
    )


def is_guarded(value: Any) -> bool:
    """Whether `value` is one of two, of which only the chosen one is read."""
    return isinstance(value, Call) and str(value.op.name).endswith(".if_then_else")


def _start(index: Any) -> tuple[Any, int]:
    """(first, number) of neighbouring elements; (None, 0) of others."""
    if not isinstance(index, Ramp):
        return index, 1
    return (index.base, int(index.lanes)) if int(index.stride) == 1 else (None, 0)


def _is_zero(value: Any) -> bool:
    if isinstance(value, tirx.Broadcast):
        value = value.value
    return isinstance(value, (tirx.FloatImm, tirx.IntImm)) and float(value.value) == 0
