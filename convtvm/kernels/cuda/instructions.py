"""Loops that a warp executes as one instruction: matrix multiply-adds, and loads of their factors.

Templates write them as loops, which say exactly what is computed, and annotate the loop over the
warp's lanes (schedules.cuda.mma). Here they become calls of functions around inline PTX; the rest
of the program goes through TVM as it is. An instruction's operands are the registers of one lane,
and elements in shared memory: as loads, which TVM's passes see, although the functions take them by
reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tvm_ffi
from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.ir import TensorLoad, Var
from tvm.s_tir import SBlockRealize
from tvm.tirx import BufferLoad, For

from schedules.cuda.mma import LANES, LOAD_MATRICES, MULTIPLY_ADD

TENSOR_CORES = 80  # the oldest architecture with these instructions

# PTX ISA: "Matrix multiply-accumulate operation using mma instruction", "ldmatrix", "cvt".
_MMA = """  asm volatile("mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
               "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
               : "+f"({0}), "+f"({1}), "+f"({2}), "+f"({3})
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"({4}), "r"({5}));
"""
_HALVES = {"float16": "f16", "bfloat16": "bf16"}  # operands of 16 bits, in PTX
_C_TYPES = {"float16": "half", "bfloat16": "nv_bfloat16"}
_SUMS = [f"s{i}" for i in range(8)]
_FACTORS = [f"{name}{i}" for name in "ab" for i in range(4)]


def _multiply_add_source(kind: str) -> str:
    """A square of 16 pixels by 16 channels, as two instructions."""
    half = kind in _HALVES
    factors = ", ".join(f"unsigned int {f}" if half else f"float {f}f" for f in _FACTORS)
    sums = ", ".join(f"float &{s}" for s in _SUMS)
    source = f"static __forceinline__ __device__ void multiply_add_{kind}({sums}, {factors}) {{\n"
    for f in () if half else _FACTORS:
        source += f"  unsigned int {f};\n"
        source += f'  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"({f}) : "f"({f}f));\n'
    words = {"shape": "m16n8k16" if half else "m16n8k8", "kind": _HALVES.get(kind, "tf32")}
    source += _MMA.format(*_SUMS[:4], "b0", "b1", **words)
    return source + _MMA.format(*_SUMS[4:], "b2", "b3", **words) + "}\n"


def _load_matrices_source(name: str, transposed: bool, c_type: str) -> str:
    suffix = ".trans" if transposed else ""
    registers = ", ".join(f"{c_type} &r{i}" for i in range(4))
    targets = ", ".join(f'"=r"(reinterpret_cast<unsigned int &>(r{i}))' for i in range(4))
    return f"""static __forceinline__ __device__ void {name}({registers}, const {c_type} &row) {{
  unsigned int addr = __cvta_generic_to_shared(&row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4{suffix}.shared.b16 {{%0, %1, %2, %3}}, [%4];"
               : {targets}
               : "r"(addr));
}}
"""


def with_instructions(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with every annotated nest of loops as calls of the instruction that it stands for."""

    def on_for(loop: For) -> For:
        if MULTIPLY_ADD in loop.annotations:
            return _over_lanes(loop, _multiply_add(loop, str(loop.annotations[MULTIPLY_ADD])))
        if LOAD_MATRICES in loop.annotations:
            return _over_lanes(loop, _load_matrices(loop, bool(loop.annotations[LOAD_MATRICES])))
        return loop

    return tvm_ffi.structural_map(func, [(For, on_for)], order="post")


def uses_tensor_cores(func: tirx.PrimFunc) -> bool:
    """Whether `func` has annotated loops."""
    found: list[For] = []

    def on_for(loop: For) -> None:
        if MULTIPLY_ADD in loop.annotations:
            found.append(loop)

    tvm_ffi.structural_walk(func, (For, on_for), order="pre")
    return bool(found)


def _over_lanes(loop: For, call: tirx.PrimExpr) -> For:
    body = tirx.Evaluate(call)
    return For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, {})


