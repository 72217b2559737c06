"""GPU template of direct convolution: one matrix product whose left operand is gathered."""

from __future__ import annotations

from tvm.s_tir import Schedule

from schedules.cuda import gemm, gemm_space
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions, Space

VERSION = 1
COMPUTE_KNOBS = gemm_space.COMPUTE_KNOBS


def space(sch: Schedule, gpu: GpuModel) -> Space:
    """The knobs of the matrix product."""
    return gemm_space.space(sch, gpu)


def schedule(sch: Schedule, gpu: GpuModel, d: Decisions) -> None:
    gemm.multiply_to_out(sch, d)
