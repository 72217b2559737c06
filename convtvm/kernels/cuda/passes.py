"""Lowering for a GPU: from a scheduled function to host code and kernels.

TVM's own passes, less what is for other devices and less what breaks our kernels: the elimination
of common subexpressions (warp memory; nvcc's is better) and the rewriting of storage (it makes
buffers that are only used by vectors ones of vectors, which asynchronous copies refuse).
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from convtvm.kernels.cuda import comparisons, copies, gathers, pipelining, stores, swizzle


def lower(mod: tvm.IRModule) -> tvm.IRModule:
    """Functions bound to a target, as host functions and kernels in one module."""
    return tvm.ir.transform.Sequential(_passes())(mod)


def _passes() -> list[tvm.ir.transform.Pass]:
    return [
        # Blocks become loops over buffers. Indices are simple before TVM measures how much of a
        # buffer a thread needs: of a fragment, which it sees as one of 32 lanes, only the lane's
        # own registers.
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerCrossThreadReduction(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LiftThreadBinding(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.UnifyThreadBinding(),
        # Steps overlap.
        s_tir.transform.InjectSoftwarePipeline(),
        s_tir.transform.LowerOpaqueBlock(),
        pipelining.fold,
        gathers.insert,
        swizzle.apply,
        s_tir.transform.StmtSimplify(),
        # Loops become what their annotations say.
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        stores.widen,
        s_tir.transform.LoopPartition(),
        copies.keep_vectors,
        tirx.transform.VectorizeLoop(True),
        s_tir.transform.InjectVirtualThread(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        comparisons.write_out,
        # Threads wait for each other, copies become asynchronous.
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        pipelining.mark_stages,
        s_tir.transform.ThreadSync("shared"),
        s_tir.transform.ThreadSync("shared.dyn"),
        s_tir.transform.ThreadSync("warp"),
        s_tir.transform.LowerThreadAllreduce(),
        copies.insert,
        pipelining.store_behind,
        s_tir.transform.MergeSharedMemoryAllocations(),
        # Functions get their arguments as TVM passes them.
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
        tirx.transform.BF16StorageLegalize(),  # on the host, where LLVM does not know bfloat16
    ]
