"""The machine's fp32 peak, measured: a register-tiled product of two matrices that stay in L1."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import te
from tvm.s_tir import Schedule

from convtvm import codegen
from convtvm.targets import CompileTarget

_K = 256
_REPEATS = 64  # products per thread and call, to outweigh the launch


def measure_peak(target: CompileTarget, samples: int = 15) -> float:
    """FLOP/s of `target.threads` cores on this machine; the fastest of `samples` timings."""
    # As many accumulators as fit with their operands: 6 x 2 of 16 registers, 14 x 2 of 32.
    rows, vectors = (14, 2) if target.registers >= 32 else (6, 2)
    columns = vectors * target.lanes
    shape = (target.threads, _REPEATS, rows, columns)
    a = te.placeholder((_K, rows), name="a")
    b = te.placeholder((_K, columns), name="b")
    k = te.reduce_axis((0, _K), name="k")
    product = te.compute(
        shape, lambda t, r, i, j: te.sum(a[k, i] * b[k, j], axis=k), name="product"
    )
    sch = Schedule(te.create_prim_func([a, b, product]))
    block = sch.get_sblock("product")
    thread, _, i, j, kk = sch.get_loops(block)
    jo, ji = sch.split(j, [vectors, target.lanes])
    sch.reorder(kk, i, jo, ji)
    sch.parallel(thread)
    sch.vectorize(ji)
    sch.unroll(i)
    sch.unroll(jo)
    init = sch.get_loops(sch.decompose_reduction(block, kk))
    sch.vectorize(init[-1])
    sch.unroll(init[-2])
    sch.unroll(init[-3])
    module = codegen.compile_lowered(codegen.lower(sch.mod, target.tvm), target.tvm)
    args = [tvm.runtime.tensor(np.ones((_K, n), np.float32)) for n in (rows, columns)]
    args.append(tvm.runtime.empty(shape, "float32"))
    timer = module.time_evaluator("main", tvm.cpu(), number=10, repeat=samples)
    flops = 2.0 * target.threads * _REPEATS * rows * columns * _K
    return flops / min(float(s) for s in timer(*args).results)
