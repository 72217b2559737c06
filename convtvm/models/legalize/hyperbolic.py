"""Hyperbolic cosine and sine by the exponential function, which comes in vectors; LLVM has none of
them for a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax, te, tirx

_SMALL = 1.0  # below which the difference of two exponentials has lost its last digits
_STEPS = (6, 20, 42, 72, 110)  # of the series x (1 + x^2 / 6 (1 + x^2 / 20 (1 + ...


def cosh(x: Any) -> Any:
    """Of a number; infinite where that is too large for its type."""
    half = _half_of_exponential(x)
    return half + tirx.const(0.25, x.ty.dtype) / half


def sinh(x: Any) -> Any:
    """Of a number; infinite where that is too large for its type."""
    dtype = x.ty.dtype
    half = _half_of_exponential(x)
    size = half - tirx.const(0.25, dtype) / half
    one, series = tirx.const(1, dtype), tirx.const(1, dtype)
    for step in reversed(_STEPS):
        series = one + x * x * tirx.const(1 / step, dtype) * series
    is_small = tirx.abs(x) < tirx.const(_SMALL, dtype)
    return tirx.Select(is_small, x * series, tirx.Select(x < tirx.const(0, dtype), -size, size))


def _half_of_exponential(x: Any) -> Any:
    """Half of exp(|x|), which is finite wherever the result is."""
    root = tirx.exp(tirx.abs(x) * tirx.const(0.5, x.ty.dtype))
    return tirx.const(0.5, x.ty.dtype) * root * root


def _elementwise(function: Callable[[Any], Any]) -> Callable[..., relax.Expr]:
    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        def compute(data: te.Tensor) -> te.Tensor:
            return te.compute(data.shape, lambda *i: function(data(*i)), name=function.__name__)

        return builder.call_te(compute, call.args[0], primfunc_name_hint=function.__name__)

    return legalize


LEGALIZE = {"relax.cosh": _elementwise(cosh), "relax.sinh": _elementwise(sinh)}
