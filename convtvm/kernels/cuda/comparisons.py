"""The larger and the smaller of two floats as comparisons, which is what TVM's own mean.

CUDA's `max` and `min` give the number where the other side is NaN. `a > b ? a : b` gives b, as on
CPUs, and epilogues rely on it.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.Comparisons")
def write_out(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func` without maxima and minima of floats."""

    def is_float(value: tirx.PrimExpr) -> bool:
        return "float" in str(value.ty)

    def on_max(value: tirx.Max) -> tirx.PrimExpr:
        a, b = value.a, value.b
        return tirx.Select(tirx.GT(a, b), a, b) if is_float(value) else value

    def on_min(value: tirx.Min) -> tirx.PrimExpr:
        a, b = value.a, value.b
        return tirx.Select(tirx.LT(a, b), a, b) if is_float(value) else value

    maps = [(tirx.Max, on_max), (tirx.Min, on_min)]
    return tvm_ffi.structural_map(func, maps, order="post")
