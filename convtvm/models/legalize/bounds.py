"""Bounds and signs of numbers, the larger and the smaller of two: NaN, of which TVM's own make a
number, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from convtvm.compute.larger import larger, smaller
from convtvm.models.constants import array_of

_Choice = Callable[[Any, Any], Any]


def _within(low: float, high: float, dtype: str) -> Callable[[Any], Any]:
    """What keeps a number of `dtype` from `low` to `high`."""

    def bound(value: float) -> Any:
        return tirx.const(value if dtype.startswith("float") else int(value), dtype)

    def bounded(x: Any) -> Any:
        above = x if low == -np.inf else larger(bound(low), x)
        return above if high == np.inf else smaller(bound(high), above)

    return bounded


def _number(expr: Any) -> float:
    value = getattr(expr, "value", expr)
    return float(getattr(value, "value", value))


def _clip(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    dtype = str(call.ty.dtype.dtype)
    if not dtype.startswith("float"):
        return call.op.get_attr("FLegalize")(builder, call)
    low, high = (_number(bound) for bound in call.args[1:3])
    return _each(builder, call.args[0], _within(low, high, dtype), "clip")


def _fixed(low: float, high: float) -> Callable[..., relax.Expr]:
    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        bounded = _within(low, high, str(call.ty.dtype.dtype))
        return _each(builder, call.args[0], bounded, "relu")

    return legalize


def _each(
    builder: relax.BlockBuilder, x: relax.Expr, function: Callable[[Any], Any], name: str
) -> relax.Expr:
    def compute(data: te.Tensor) -> te.Tensor:
        return te.compute(data.shape, lambda *i: function(data(*i)), name=name)

    return builder.call_te(compute, x, primfunc_name_hint=name)


def _sign(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    dtype = str(call.ty.dtype.dtype)

    def sign(x: Any) -> Any:
        below = tirx.Select(x < tirx.const(0, dtype), tirx.const(-1, dtype), x)
        return tirx.Select(x > tirx.const(0, dtype), tirx.const(1, dtype), below)

    if dtype.startswith("uint"):
        return call.op.get_attr("FLegalize")(builder, call)
    return _each(builder, call.args[0], sign, "sign")


def _of_two(choose: _Choice, name: str) -> Callable[..., relax.Expr]:
    """Of tensors that broadcast; a constant of one number is written into the function."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        shape = [int(extent) for extent in call.ty.shape]
        numbers = [_constant(arg) for arg in call.args]
        tensors = [a for a, n in zip(call.args, numbers, strict=True) if n is None]

        def compute(*given: te.Tensor) -> te.Tensor:
            rest = iter(given)
            sides = [next(rest) if number is None else number for number in numbers]
            return te.compute(shape, lambda *i: choose(*(_at(s, i) for s in sides)), name=name)

        return builder.call_te(compute, *tensors, primfunc_name_hint=name)

    return legalize


def _constant(arg: relax.Expr) -> Any:
    array = array_of(arg)
    if array is None or array.size != 1:
        return None
    return tirx.const(array.item(), str(array.dtype))


def _at(side: Any, place: Sequence[Any]) -> Any:
    """What stands at a place of the result in a side that broadcasts to it."""
    if not isinstance(side, te.Tensor):
        return side
    last = place[len(place) - len(side.shape) :]
    return side(*(0 if int(n) == 1 else i for n, i in zip(side.shape, last, strict=True)))


LEGALIZE: dict[str, Callable[[relax.BlockBuilder, relax.Call], relax.Expr]] = {
    "relax.nn.relu": _fixed(0.0, np.inf),
    "relax.nn.relu6": _fixed(0.0, 6.0),
    "relax.clip": _clip,
    "relax.sign": _sign,
    "relax.maximum": _of_two(larger, "maximum"),
    "relax.minimum": _of_two(smaller, "minimum"),
}
