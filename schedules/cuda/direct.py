"""GPU template of direct convolution: one matrix product whose left operand is gathered."""

from __future__ import annotations

from tvm.s_tir import Schedule

from schedules.cuda import product
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions, Space

VERSION = 1
COMPUTE_KNOBS = product.COMPUTE_KNOBS


def space(sch: Schedule, gpu: GpuModel) -> Space:
    """The knobs of the matrix product."""
    return product.space(sch, gpu)


def schedule(sch: Schedule, gpu: GpuModel, d: Decisions) -> None:
    product.multiply_to_out(sch, d)
