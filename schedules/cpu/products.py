"""Products of one panel that know nothing of each other, each by register tiles of its own."""

from __future__ import annotations

import math

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx import IterVar

from schedules.cpu.registers import PREFETCH, tile_order, vectorize_innermost
from schedules.knobs import Decisions


def multiply(sch: Schedule, gemm: SBlockRV, d: Decisions, at_channels: bool) -> None:
    """Schedule `gemm`, whose innermost loops are over products, output channels in vectors,
    positions, the lanes of a vector and its sums, with a register tile of tile_p positions by
    tile_oc vectors; `at_channels` says that all products come before the next channel tile.

    The weight has the axes [products.., channels, sums.., lanes]. With `prefetch` the block that
    comes next is fetched meanwhile.
    """
    kinds = [int(var.iter_type) for var in sch.get(gemm).iter_vars]
    spatial = kinds.count(IterVar.DataPar)
    loops = sch.get_loops(gemm)[-len(kinds) :]
    *products, co, p, cb = loops[:spatial]
    sums = loops[spatial:]
    po, pi = sch.split(p, [None, d["tile_p"]])
    co, ci = sch.split(co, [None, d["tile_oc"]])
    tile: list[LoopRV] = tile_order(d["tile_p"], d["tile_oc"], [pi], [ci])
    sch.reorder(*products, co, po, *sums, *tile, cb)
    write = sch.cache_write(gemm, 0, "global")
    sch.reverse_compute_at(write, po, preserve_unit_loops=True)
    if d["prefetch"]:
        chunks, *chunk = map(int, sch.mod["main"].params[1].shape[-2 - len(sums) :])
        block = d["tile_oc"] * math.prod(chunk)
        # Next come the same channels of another product, or other channels of the same one.
        distance = block // d["tile_oc"] * chunks if at_channels else block
        sch.annotate(po, PREFETCH, [block, distance, int(sch.get(po).extent)])
    sch.vectorize(cb)
    for loop in tile:
        sch.unroll(loop)
    vectorize_innermost(sch, write, unroll=2)
    vectorize_innermost(sch, sch.decompose_reduction(gemm, sums[0]), unroll=2)
