"""Converters of operators that move between an image and its windows: places of the largest
elements and back, columns of windows and back, windows that are bent by offsets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from convtvm.models.constants import constant
from convtvm.models.legalize.extremes import lowest
from convtvm.models.onnx import layers
from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node

_OPAQUE = {"op_pattern": 8}  # nothing is fused with two results, or with what is read at random
_NOWHERE = tirx.const(-1, "int64")  # the place of what lies outside of an image


def _max_pool(node: Node) -> Any:
    has_places = len(node.proto.output) > 1 and node.proto.output[1]
    return _largest(node) if has_places else layers.pool(node, "max", False)


def _largest(node: Node) -> list[relax.Expr]:
    """The largest element of every window, and where in the whole tensor it is: the first one."""
    kernel, (strides, dilations, before, _), _, counts = layers.windows(node)
    shape, by_column = node.shape(), bool(node.get("storage_order", 0))

    def compute(data: te.Tensor) -> list[te.Tensor]:
        taps = [te.reduce_axis((0, k), f"k{i}") for i, k in enumerate(kernel)]
        first = te.comm_reducer(_first_of_two, _none_of, "first_largest")

        def element(n: Any, c: Any, *window: Any) -> Any:
            at = [
                w * s + tap * d - b
                for w, s, tap, d, b in zip(window, strides, taps, dilations, before, strict=True)
            ]
            within = _is_within(at, shape[2:])
            value = tirx.if_then_else(within, data[(n, c, *at)], lowest(data.dtype))
            place = _place((n, c, *at), shape, by_column)
            return first((tirx.Select(within, place, _NOWHERE), value), axis=taps)

        out = (*shape[:2], *counts)
        places, values = te.compute(out, element, name="largest")
        return [values, places]

    made = node.emit(
        node.builder.call_te(
            compute, node.input(), primfunc_name_hint="max_pool", primfunc_attrs=_OPAQUE
        )
    )
    return [relax.TupleGetItem(made, 0), relax.TupleGetItem(made, 1)]


def _first_of_two(a: Any, b: Any) -> tuple[Any, Any]:
    """Of two places with their values the one with the larger value, the first if equal."""
    wins = tirx.Or(b[1] > a[1], a[0] < 0)
    return tirx.Select(wins, b[0], a[0]), tirx.Select(wins, b[1], a[1])


def _none_of(place_dtype: str, value_dtype: str) -> tuple[Any, Any]:
    return tirx.const(-1, place_dtype), lowest(value_dtype)


def _inside(
    data: te.Tensor, image: Sequence[Any], at: Sequence[Any], shape: Sequence[int], outside: Any
) -> Any:
    """The element of an image at a place, or what is there outside of it."""
    return tirx.if_then_else(_is_within(at, shape), data[(*image, *at)], outside)


def _is_within(at: Sequence[Any], shape: Sequence[int]) -> Any:
    """Whether a place is one of an image."""
    return tirx.all(*(tirx.And(p >= 0, p < extent) for p, extent in zip(at, shape, strict=True)))


def _place(at: Sequence[Any], shape: Sequence[int], by_column: bool) -> Any:
    """The number of an element, its image stored by rows or, beginning with the last axis, by
    columns."""
    axes = [0, 1, *(reversed(range(2, len(at))) if by_column else range(2, len(at)))]
    number = tirx.const(0, "int64")
    for axis in axes:
        number = number * shape[axis] + tirx.Cast("int64", at[axis])
    return number


def _unpool(node: Node) -> relax.Expr:
    """Zeros but at the places that the second operand says, in the tensor that results."""
    shape, kernel = node.shape(), node.sizes("kernel_shape", [0] * (len(node.shape()) - 2))
    strides = node.sizes("strides", [1] * len(kernel))
    pads = node.sizes("pads", [0] * 2 * len(kernel))
    out = node.numbers(2, "output_shape")
    if out is None:
        taken = [a + b for a, b in zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)]
        zipped = zip(shape[2:], strides, kernel, taken, strict=True)
        out = [*shape[:2], *((n - 1) * s + k - t for n, s, k, t in zipped)]
    if len(out) != len(shape) or min(out) < 1 or node.shape(1) != shape:
        raise node.fails(f"makes {out} of {list(shape)}; is --shape right?")
    zeros = node.emit(relax.op.zeros((math.prod(out),), node.dtype()))
    flat = [node.emit(relax.op.reshape(node.input(i), (-1,))) for i in (1, 0)]
    return relax.op.reshape(node.emit(relax.op.scatter_elements(zeros, *flat, 0)), out)


def _from_columns(node: Node) -> relax.Expr:
    """The sum of all windows at their places: a transposed convolution with a kernel for each
    element of a window, which is 1 there and 0 elsewhere."""
    image, block = node.numbers(1, "image_shape") or [], node.numbers(2, "block_shape") or []
    ones, taps = [1] * len(block), math.prod(block)
    strides, dilations = node.sizes("strides", ones), node.sizes("dilations", ones)
    pads = node.sizes("pads", [0] * 2 * len(block))
    batch, columns, places = node.shape()
    reach = [(k - 1) * d + 1 for k, d in zip(block, dilations, strict=True)]
    padded = [
        n + b + a - r
        for n, b, a, r in zip(image, pads[: len(block)], pads[len(block) :], reach, strict=True)
    ]
    counts = [n // s + 1 for n, s in zip(padded, strides, strict=True)]
    if len(image) != len(block) or columns % taps or math.prod(counts) != places:
        raise node.fails(
            f"has {columns}x{places} numbers for windows of {block} of an image of {image}"
        )
    eye = np.broadcast_to(np.eye(taps, dtype=node.dtype()), (columns // taps, taps, taps))
    inputs: list[relax.Expr | None] = [
        node.emit(relax.op.reshape(node.input(), (batch, columns, *counts))),
        constant(eye.reshape(columns, 1, *block)),
    ]
    attributes = {
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
        "group": columns // taps,
        "output_padding": [n % s for n, s in zip(padded, strides, strict=True)],
    }
    return layers.CONVERTERS["ConvTranspose"](replace(node, inputs=inputs, attributes=attributes))


# --- windows bent by offsets -------------------------------------------------------------------


def _deformed(node: Node) -> relax.Expr:
    """Every window's elements read where the offsets say, as channels of a 1x1 convolution."""
    image, kernel = node.shape()[2:], layers.kernel_of(node)
    if len(image) != 2:
        raise node.fails(f"has {len(image)} axes of an image, expected 2")
    (batch, channels, *_), taps = node.shape(), math.prod(kernel)
    strides, dilations, before, _ = layers.window(node, kernel, image)
    groups, pixels = int(node.get("offset_group", 1)), node.shape(2)[2:]
    wanted = (batch, groups * taps * 2, *pixels)
    if channels % groups or node.shape(2) != wanted:
        raise node.fails(
            f"has offsets {list(node.shape(2))} in {groups} groups of {channels} channels, "
            f"expected {list(wanted)}"
        )

    def compute(data: te.Tensor, offsets: te.Tensor, *mask: te.Tensor) -> te.Tensor:
        def element(n: Any, column: Any, y: Any, x: Any) -> Any:
            channel, tap = column // taps, column % taps
            which = channel // (channels // groups) * taps + tap
            begins = y * strides[0] - before[0], x * strides[1] - before[1]
            steps = tap // kernel[1] * dilations[0], tap % kernel[1] * dilations[1]
            at = [
                tirx.Cast(data.dtype, begins[i] + steps[i]) + offsets[n, which * 2 + i, y, x]
                for i in (0, 1)
            ]
            value = _between_pixels(data, (n, channel), at, image)
            return value * mask[0][n, which, y, x] if mask else value

        return te.compute((batch, channels * taps, *pixels), element, name="bent")

    operands = [node.input(0), node.input(2), *([node.input(4)] if node.has(4) else [])]
    columns = node.builder.call_te(
        compute, *operands, primfunc_name_hint="bent", primfunc_attrs=_OPAQUE
    )
    filters = node.shape(1)[0]
    inputs = [
        node.emit(columns),
        node.emit(relax.op.reshape(node.input(1), (filters, -1, 1, 1))),
        node.input(3) if node.has(3) else None,
    ]
    attributes = {"group": node.get("group", 1)}
    return layers.convolution(replace(node, inputs=inputs, attributes=attributes))


def _between_pixels(
    data: te.Tensor, image: Sequence[Any], at: Sequence[Any], shape: Sequence[int]
) -> Any:
    """A place between four pixels, which counts them by how near they are; zeros outside."""
    zero = tirx.const(0, data.dtype)
    # Beyond a pixel around the image all is zero; no whole number holds a place far out.
    near = [
        tirx.max(tirx.min(p, tirx.const(e + 1, data.dtype)), tirx.const(-2, data.dtype))
        for p, e in zip(at, shape, strict=True)
    ]
    floors = [tirx.floor(p) for p in near]
    whole = [tirx.Cast("int32", f) for f in floors]
    rest = [p - f for p, f in zip(near, floors, strict=True)]
    total = zero
    for row in (0, 1):
        for col in (0, 1):
            parts = [r if high else 1 - r for r, high in zip(rest, (row, col), strict=True)]
            pixel = _inside(data, image, (whole[0] + row, whole[1] + col), shape, zero)
            total = total + parts[0] * parts[1] * pixel
    return total


CONVERTERS: dict[str, Converter] = {
    "MaxPool": _max_pool,
    "MaxUnpool": _unpool,
    "Col2Im": _from_columns,
    "DeformConv": _deformed,
}
