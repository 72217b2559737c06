"""Converters of ATen operators that TVM's importer lacks or gets wrong.

A converter takes a node of the exported graph and the importer, whose `env` holds the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from convtvm.errors import ModelError
from convtvm.models.constants import constant, static_shape
from convtvm.models.resizing import Axis, Manner, resized

Converter = Callable[[fx.Node, ExportedProgramImporter], Any]


def _argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument by position or by name."""
    found = node.args[index] if index < len(node.args) else node.kwargs.get(name, default)
    return default if found is None else found


def _reduction(operator: Callable[..., relax.Expr]) -> Converter:
    """Over some axes, or over all where there are none."""

    def convert(node: fx.Node, importer: ExportedProgramImporter) -> relax.Var:
        x = importer.env[node.args[0]]
        axes = _argument(node, 1, "dim", [])
        axes = [axes] if isinstance(axes, int) else list(axes)
        kept = bool(_argument(node, 2, "keepdim", False))
        return importer.block_builder.emit(operator(x, axes or None, kept))

    return convert


def _var_mean(node: fx.Node, importer: ExportedProgramImporter) -> tuple[relax.Var, relax.Var]:
    emit, x = importer.block_builder.emit, importer.env[node.args[0]]
    shape = static_shape(x)
    axes = [axis % len(shape) for axis in _argument(node, 1, "dim", list(range(len(shape))))]
    correction = float(node.kwargs.get("correction") if "correction" in node.kwargs else 1)
    kept = bool(node.kwargs.get("keepdim", False))
    count = math.prod(shape[axis] for axis in axes)
    mean = emit(relax.op.mean(x, axes, True))
    centred = emit(relax.op.subtract(x, mean))
    total = emit(relax.op.sum(relax.op.multiply(centred, centred), axes, True))
    factor = np.array(1 / max(count - correction, 0) if count > correction else math.nan)
    variance = emit(relax.op.multiply(total, constant(factor.astype(str(x.ty.dtype.dtype)))))
    if kept:
        return variance, mean
    return emit(relax.op.squeeze(variance, axes)), emit(relax.op.squeeze(mean, axes))


def _elu(node: fx.Node, importer: ExportedProgramImporter) -> relax.Var:
    """SELU and CELU are this one with other scales."""
    emit, x = importer.block_builder.emit, importer.env[node.args[0]]
    dtype = str(x.ty.dtype.dtype)
    alpha, scale, slope = (
        float(_argument(node, i, name, 1.0))
        for i, name in ((1, "alpha"), (2, "scale"), (3, "input_scale"))
    )

    def number(value: float) -> relax.Expr:
        return constant(np.array(value, dtype))

    below = emit(relax.op.multiply(relax.op.minimum(x, number(0)), number(slope)))
    below = emit(relax.op.subtract(relax.op.exp(below), number(1)))
    below = emit(relax.op.multiply(below, number(alpha * scale)))
    above = emit(relax.op.multiply(relax.op.maximum(x, number(0)), number(scale)))
    return emit(relax.op.add(above, below))


def _lerp(node: fx.Node, importer: ExportedProgramImporter) -> relax.Var:
    emit = importer.block_builder.emit
    start, end = importer.env[node.args[0]], importer.env[node.args[1]]
    weight = _argument(node, 2, "weight")
    if isinstance(weight, fx.Node):
        factor = importer.env[weight]
    else:
        factor = constant(np.array(weight, str(start.ty.dtype.dtype)))
    way = emit(relax.op.multiply(emit(relax.op.subtract(end, start)), factor))
    return emit(relax.op.add(start, way))


def _adaptive_max_pool(
    node: fx.Node, importer: ExportedProgramImporter
) -> tuple[relax.Var, relax.Var]:
    """The indices, which nobody may read, are zeros."""
    emit, x = importer.block_builder.emit, importer.env[node.args[0]]
    for axis, size in zip((-2, -1), node.args[1], strict=True):
        extent = static_shape(x)[axis]
        parts = []
        for i in range(size):
            begin, end = i * extent // size, -(-(i + 1) * extent // size)
            part = relax.op.strided_slice(x, [len(static_shape(x)) + axis], [begin], [end])
            parts.append(emit(relax.op.max(emit(part), [axis], True)))
        x = parts[0] if size == 1 else emit(relax.op.concat(parts, axis))
    _unread(node, 1, "the indices of a maximum")
    return x, emit(relax.op.zeros(static_shape(x), "int64"))


