"""Resize and Upsample: by TVM's operator where both agree, else axis by axis.

Every mode is linear in the data, and an axis is resized by itself: `nearest` takes elements by an
index table, the others multiply with a matrix of weights [new size, old size].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax

from convtvm.models.constants import constant
from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node

_BY_TVM = ("half_pixel", "asymmetric", "align_corners")


@dataclass(frozen=True)
class Axis:
    """How one axis is resized; `scale` is the exact one, `roi` the part that is looked at."""

    old: int
    new: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)

    def places(self, mode: str) -> np.ndarray:
        """Where in the old axis every new element lies, by coordinate transformation mode."""
        x = np.arange(self.new, dtype=np.float64)
        if mode == "align_corners":
            return x * (self.old - 1) / (self.new - 1) if self.new > 1 else x * 0
        if mode == "asymmetric":
            return x / self.scale
        if mode == "pytorch_half_pixel" and self.new == 1:
            return x * 0
        if mode == "tf_half_pixel_for_nn":
            return (x + 0.5) / self.scale
        if mode == "half_pixel_symmetric":
            adjusted = self.new / (self.scale * self.old)
            offset = self.old / 2 * (1 - adjusted)
            return offset + (x + 0.5) / self.scale - 0.5
        if mode == "tf_crop_and_resize":
            start, end = self.roi
            if self.new == 1:
                return x + 0.5 * (start + end) * (self.old - 1)
            return start * (self.old - 1) + x * (end - start) * (self.old - 1) / (self.new - 1)
        return (x + 0.5) / self.scale - 0.5


def _resize(node: Node) -> relax.Expr:
    axes = _axes(node)
    mode = node.get("mode", "nearest")
    mode = {"bilinear": "linear"}.get(mode, mode)
    # Before opset 11 there was one rule, and no attribute for it.
    places = node.get("coordinate_transformation_mode", "half_pixel")
    places = places if node.opset >= 11 else "asymmetric"
    if mode not in ("nearest", "linear", "cubic"):
        raise node.fails(f"resizes by mode {mode}, expected nearest, linear or cubic")
    simple = _simple(node, axes, mode, places)
    if simple is not None:
        return simple
    x = node.input()
    for index, axis in enumerate(axes):
        if axis.old == axis.new and axis.scale == 1 and places != "tf_crop_and_resize":
            continue
        at = axis.places(places)
        if mode == "nearest":
            table = _nearest(at, axis, node)
            x = node.emit(relax.op.take(x, constant(table), index, mode="clip"))
        else:
            x = _times(node, x, _weights(at, axis, mode, node), index)
        if places == "tf_crop_and_resize":
            x = _extrapolated(node, x, (at < 0) | (at > axis.old - 1), index)
    return x


def _axes(node: Node) -> list[Axis]:
    """Every axis of the operand, from scales or sizes."""
    shape = node.shape()
    scales, sizes, roi = _operands(node)
    chosen = node.axes(node.get("axes") or range(len(shape)), len(shape))
    found = [Axis(n, n, 1.0) for n in shape]
    given = scales if scales is not None else sizes
    if given is None or len(given) != len(chosen):
        raise node.fails(f"expected a scale or a size for each of {len(chosen)} axes")
    if (
        sizes is not None
        and (policy := node.get("keep_aspect_ratio_policy", "stretch")) != "stretch"
    ):
        pick = min if policy == "not_larger" else max
        ratio = pick(size / shape[axis] for size, axis in zip(sizes, chosen, strict=True))
        sizes = [math.floor(ratio * shape[axis] + 0.5) for axis in chosen]
        scales, given = [ratio] * len(chosen), sizes
    for i, axis in enumerate(chosen):
        old = shape[axis]
        new = int(sizes[i]) if sizes is not None else math.floor(old * scales[i])  # type: ignore[index]
        scale = float(scales[i]) if scales is not None else new / old
        ends = (float(roi[i]), float(roi[i + len(chosen)])) if len(roi) else (0.0, 1.0)
        if new < 1:
            raise node.fails(f"leaves nothing of axis {axis}")
        found[axis] = Axis(old, new, scale, ends)
    return found


def _operands(node: Node) -> tuple[Sequence[float] | None, list[int] | None, np.ndarray]:
    """Scales, sizes and the region of interest; which operand is which depends on the opset."""
    none = np.zeros(0)
    if node.proto.op_type == "Upsample" or node.opset < 11:
        array = node.array(1, "scales")
        scales = node.get("scales") if array is None else array.reshape(-1).tolist()
        return scales, None, none
    roi, scales, sizes = (
        node.array(i, name) for i, name in ((1, "roi"), (2, "scales"), (3, "sizes"))
    )
    return (
        None if scales is None or not scales.size else scales.reshape(-1).tolist(),
        None if sizes is None or not sizes.size else [int(size) for size in sizes.reshape(-1)],
        none if roi is None else roi.reshape(-1),
    )


def _simple(node: Node, axes: list[Axis], mode: str, places: str) -> relax.Expr | None:
    """TVM's operator, for images and exact scales."""
    exact = all(abs(axis.old * axis.scale - axis.new) < 1e-6 * axis.new for axis in axes)
    whole = all(axis.new % axis.old == 0 for axis in axes)
    image = len(axes) == 4 and all(axis.old == axis.new for axis in axes[:2])
    if not (exact and image and places in _BY_TVM and mode != "cubic"):
        return None
    if node.get("antialias", 0) or not node.dtype().startswith("float"):
        return None
    if mode == "nearest" and not (whole and _nearest_is_plain(node, places)):
        return None
    return relax.op.image.resize2d(
        node.input(),
        size=tuple(axis.new for axis in axes[2:]),
        layout="NCHW",
        method="nearest_neighbor" if mode == "nearest" else mode,
        coordinate_transformation_mode="asymmetric" if mode == "nearest" else places,
        rounding_method="floor" if mode == "nearest" else "",
    )


