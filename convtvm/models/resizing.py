"""Resizing axis by axis: by an index table or by a matrix of weights, both known beforehand.

Every mode is linear in the data, and an axis is resized by itself: `nearest` takes elements,
`linear` and `cubic` multiply with a matrix [new size, old size]. Images that are resized by an
exact scale go by TVM's own operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tvm import relax

from convtvm.models.constants import constant, static_shape

# How a place between two elements becomes one of them, in ONNX's words.
ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
}
_BY_TVM = ("half_pixel", "asymmetric", "align_corners")
# An enlargement by whole numbers that repeats every element as often as any other.
_REPEATS = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
}


@dataclass(frozen=True)
class Axis:
    """How one axis is resized; `scale` is the exact one, `roi` the part that is looked at."""

    old: int
    new: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Manner:
    """How every axis is resized, in ONNX's words; `sharpness` is cubic's coefficient a."""

    mode: str
    places: str
    rounding: str = "floor"
    sharpness: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0
    single: bool = False  # places in float32, as ONNX Runtime has them: halves may fall elsewhere


def resized(
    builder: relax.BlockBuilder, x: relax.Expr, axes: Sequence[Axis], manner: Manner
) -> relax.Expr:
    """`x`, all of whose axes are listed, resized."""
    simple = _by_tvm(x, axes, manner)
    if simple is not None:
        return simple
    cropped = manner.places == "tf_crop_and_resize"
    for index, axis in enumerate(axes):
        if axis.old == axis.new and axis.scale == 1 and not cropped:
            continue
        at = _places(axis, manner)
        if manner.mode == "nearest":
            nearest = ROUNDINGS[manner.rounding](at if manner.single else np.round(at, 9))
            table = np.clip(nearest, 0, axis.old - 1).astype("int64")
            x = builder.emit(relax.op.take(x, constant(table), index, mode="clip"))
        else:
            x = times(builder, x, _weights(at, axis, manner), index)
        if cropped:
            x = _extrapolated(builder, x, (at < 0) | (at > axis.old - 1), index, manner)
    return x


def _places(axis: Axis, manner: Manner) -> np.ndarray:
    """Where in the old axis every new element lies, by ONNX's coordinate transformation mode."""
    mode, number = manner.places, np.dtype("float32" if manner.single else "float64").type
    axis = replace(axis, scale=number(axis.scale))  # type: ignore[arg-type]
    x: np.ndarray = np.arange(axis.new, dtype=number)
    if mode == "align_corners":
        return x * (axis.old - 1) / (axis.new - 1) if axis.new > 1 else x * 0
    if mode == "asymmetric":
        return x / axis.scale
    if mode == "pytorch_half_pixel" and axis.new == 1:
        return x * 0
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / axis.scale
    if mode == "half_pixel_symmetric":
        offset = axis.old / 2 * (1 - axis.new / (axis.scale * axis.old))
        return offset + (x + 0.5) / axis.scale - 0.5
    if mode == "tf_crop_and_resize":
        start, end = axis.roi
        if axis.new == 1:
            return x + 0.5 * (start + end) * (axis.old - 1)
        return start * (axis.old - 1) + x * (end - start) * (axis.old - 1) / (axis.new - 1)
    return (x + 0.5) / axis.scale - 0.5


def _by_tvm(x: relax.Expr, axes: Sequence[Axis], manner: Manner) -> relax.Expr | None:
    """TVM's operator, for images and exact scales."""
    exact = all(abs(axis.old * axis.scale - axis.new) < 1e-6 * axis.new for axis in axes)
    image = len(axes) == 4 and all(axis.old == axis.new for axis in axes[:2])
    if not (exact and image and manner.places in _BY_TVM) or manner.antialias:
        return None
    nearest = manner.mode == "nearest"
    whole = all(axis.new % axis.old == 0 for axis in axes)
    if nearest and not (whole and (manner.places, manner.rounding) in _REPEATS):
        return None
    if manner.mode == "cubic" or not str(x.ty.dtype.dtype).startswith("float"):
        return None
    return relax.op.image.resize2d(
        x,
        size=tuple(axis.new for axis in axes[2:]),
        layout="NCHW",
        method="nearest_neighbor" if nearest else manner.mode,
        coordinate_transformation_mode="asymmetric" if nearest else manner.places,
        rounding_method="floor" if nearest else "",
    )


def _weights(at: np.ndarray, axis: Axis, manner: Manner) -> np.ndarray:
    """The matrix [new, old] of an axis; elements beyond its ends repeat the outermost one."""
    stretch = 1 / axis.scale if manner.antialias and axis.scale < 1 else 1.0
    reach = (1 if manner.mode == "linear" else 2) * stretch
    matrix = np.zeros((axis.new, axis.old))
    for row, place in enumerate(at):
        taps = np.arange(math.floor(place - reach), math.ceil(place + reach) + 1)
        distance = np.abs(taps - place) / stretch
        if manner.mode == "linear":
            weights = np.maximum(0, 1 - distance)
        else:
            weights = _cubic(distance, manner.sharpness)
        if manner.exclude_outside:
            weights = np.where((taps < 0) | (taps >= axis.old), 0, weights)
        np.add.at(matrix[row], np.clip(taps, 0, axis.old - 1), weights / weights.sum())
    return matrix


def _cubic(d: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def times(builder: relax.BlockBuilder, x: relax.Expr, matrix: np.ndarray, axis: int) -> relax.Expr:
    """`x` with one axis multiplied by a matrix [new, old]."""
    ndim, dtype = len(static_shape(x)), str(x.ty.dtype.dtype)
    if axis == ndim - 1:
        return builder.emit(relax.op.matmul(x, constant(matrix.T.astype(dtype))))
    if axis == ndim - 2:
        return builder.emit(relax.op.matmul(constant(matrix.astype(dtype)), x))
    order = [i for i in range(ndim) if i != axis] + [axis]
    last = builder.emit(relax.op.permute_dims(x, order))
    made = builder.emit(relax.op.matmul(last, constant(matrix.T.astype(dtype))))
    return builder.emit(relax.op.permute_dims(made, [order.index(i) for i in range(ndim)]))


def _extrapolated(
    builder: relax.BlockBuilder, x: relax.Expr, outside: np.ndarray, axis: int, manner: Manner
) -> relax.Expr:
    """`x` with the elements outside of the data replaced."""
    shape = [1] * len(static_shape(x))
    shape[axis] = len(outside)
    value = constant(np.array(manner.extrapolation, str(x.ty.dtype.dtype)))
    return builder.emit(relax.op.where(constant(outside.reshape(shape)), value, x))