def _unread(node: fx.Node, index: int, what: str) -> None:
    """Refuse a model that reads an output of a node which is not computed."""
    for user in node.users:
        if user.op == "output" or (user.args[1:] == (index,) and user.users):
            raise ModelError(f"{what} cannot be computed; do without them")


def _upsample(mode: str) -> Converter:
    """`interpolate` of an image by a size or by scales."""

    def convert(node: fx.Node, importer: ExportedProgramImporter) -> relax.Expr:
        x = importer.env[node.args[0]]
        shape = static_shape(x)
        aligned = mode != "nearest" and bool(_argument(node, 2, "align_corners", False))
        scales = _argument(node, 2 if mode == "nearest" else 3, "scale_factors", [])
        sizes = _argument(node, 1, "output_size", [])
        axes = [Axis(extent, extent, 1.0) for extent in shape[:2]]
        for i, extent in enumerate(shape[2:]):
            new = int(sizes[i]) if sizes else math.floor(extent * scales[i])
            axes.append(Axis(extent, new, float(scales[i]) if scales else new / extent))
        places = "asymmetric" if mode == "nearest" else "half_pixel"
        manner = Manner(mode, "align_corners" if aligned else places)
        return importer.block_builder.emit(resized(importer.block_builder, x, axes, manner))

    return convert


def _grid_sample(node: fx.Node, importer: ExportedProgramImporter) -> relax.Var:
    x, grid = importer.env[node.args[0]], importer.env[node.args[1]]
    method = ("bilinear", "nearest", "bicubic")[_argument(node, 2, "interpolation_mode", 0)]
    padding = ("zeros", "border", "reflection")[_argument(node, 3, "padding_mode", 0)]
    aligned = bool(_argument(node, 4, "align_corners", False))
    emit = importer.block_builder.emit
    grid = emit(relax.op.permute_dims(grid, [0, 3, 1, 2]))  # [n, h, w, 2] to TVM's [n, 2, h, w]
    return emit(relax.op.image.grid_sample(x, grid, method, "NCHW", padding, aligned))


def _index(node: fx.Node, importer: ExportedProgramImporter) -> relax.Var:
    """Tensors as indices, which broadcast; the axes that they index become those of the result."""
    emit, x = importer.block_builder.emit, importer.env[node.args[0]]
    shape, given = static_shape(x), list(node.args[1])  # type: ignore[call-overload, arg-type]
    at = [axis for axis, index in enumerate(given) if index is not None]
    indices = [importer.env[given[axis]] for axis in at]
    if any(str(index.ty.dtype.dtype) == "bool" for index in indices):
        raise ModelError("a mask decides the shape of a result; a compiled model's are fixed")
    rest = [axis for axis in range(len(shape)) if axis not in at]
    moved = emit(relax.op.permute_dims(x, at + rest))
    count = math.prod(shape[axis] for axis in at)
    flat = emit(relax.op.reshape(moved, [count, *(shape[axis] for axis in rest)]))
    position = None
    for axis, index in zip(at, indices, strict=True):
        extent = constant(np.array(shape[axis], "int64"))
        index = emit(relax.op.astype(index, "int64"))
        negative = emit(relax.op.less(index, constant(np.array(0, "int64"))))
        index = emit(relax.op.where(negative, relax.op.add(index, extent), index))
        if position is not None:
            index = emit(relax.op.add(emit(relax.op.multiply(position, extent)), index))
        position = index
    made = emit(relax.op.take(flat, position, 0, mode="clip"))
    width = len(static_shape(position))
    if at != list(range(at[0], at[0] + len(at))) or at[0] == 0:
        return made  # indices that lie apart come first in the result
    order = [*range(width, width + at[0]), *range(width), *range(width + at[0], width + len(rest))]
    return emit(relax.op.permute_dims(made, order))


CONVERTERS: dict[str, Converter] = {
    "amax.default": _reduction(relax.op.max),
    "amin.default": _reduction(relax.op.min),
    "prod.dim_int": _reduction(relax.op.prod),
    "var_mean.correction": _var_mean,
    "elu.default": _elu,
    "lerp.Scalar": _lerp,
    "lerp.Tensor": _lerp,
    "adaptive_max_pool2d.default": _adaptive_max_pool,
    "upsample_nearest2d.vec": _upsample("nearest"),
    "upsample_bilinear2d.vec": _upsample("linear"),
    "upsample_bicubic2d.vec": _upsample("cubic"),
    "grid_sampler_2d.default": _grid_sample,
    "index.Tensor": _index,
}
