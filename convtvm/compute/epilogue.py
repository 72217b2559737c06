"""Epilogues: what a kernel may do to each sum on its way out, beside adding the bias.

    none   out = sum + bias
    clip   out = min(high, max(low, sum + bias))               ReLU, ReLU6 and other bounds
    add    out = min(high, max(low, sum + bias + residual))    the end of a residual block

`low` and `high`, float32 numbers, are arguments of each call, infinite for no bound; `residual` is
a tensor like `out`; `convtvm.problem.arguments` has their places. A sum is float32 up to here, an
output of another dtype is rounded at the end. An epilogue is put into the finished compute, in its
block `out`, so that every algorithm has it and plain kernels pay nothing for it:
with bounds in every kernel, 1x1 layers in NCHW were 5 to 8 % slower, with a residual of zeros up to
20 %.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Var
from tvm.s_tir.stmt import SBlock

from convtvm.problem import arguments

EPILOGUES = ("none", "clip", "add")


def with_epilogue(func: tirx.PrimFunc, epilogue: str) -> tirx.PrimFunc:
    """`func` (data, packed weight, bias, out), not yet scheduled, with one of EPILOGUES."""
    if epilogue == "none":
        return func
    out = func.params[3]
    low, high = tirx.Var("low", "float32"), tirx.Var("high", "float32")
    residual = tirx.decl_buffer(out.ty.shape, out.ty.dtype, "residual")
    adds = epilogue == "add"

    def on_block(block: SBlock) -> SBlock:
        return _finish(block, low, high, residual if adds else None) if _is_out(block) else block

    body = tvm_ffi.structural_map(func.body, [(SBlock, on_block)], order="post")
    plain = list(func.params)
    operands, workspaces = plain[: arguments.OPERANDS], plain[arguments.OPERANDS :]
    params = arguments.ordered(operands, workspaces, (low, high), [residual] if adds else ())
    return tirx.PrimFunc(params, body, func.ret_type, func.attrs)


def _is_out(block: SBlock) -> bool:
    return str(block.name_hint) == "out"


def _finish(block: SBlock, low: Var, high: Var, residual: Var | None) -> SBlock:
    """The block with its one store's value added to and bounded."""
    store, reads = block.body, list(block.reads)
    value = store.value.value if isinstance(store.value, tirx.Cast) else store.value
    if residual is not None:
        value = value + residual[tuple(store.indices)].astype("float32")
        reads.append(tirx.BufferRegion(residual, block.writes[0].region))
    # In this order NaN stays NaN, and the bound that LLVM may make a branch is the one that
    # hardly ever applies.
    bounded = tirx.min(high, tirx.max(low, value)).astype(str(store.buffer.dtype))
    return SBlock(
        block.iter_vars,
        reads,
        block.writes,
        block.name_hint,
        tirx.BufferStore(store.buffer, bounded, store.indices),
        block.init,
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )
