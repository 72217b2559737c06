"""Inputs that decide by themselves what a model computes, such as the rate of a sound."""

from __future__ import annotations

import operator
from collections.abc import Callable

from tvm import relax

from convtvm.models.constants import array_of, op_name, static_shape

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "relax.equal": operator.eq,
    "relax.not_equal": operator.ne,
    "relax.less": operator.lt,
    "relax.less_equal": operator.le,
    "relax.greater": operator.gt,
    "relax.greater_equal": operator.ge,
}
_PASSING = ("relax.reshape", "relax.astype", "relax.squeeze", "relax.expand_dims")


def inputs(builder: relax.BlockBuilder, condition: relax.Expr, wanted: bool) -> dict[str, float]:
    """An input and a number for it that makes `condition` what is wanted; none where it hangs on
    more than one input of one number, compared with a constant."""
    condition = _source(builder, condition)
    call = _call(builder, condition)
    if call is None:
        return {condition.name: float(wanted)} if _is_number(condition) else {}
    name = op_name(call)
    if name == "relax.logical_not":
        return inputs(builder, call.args[0], not wanted)
    if name not in _COMPARISONS:
        return {}
    sides = [_source(builder, arg) for arg in call.args]
    arrays = [array_of(side) for side in sides]
    for side, array, is_first in zip(sides, arrays[::-1], (True, False), strict=True):
        if array is None or array.size != 1 or not _is_number(side):
            continue
        if _call(builder, side) is not None:
            continue
        bound, compare = float(array.item()), _COMPARISONS[name]
        for number in (bound, bound - 1, bound + 1):
            if compare(*((number, bound) if is_first else (bound, number))) == wanted:
                return {side.name: number}
    return {}


def _source(builder: relax.BlockBuilder, expr: relax.Expr) -> relax.Expr:
    """What `expr` is but for its shape and type."""
    call = _call(builder, expr)
    while call is not None and op_name(call) in _PASSING:
        expr = call.args[0]
        call = _call(builder, expr)
    return expr


def _call(builder: relax.BlockBuilder, expr: relax.Expr) -> relax.Call | None:
    bound = builder.lookup_binding(expr) if isinstance(expr, relax.Var) else None
    return bound if isinstance(bound, relax.Call) else None


def _is_number(expr: relax.Expr) -> bool:
    """Whether this is a variable of one element."""
    return isinstance(expr, relax.Var) and all(extent == 1 for extent in static_shape(expr))