def _nearest_is_plain(node: Node, places: str) -> bool:
    """Does an enlargement by whole numbers repeat every element as often?"""
    rounding = node.get("nearest_mode", "round_prefer_floor") if node.opset >= 11 else "floor"
    return (places, rounding) in {
        ("asymmetric", "floor"),
        ("half_pixel", "round_prefer_floor"),
        ("half_pixel", "round_prefer_ceil"),
    }


def _nearest(at: np.ndarray, axis: Axis, node: Node) -> np.ndarray:
    """The element that every new one takes."""
    rounding = node.get("nearest_mode", "round_prefer_floor") if node.opset >= 11 else "floor"
    at = np.round(at, 9)  # a half that is one but for the last bit
    rules: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    }
    if rounding not in rules:
        raise node.fails(f"rounds by {rounding}, expected one of {', '.join(rules)}")
    return np.clip(rules[rounding](at), 0, axis.old - 1).astype("int64")


def _weights(at: np.ndarray, axis: Axis, mode: str, node: Node) -> np.ndarray:
    """The matrix [new, old] of an axis."""
    smooth = bool(node.get("antialias", 0)) and axis.scale < 1
    stretch = 1 / axis.scale if smooth else 1.0
    reach = (1 if mode == "linear" else 2) * stretch
    sharpness = float(node.get("cubic_coeff_a", -0.75))
    drop = bool(node.get("exclude_outside", 0))
    matrix = np.zeros((axis.new, axis.old))
    for row, place in enumerate(at):
        taps = np.arange(math.floor(place - reach), math.ceil(place + reach) + 1)
        distance = np.abs(taps - place) / stretch
        weights = _triangle(distance) if mode == "linear" else _cubic(distance, sharpness)
        if drop:
            weights = np.where((taps < 0) | (taps >= axis.old), 0, weights)
        np.add.at(matrix[row], np.clip(taps, 0, axis.old - 1), weights / weights.sum())
    return matrix


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - distance)


def _cubic(d: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _times(node: Node, x: relax.Expr, matrix: np.ndarray, axis: int) -> relax.Expr:
    """`x` with one axis multiplied by a matrix [new, old]."""
    ndim, dtype = len(x.ty.shape), str(x.ty.dtype.dtype)
    if axis == ndim - 1:
        return node.emit(relax.op.matmul(x, constant(matrix.T.astype(dtype))))
    if axis == ndim - 2:
        return node.emit(relax.op.matmul(constant(matrix.astype(dtype)), x))
    order = [i for i in range(ndim) if i != axis] + [axis]
    last = node.emit(relax.op.permute_dims(x, order))
    made = node.emit(relax.op.matmul(last, constant(matrix.T.astype(dtype))))
    return node.emit(relax.op.permute_dims(made, [order.index(i) for i in range(ndim)]))


def _extrapolated(node: Node, x: relax.Expr, outside: np.ndarray, axis: int) -> relax.Expr:
    """`x` with the elements outside of the data replaced."""
    shape = [1] * len(x.ty.shape)
    shape[axis] = len(outside)
    value = node.const(node.get("extrapolation_value", 0.0))
    return node.emit(relax.op.where(constant(outside.reshape(shape)), value, x))


CONVERTERS: dict[str, Converter] = {"Resize": _resize, "Upsample": _resize}
