"""A GPU schedule on the CPU: the program of its blocks, before TVM generates code.

Threads become loops and every buffer lives in ordinary memory. That proves the arithmetic, the
index maps and the predicates of a schedule in a fraction of a second, and nothing about threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm_ffi
from support import Array, Decisions
from tvm import tirx
from tvm.ir import Var
from tvm.tirx import For, ForKind
from tvm.tirx.buffer import is_buffer_var

from convtvm.dispatch.tensors import from_array
from convtvm.kernels import codegen
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.measure.verify import loaded
from convtvm.problem.dtypes import numpy_dtype

HOST = resolve("native", 1)
_packings: dict[int, Callable[..., Any]] = {}
_PIPELINE = "software_pipeline_"  # annotations that reorder what only threads can overlap
# An unrolled loop is one that nvcc can unroll; on a CPU its extent may depend on threads' loops.
_AS_SERIAL = (ForKind.THREAD_BINDING, ForKind.UNROLLED)


def on_cpu(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with thread axes as serial loops and all buffers in scope global."""
    moved: dict[Var, Var] = {}

    def on_var(var: Var) -> Var:
        if not is_buffer_var(var) or var.scope() == "global":
            return var
        if var not in moved:
            t = var.ty
            moved[var] = tirx.decl_buffer(
                t.shape, t.dtype, var.name, None, t.strides, t.elem_offset
            )
        return moved[var]

    def on_for(loop: For) -> For:
        kept = {k: v for k, v in loop.annotations.items() if not k.startswith(_PIPELINE)}
        kind = ForKind.SERIAL if loop.kind in _AS_SERIAL else loop.kind
        return For(loop.loop_var, loop.min, loop.extent, kind, loop.body, None, kept)

    return tvm_ffi.structural_map(func, [(For, on_for), (Var, on_var)], order="post")


def run_blocks(task: Task, decisions: Decisions, data: Array, weight: Array, bias: Array) -> Array:
    """The output of a GPU task's schedule; elements that it leaves out are NaN."""
    func = codegen.accept_unaligned(on_cpu(task.instantiate(decisions)["main"]))
    dtype = task.workload.dtype
    packed = np.full(task.packed_shape(), np.nan, numpy_dtype(dtype))
    out = np.full(task.workload.out_shape(task.layout), np.nan, numpy_dtype(dtype))
    scratch = [
        np.full(shape, np.nan, numpy_dtype(kind)) for kind, *shape in task.scratch(decisions)
    ]
    _packing(task.pack())(*map(from_array, (weight, packed)))
    kernel = loaded(func, HOST, opt_level=0)  # LLVM's optimiser sees what GPUs never get
    kernel(*map(from_array, (data, packed, bias, out, *scratch)))
    return out


def _packing(func: tirx.PrimFunc) -> Callable[..., Any]:
    key = tvm_ffi.structural_hash(func)
    if key not in _packings:
        _packings[key] = loaded(func, HOST, opt_level=0)
    return _packings[key]
