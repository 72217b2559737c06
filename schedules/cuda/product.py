"""The matrix product by what its operands ask for, tensor cores or not, and what follows it."""

from __future__ import annotations

from tvm.s_tir import Schedule

from schedules.cuda import gemm, gemm_space, mma, mma_space
from schedules.cuda.elementwise import spread_block
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions, Space

COMPUTE_KNOBS = gemm_space.COMPUTE_KNOBS


def space(sch: Schedule, gpu: GpuModel) -> Space:
    """The knobs of the product."""
    chosen = gemm_space if mma.operands(sch) == "float32" else mma_space
    return chosen.space(sch, gpu)


def multiply_to_out(sch: Schedule, d: Decisions) -> None:
    """The product, and the block `out` behind it: in the same kernel, or if sums go through memory,
    in one that adds up their parts."""
    out, parts = sch.get_sblock("out"), gemm.find_block(sch, "parts")
    if mma.operands(sch) == "float32":
        if parts is None:
            gemm.multiply(sch, d, out, gemm.store_vectors(sch, d))
        else:
            gemm.multiply_to_parts(sch, d)
    else:
        channels_inner = gemm.layout(sch) == "NHWC"
        pairs = channels_inner and (parts is not None or mma.stores_pairs(sch))
        wide = parts is None and bool(gemm.attribute(sch, "own_columns"))
        mma.multiply(sch, d, parts or out, pairs, wide)
    if parts is not None:
        spread_block(sch, out)