def _multiply_add(loop: For, kind: str) -> tirx.PrimExpr:
    inner, realize = _nest(loop)
    store = realize.block.body
    start = dict.fromkeys((each.loop_var for each in inner[1:]), tirx.const(0, "int32"))
    factors = [load for load in _loads(store.value) if not load.source.same_as(store.buffer)]
    lane, width = loop.loop_var, 2 if kind in _HALVES else 1
    channels, pixels, neighbours = (each.loop_var for each in inner[1:4])
    operands = []
    for i in range(len(_SUMS)):  # s[4h + 2y + x], wherever a template has it
        which = {channels: i // 4, pixels: i // 2 % 2, neighbours: i % 2, lane: 0}
        where = {**start, **{var: tirx.const(value, "int32") for var, value in which.items()}}
        *tile, _, register = _at(store.indices, realize, where)
        operands.append(BufferLoad(store.buffer, [*tile, lane, register]))
    for factor in (factors[0], factors[-1]):
        buffer, tile = factor.source, _at(factor.indices, realize, start)[:-2]
        for register in range(4):
            at = tirx.Ramp(register * width, 1, width) if width > 1 else register
            value = BufferLoad(buffer, [*tile, lane, at])
            operands.append(tirx.reinterpret("uint32", value) if width > 1 else value)
    source = _multiply_add_source(kind)
    return cuda_func_call(f"multiply_add_{kind}", *operands, source_code=source)


def _load_matrices(loop: For, transposed: bool) -> tirx.PrimExpr:
    """Four matrices of 8 by 8: lane 8i + r says where row r of matrix i lies."""
    (_, outer, inner, pair), realize = _nest(loop)
    store, lane = realize.block.body, loop.loop_var
    row = lane % 8
    where = {
        lane: row // 2 if transposed else row * 4,
        pair.loop_var: row % 2 if transposed else tirx.const(0, "int32"),
        outer.loop_var: lane // 16,
        inner.loop_var: lane // 8 % 2,
    }
    source = store.value  # a load
    first = BufferLoad(source.source, _at(source.indices, realize, where))
    start = dict.fromkeys((each.loop_var for each in (outer, inner, pair)), tirx.const(0, "int32"))
    tile = _at(store.indices, realize, start)[:-2]
    registers = [BufferLoad(store.buffer, [*tile, lane, 2 * i]) for i in range(4)]
    dtype = str(store.buffer.dtype)
    name = f"{'load_transposed' if transposed else 'load_matrices'}_{dtype}"
    code = _load_matrices_source(name, transposed, _C_TYPES[dtype])
    return cuda_func_call(name, *registers, first, source_code=code)


def _nest(loop: For) -> tuple[list[For], SBlockRealize]:
    """The perfectly nested loops from `loop` on, and the block inside."""
    loops = [loop]
    while isinstance(loops[-1].body, For):
        loops.append(loops[-1].body)
    assert int(loop.extent) == LANES
    return loops, loops[-1].body


def _at(
    indices: Sequence[tirx.PrimExpr], realize: SBlockRealize, loops: Mapping[Var, tirx.PrimExpr]
) -> list[tirx.PrimExpr]:
    """Indices inside a block, in terms of the loops around it, of which some are given values."""
    axes = [axis.var for axis in realize.block.iter_vars]
    values = [_substituted(value, loops) for value in realize.iter_values]
    block = dict(zip(axes, values, strict=True))
    return [_substituted(index, block) for index in indices]


def _substituted(expr: tirx.PrimExpr, values: Mapping[Var, tirx.PrimExpr]) -> tirx.PrimExpr:
    def on_var(var: Var) -> tirx.PrimExpr:
        return values.get(var, var)

    return tvm_ffi.structural_map(expr, [(Var, on_var)], order="post")


def _loads(expr: tirx.PrimExpr) -> list[TensorLoad]:
    found: list[TensorLoad] = []
    tvm_ffi.structural_walk(expr, (TensorLoad, found.append), order="pre")
    return found
