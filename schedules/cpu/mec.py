"""mec"""
from __future__ import annotations
from tvm.s_tir import Schedule
from schedules.cpu import epilogue
from schedules.cpu.im2col import lower, tile_space
from schedules.cpu.registers import *
from schedules.cpu.registers import oc_block, accumulate_in_tile, find_block, layout
from schedules.knobs import Decisions, Space
VERSION = 1
COMPUTE_KNOBS = ("tile_ic",)
def space(sch: Schedule, cpu: CpuModel) -> Space:
    return tile_space(sch, cpu, orders=(0, 1, 2))
def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    out, L, gemm = sch.get_sblock("out"), sch.get_sblock("mec_lower"), find_block(sch, "gemm")
    b = int(sch.mod["main"].params[1].shape[-2])
    ow = extents(sch, "mec_lower")[1]
    if gemm is None:
        f = {1: lambda n, x, r, kx, c: [n, r, c // b, kx, x, c % b], 2: lambda n, x, r, kx, c: [n, r, c // b, kx, c % b, x]}
    else:
        f = {0: lambda n, x, r, kx, c: [n*ow + x, r, kx, c],1: lambda n, x, r, kx, c: [r, c // b, kx, n*ow+x, c % b], 2: lambda n, x, r, kx, c: [r, c // b, kx, c % b, n*ow+x]}
    if d["order"] in f:
        sch.transform_layout(L, ("write", 0), f[d["order"]])
    n, x, r, kx, c = sch.get_loops(L)
    lower(sch, [n, r], x, [kx], c, b, d["order"])
    accumulate_in_tile(sch, out if gemm is None else gemm, d)
    if gemm is None:
        epilogue.store_tile(sch, out, oc_block(sch))
    else:
        loops = sch.get_loops(gemm)[-4:]
        _, y, x, c = loops
        chunk, lane = sch.split(c, [None, oc_block(sch)])
        sch.vectorize(lane)
        for loop in (y, x, chunk):
            sch.unroll(loop)
        loops=sch.get_loops(out)
        sch.parallel(sch.fuse(*loops[:2]))
