"""The largest and the smallest along some axes, and where they are.

TVM's own begin with the largest finite number there is, which of nothing but infinities they
return, with a place of -1; and they do not know truth values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, te, tirx, topi

from convtvm.compute.larger import is_no_nan, larger, smaller


def lowest(dtype: Any) -> Any:
    """What no number of `dtype` is below."""
    return tirx.const(-math.inf, dtype) if _is_float(dtype) else tirx.min_value(dtype)


def highest(dtype: Any) -> Any:
    """What no number of `dtype` is above."""
    return tirx.const(math.inf, dtype) if _is_float(dtype) else tirx.max_value(dtype)


def _is_float(dtype: Any) -> bool:
    return str(dtype).startswith("float")


# What comes anew stands first, where it is tested for NaN while the last step is still computed.
LARGEST = te.comm_reducer(lambda found, new: larger(new, found), lowest, "largest")
SMALLEST = te.comm_reducer(lambda found, new: smaller(new, found), highest, "smallest")


def extreme(data: te.Tensor, axes: Sequence[int], keeps_axes: bool, is_largest: bool) -> te.Tensor:
    """The largest, or the smallest, along `axes`."""
    if not axes:
        return topi.identity(data)
    is_truth = str(data.dtype) == "bool"
    reducer, (steps, shape, place) = (
        LARGEST if is_largest else SMALLEST,
        _reduced(data, axes, keeps_axes),
    )

    def element(*out: Any) -> Any:
        value = data(*place(out))
        value = tirx.Cast("int8", value) if is_truth else value
        return reducer(value, axis=list(steps.values()))

    made = te.compute(shape, element, name="extreme")
    if not is_truth:
        return made
    return te.compute(shape, lambda *out: made(*out) != tirx.const(0, "int8"), name="truth")


def place_of_extreme(
    data: te.Tensor, axes: Sequence[int], keeps_axes: bool, is_largest: bool, dtype: str
) -> te.Tensor:
    """Where along `axes`, counted as one, the first of the largest, or the smallest, is."""
    steps, shape, place = _reduced(data, axes, keeps_axes)

    def better(a: Any, b: Any) -> tuple[Any, Any]:
        wins = b[1] > a[1] if is_largest else b[1] < a[1]
        if _is_float(data.dtype):  # the first NaN beats everything
            wins = tirx.Select(is_no_nan(b[1]), wins, is_no_nan(a[1]))
        return tirx.Select(wins, b[0], a[0]), tirx.Select(wins, b[1], a[1])

    def nothing(place_dtype: str, value_dtype: str) -> tuple[Any, Any]:
        none = lowest(value_dtype) if is_largest else highest(value_dtype)
        return tirx.const(0, place_dtype), none

    reducer = te.comm_reducer(better, nothing, "place_of_extreme")

    def element(*out: Any) -> Any:
        number = tirx.const(0, "int32")
        for axis, step in steps.items():
            number = number * data.shape[axis] + step
        return reducer((tirx.Cast("int32", number), data(*place(out))), axis=list(steps.values()))

    places, _ = te.compute(shape, element, name="extreme")
    return te.compute(shape, lambda *out: tirx.Cast(dtype, places(*out)), name="place")


_Place = Callable[[Sequence[Any]], tuple[Any, ...]]


def _reduced(
    data: te.Tensor, axes: Sequence[int], keeps_axes: bool
) -> tuple[dict[int, Any], list[Any], _Place]:
    """The steps along each of `axes`, the shape without them, and what is read for an element."""
    steps = {axis: te.reduce_axis((0, data.shape[axis]), f"k{axis}") for axis in axes}
    extents = list(enumerate(data.shape))
    shape = [1 if axis in steps else e for axis, e in extents if keeps_axes or axis not in steps]

    def place(out: Sequence[Any]) -> tuple[Any, ...]:
        kept = [i for axis, i in enumerate(out) if not (keeps_axes and axis in steps)]
        rest = iter(kept)
        return tuple(steps[axis] if axis in steps else next(rest) for axis, _ in extents)

    return steps, shape, place


# --- legalisation ------------------------------------------------------------------------------

_Rule = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]


def _axes_of(call: relax.Call) -> list[int]:
    """The axes that are reduced, all without any said, from the front."""
    ndim, said = len(call.args[0].ty.shape), call.attrs.axis
    if said is None:
        return list(range(ndim))
    numbers = [said] if isinstance(said, int) else list(said)
    return sorted(int(axis) % ndim for axis in numbers)


def _of_values(is_largest: bool) -> _Rule:
    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        axes, keeps = _axes_of(call), bool(call.attrs.keepdims)
        return builder.call_te(
            lambda data: extreme(data, axes, keeps, is_largest),
            call.args[0],
            primfunc_name_hint="extreme",
        )

    return legalize


def _of_places(is_largest: bool) -> _Rule:
    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        axes, keeps = _axes_of(call), bool(call.attrs.keepdims)
        dtype = str(call.ty.dtype.dtype)
        return builder.call_te(
            lambda data: place_of_extreme(data, axes, keeps, is_largest, dtype),
            call.args[0],
            primfunc_name_hint="place_of_extreme",
        )

    return legalize


LEGALIZE: dict[str, _Rule] = {
    "relax.max": _of_values(True),
    "relax.min": _of_values(False),
    "relax.argmax": _of_places(True),
    "relax.argmin": _of_places(False),
}
