"""GPU template of Winograd convolution: transforms with a tile for each thread around the matrix
products of all elements of a tile."""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from schedules.cuda import gemm, gemm_space
from schedules.cuda.elementwise import spread
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions, Space

VERSION = 1
COMPUTE_KNOBS = gemm_space.COMPUTE_KNOBS


def space(sch: Schedule, gpu: GpuModel) -> Space:
    """The knobs of the matrix products."""
    return gemm_space.space(sch, gpu)


def schedule(sch: Schedule, gpu: GpuModel, d: Decisions) -> None:
    _transform_input(sch)
    _transform_output(sch)
    gemm.multiply_to_parts(sch, d)


def schedule_pack(sch: Schedule) -> None:
    """On the CPU: unroll the transform axes, so that the matrices fold away."""
    rows, pack = sch.get_sblock("pack_rows"), sch.get_sblock("pack")
    c, i, e, kx = sch.get_loops(rows)
    alpha_h = int(sch.get(e).extent)
    sch.reorder(c, i, kx, e)
    sch.parallel(c)
    sch.unroll(e)
    b, i, c = sch.get_loops(pack)
    e, f = sch.split(b, [alpha_h, None])
    sch.reorder(i, c, e, f)
    sch.parallel(i)
    sch.unroll(e)
    sch.unroll(f)


def _transform_input(sch: Schedule) -> None:
    """A thread reads the patch of one tile and channel once, and keeps both steps in registers."""
    v = sch.get_sblock("data_transform")
    e, f, *outer = sch.get_loops(v)
    sch.reorder(*outer, e, f)
    thread = spread(sch, outer)
    _keep(sch, "input_rows", thread)
    _keep(sch, "patch", thread)
    gemm.unroll(sch, e, f)


def _transform_output(sch: Schedule) -> None:
    """A thread reads the products of one tile and channel, and writes what of the tile exists."""
    tile_h, tile_w = gemm.attribute(sch, "tile_h"), gemm.attribute(sch, "tile_w")
    inverse = sch.get_sblock("inverse")
    n, c, y, x = sch.get_loops(inverse)
    y_tile, yi = sch.split(y, [None, tile_h])
    x_tile, xi = sch.split(x, [None, tile_w])
    nchw = gemm.layout(sch) == "NCHW"
    outer = [n, c, y_tile, x_tile] if nchw else [n, y_tile, x_tile, c]
    sch.reorder(*outer, yi, xi)
    thread = spread(sch, outer)
    sch.set_scope(inverse, 0, "local")
    out = sch.get_sblock("out")
    sch.reverse_compute_at(out, thread, preserve_unit_loops=True)
    _keep(sch, "inverse_rows", thread)
    _keep(sch, "product", thread)
    gemm.unroll(sch, yi, xi)
    loops = sch.get_loops(out)[-4:]
    gemm.unroll(sch, *(loops[2:] if nchw else loops[1:3]))


def _keep(sch: Schedule, name: str, thread: LoopRV) -> None:
    """Compute the block for each thread, in registers."""
    block = sch.get_sblock(name)
    sch.set_scope(block, 0, "local")
    sch.compute_at(block, thread, preserve_unit_loops=True)
    gemm.unroll(sch, *sch.get_loops(block)[-2:])
