"""GPU template of im2col and of MEC: a kernel that copies windows, then the matrix product."""

from __future__ import annotations

from tvm.s_tir import Schedule

from schedules.cuda import gemm, product
from schedules.cuda.elementwise import spread_block
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions, Space

VERSION = 1
COMPUTE_KNOBS = product.COMPUTE_KNOBS


def space(sch: Schedule, gpu: GpuModel) -> Space:
    """The knobs of the matrix product."""
    return product.space(sch, gpu)


def schedule(sch: Schedule, gpu: GpuModel, d: Decisions) -> None:
    for name in ("columns", "mec_lower"):
        copy = gemm.find_block(sch, name)
        if copy is not None:
            spread_block(sch, copy)
    product.multiply_to_out(sch, d)
