"""Lowering for a CPU: from a scheduled function to flat buffers and TVM's calling convention.

TVM's own pipeline, less what is for other devices (thread bindings, shared memory, asynchronous
copies, floats of 8 bits) and less the elimination of common subexpressions, a third of its time,
which LLVM does itself; with our own passes where they have the least to look at.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.target import Target
from tvm.tirx import AttrStmt, IntImm
from tvm.tirx.buffer import is_buffer_var

from convtvm.kernels.lowering import borders, fast_math, prefetch, transpose


def lower(mod: tvm.IRModule, target: Target) -> tvm.IRModule:
    """`mod` after the target-independent passes: flat buffers, calling convention, allocations."""
    bound = tirx.transform.BindTarget(target.with_host(target))(mod)
    wide, half = (any(map(f, mod.functions.values())) for f in (_is_wide, _has_bfloat16))
    return tvm.ir.transform.Sequential(_passes(wide, half))(bound)


def _is_wide(func: tirx.PrimFunc) -> bool:
    """Whether indices have 64 bits, for a tensor that needs them."""
    shapes = (param.ty.shape for param in func.params if is_buffer_var(param))
    return any("int64" in str(extent.ty) for shape in shapes for extent in shape)


def _has_bfloat16(func: tirx.PrimFunc) -> bool:
    """Whether it has parameters that LLVM does not know: weights of a GPU, packed on its host."""
    return any(str(p.ty.dtype) == "bfloat16" for p in func.params if is_buffer_var(p))


def _passes(wide: bool, half: bool) -> list[tvm.ir.transform.Pass]:
    """The passes, for `wide` functions without those that cut loops in parts: TVM's own mixes
    indices of 32 and 64 bits, so the tests that they save stay in the loops. With `half`, bfloat16
    is computed in float32 and stored as bits."""
    parts = [borders.split, tirx.transform.ConvertSSA(), s_tir.transform.LoopPartition()]
    return [
        # Blocks become loops over buffers that are no larger than what is used of them.
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        *([tirx.transform.BF16ComputeLegalize()] if half else []),
        tirx.transform.NarrowDataType(32),
        # Loops become what their annotations say.
        *([forget_hints] if wide else parts),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        fold_selections,
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        # Functions get their arguments as TVM passes them.
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
        *([tirx.transform.BF16StorageLegalize()] if half else []),
        prefetch.insert,
        transpose.insert,
        fast_math.expand,
    ]


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.ForgetHints")
def forget_hints(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func` without the hints which loops to cut in parts."""

    def on_attr(attr: AttrStmt) -> object:
        return attr.body if attr.attr_key == borders.HINT else attr

    return tvm_ffi.structural_map(func, [(AttrStmt, on_attr)], order="post")


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.FoldSelections")
def fold_selections(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func`, its selections by a known index replaced by what they select.

    A Winograd transform chooses among the rows of a matrix by an unrolled loop's index. Vectorised,
    the condition is a vector too, which TVM's own simplifier leaves as it is: all rows would be
    computed for each.
    """

    def on_select(select: tirx.Select) -> tirx.PrimExpr:
        condition = select.condition
        if isinstance(condition, tirx.Broadcast):
            condition = condition.value
        if isinstance(condition, tirx.EQ):
            sides = condition.a, condition.b
            if all(isinstance(side, IntImm) for side in sides):
                equal = int(sides[0]) == int(sides[1])
                return select.true_value if equal else select.false_value
        return select

    return tvm_ffi.structural_map(func, [(tirx.Select, on_select)], order="post")
