"""Lowering for a CPU: from a scheduled function to flat buffers and TVM's calling convention.

TVM's own pipeline, less what is for other devices (thread bindings, shared memory, asynchronous
copies, narrow floats) and less the elimination of common subexpressions, a third of its time, which
LLVM does itself; with our own passes where they have the least to look at.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.target import Target
from tvm.tirx import IntImm

from convtvm.kernels.lowering import borders, fast_math, prefetch, transpose


def lower(mod: tvm.IRModule, target: Target) -> tvm.IRModule:
    """`mod` after the target-independent passes: flat buffers, calling convention, allocations."""
    bound = tirx.transform.BindTarget(target.with_host(target))(mod)
    return tvm.ir.transform.Sequential(_passes())(bound)


def _passes() -> list[tvm.ir.transform.Pass]:
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
        tirx.transform.NarrowDataType(32),
        # Loops become what their annotations say.
        borders.split,
        tirx.transform.ConvertSSA(),
        s_tir.transform.LoopPartition(),
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
        prefetch.insert,
        transpose.insert,
        fast_math.expand,
    ]


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
