"""One factor and one value a channel: multiplied into the weights and added to the bias before."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from tvm import relax

from convtvm.models.constants import array_of, constant, op_name, static_shape

# Where a weight counts its output channels; a transposed one counts those of a group there.
LAYERS = {
    "relax.nn.conv1d": 0,
    "relax.nn.conv2d": 0,
    "relax.nn.conv3d": 0,
    "relax.nn.conv1d_transpose": 1,
    "relax.nn.conv2d_transpose": 1,
    "relax.nn.conv3d_transpose": 1,
    "relax.matmul": -1,
}


class Scope(Protocol):
    """The function in which a value stands."""

    def call(self, expr: relax.Expr, *names: str) -> relax.Call | None:
        """The call of one of these operators that `expr` is bound to."""

    def only_call(self, expr: relax.Expr, *names: str) -> relax.Call | None:
        """The same, if nothing else reads it."""

    def emit(self, value: relax.Expr) -> relax.Var:
        """A variable for a value that is read once."""


def channels_of(scope: Scope, x: relax.Expr) -> tuple[int, int]:
    """The axis of a result that counts channels, and how many there are."""
    shape = static_shape(x)
    added = scope.call(x, "relax.add")
    dense = scope.call(x if added is None else added.args[0], "relax.matmul")
    axis = 1 if dense is None and len(shape) > 2 else len(shape) - 1
    return axis, shape[axis] if shape else 1


def per_channel(operand: relax.Expr, x: relax.Expr, axis: int) -> np.ndarray | None:
    """A constant operand as one value for every channel of `x`, None if it is no such thing."""
    array, shape = array_of(operand), static_shape(x)
    if array is None or not shape or array.ndim > len(shape) or array.dtype.kind != "f":
        return None
    full = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if any(extent != 1 for i, extent in enumerate(full.shape) if i != axis):
        return None
    if full.size not in (1, shape[axis]):
        return None
    return np.broadcast_to(full.reshape(-1), (shape[axis],)).astype(np.float64)


def like(values: np.ndarray, x: relax.Expr, axis: int) -> relax.Expr:
    """One value a channel as a constant that broadcasts to `x`."""
    ndim = len(static_shape(x))
    shape = [1] * ndim
    shape[axis] = len(values)
    trailing = axis == ndim - 1
    return constant(values.astype(str(x.ty.dtype.dtype)).reshape(-1 if trailing else shape))


def _scaled_weight(call: relax.Call, scale: np.ndarray) -> relax.Expr | None:
    """The weight of a convolution or dense layer whose output channels are multiplied; None where
    it would no longer be of numbers."""
    weight, axis = array_of(call.args[1]), LAYERS[op_name(call)]
    if weight is None or weight.ndim < 2:
        return None
    wide = weight.astype(np.float64)
    if axis == 1:  # [ic, oc of a group, ...]: the channels of a group are a block of ic
        groups = call.attrs.groups
        split = wide.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        factor = scale.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))
        product = (split * factor).reshape(weight.shape)
    else:
        shape = [1] * weight.ndim
        shape[axis] = -1
        product = wide * scale.reshape(shape)
    with np.errstate(over="ignore"):
        narrow = product.astype(weight.dtype)
    if not np.array_equal(np.isfinite(narrow), np.isfinite(weight)):
        return None
    return constant(narrow)


def _with_weight(call: relax.Call, weight: relax.Expr) -> relax.Call:
    return relax.Call(call.op, [call.args[0], weight], call.attrs)


def scaled(scope: Scope, x: relax.Expr, scale: np.ndarray) -> relax.Expr | None:
    """`x` times one factor a channel, by scaling the weights that made it."""
    added = scope.only_call(x, "relax.add")
    layer = scope.only_call(x if added is None else added.args[0], *LAYERS)
    axis, _ = channels_of(scope, x)
    shift = per_channel(added.args[1], x, axis) if added is not None else None
    if layer is None or (added is not None and shift is None):
        return None
    weight = _scaled_weight(layer, scale)
    if weight is None:
        return None
    if shift is None:
        return _with_weight(layer, weight)
    return relax.op.add(scope.emit(_with_weight(layer, weight)), like(shift * scale, x, axis))


def shifted(scope: Scope, x: relax.Expr, shift: np.ndarray) -> relax.Expr:
    """`x` plus one value a channel, added to the bias that is there."""
    axis, _ = channels_of(scope, x)
    if not shift.any():
        return x
    added = scope.only_call(x, "relax.add")
    if added is not None and scope.call(added.args[0], *LAYERS) is not None:
        before = per_channel(added.args[1], x, axis)
        if before is not None:
            return relax.op.add(added.args[0], like(before + shift, x, axis))
    return relax.op.add(x, like(shift, x, axis))
