"""Constants of a Relax function: their arrays, and operators whose operands are all constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

# Larger results than this are not made from smaller constants: a broadcast weight would be stored.
_LARGEST_GROWTH = 1 << 16


def op_name(call: relax.Call) -> str:
    """`relax.add` and the like; the name of the function for a call of one."""
    return call.op.name if isinstance(call.op, tvm.ir.Op) else str(call.op)


def array_of(expr: relax.Expr) -> np.ndarray | None:
    """The array of a constant, None for any other expression."""
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def constant(array: np.ndarray) -> relax.Expr:
    """A constant of exactly the dtype of `array`."""
    return relax.const(np.require(array, requirements="C"), str(array.dtype))


def static_shape(expr: relax.Expr) -> tuple[int, ...]:
    """The shape of a tensor expression with static shape."""
    return tuple(int(extent) for extent in expr.ty.shape)


def folded(call: relax.Call) -> relax.Expr | None:
    """The constant that a call with constant operands is, if numpy computes its operator."""
    rule = _NUMPY.get(op_name(call))
    if rule is None:
        return None
    arrays = [array_of(arg) for arg in call.args if not isinstance(arg, relax.ShapeExpr)]
    if not arrays or any(array is None for array in arrays):
        return None
    with np.errstate(all="ignore"):
        value = np.asarray(rule(call, *arrays))
    if value.size > max(_LARGEST_GROWTH, *(array.size for array in arrays if array is not None)):
        return None
    return constant(value.astype(str(call.ty.dtype.dtype), copy=False))


def _shaped(call: relax.Call, x: np.ndarray) -> np.ndarray:
    return x.reshape(static_shape(call))


def _permuted(call: relax.Call, x: np.ndarray) -> np.ndarray:
    axes = call.attrs.axes
    return np.transpose(x, None if axes is None else [int(axis) for axis in axes])


def _plain(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """numpy's function of the operands, without the call."""
    return lambda call, *arrays: function(*arrays)


_NUMPY: dict[str, Callable[..., np.ndarray]] = {
    "relax.permute_dims": _permuted,
    "relax.reshape": _shaped,
    "relax.expand_dims": _shaped,
    "relax.squeeze": _shaped,
    "relax.broadcast_to": lambda call, x: np.broadcast_to(x, static_shape(call)),
    "relax.astype": _plain(lambda x: x),
    "relax.add": _plain(np.add),
    "relax.subtract": _plain(np.subtract),
    "relax.multiply": _plain(np.multiply),
    "relax.divide": _plain(np.true_divide),
    "relax.power": _plain(np.power),
    "relax.maximum": _plain(np.maximum),
    "relax.minimum": _plain(np.minimum),
    "relax.negative": _plain(np.negative),
    "relax.sqrt": _plain(np.sqrt),
    "relax.rsqrt": _plain(lambda x: 1 / np.sqrt(x)),
    "relax.exp": _plain(np.exp),
    "relax.abs": _plain(np.abs),
}
