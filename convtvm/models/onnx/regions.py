"""Converters of operators that look at regions of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node

_OPAQUE = {"op_pattern": 8}  # nothing is fused with loops that are written out
_FLOAT = "float32"
_MOST = 1 << 16  # samples along an axis: more pixels than an image has


@dataclass(frozen=True)
class _Regions:
    """How regions are sampled: the rows and columns of each that results, samples along an axis of
    one of those (0: as many as it has pixels), where pixels lie, and the mean or the largest."""

    size: tuple[int, int]
    samples: int
    scale: float
    is_half_pixel: bool
    is_largest: bool


def _aligned(node: Node) -> relax.Expr:
    mode, places = node.get("mode", "avg"), node.get("coordinate_transformation_mode")
    places = places or ("half_pixel" if node.opset >= 16 else "output_half_pixel")
    if mode not in ("avg", "max") or places not in ("half_pixel", "output_half_pixel"):
        raise node.fails(f"takes the {mode} of regions by {places}, which nothing computes")
    if len(node.shape()) != 4 or node.dtype() != _FLOAT or node.dtype(1) != _FLOAT:
        raise node.fails(
            f"has {len(node.shape())} axes of {node.dtype()}, expected an image of {_FLOAT}"
        )
    if node.shape(1) != (*node.shape(2), 4):
        raise node.fails(f"has regions {node.shape(1)} of images {node.shape(2)}")
    how = _Regions(
        (int(node.get("output_height", 1)), int(node.get("output_width", 1))),
        max(0, int(node.get("sampling_ratio", 0))),
        float(node.get("spatial_scale", 1.0)),
        places == "half_pixel",
        mode == "max",
    )
    shape = (node.shape(1)[0], node.shape()[1], *how.size)
    if min(shape) < 1:
        raise node.fails(f"makes {list(shape)}, which is empty")

    def compute(*operands: te.Tensor) -> te.Tensor:
        return te.extern(
            [shape],
            list(operands),
            lambda ins, outs: _loops(ins[0], ins[1], ins[2], outs[0], how),
            dtype=[_FLOAT],
            out_buffers=[tirx.decl_buffer(shape, _FLOAT, "made")],
            name="regions",
        )

    operands = [node.input(index) for index in range(3)]
    return node.builder.call_te(
        compute, *operands, primfunc_name_hint="regions", primfunc_attrs=_OPAQUE
    )


def _loops(image: Any, boxes: Any, images_of: Any, made: Any, how: _Regions) -> Any:
    """Every channel of every region by itself."""
    regions, channels = (int(extent) for extent in made.shape[:2])
    with IRBuilder() as builder:
        last = int(image.shape[0]) - 1
        image, boxes, images_of, made = map(T.buffer_proxy, (image, boxes, images_of, made))
        with T.parallel(0, regions * channels) as plane, T.serial(0, math.prod(how.size)) as place:
            region, channel = plane // channels, plane % channels
            y, x = place // how.size[1], place % how.size[1]
            number = tirx.Cast("int32", images_of[region])
            number = tirx.max(tirx.min(number, T.int32(last)), T.int32(0))
            value = _value(image, (number, channel), boxes, region, (y, x), how)
            made[region, channel, y, x] = value
        return builder.get()


def _value(
    image: Any, plane: tuple[Any, Any], boxes: Any, region: Any, place: Any, how: _Regions
) -> Any:
    """What results for a place of a region, of so many samples along both axes."""
    begins, spans, total = (_local(size, _FLOAT) for size in (2, 2, 1))
    counts = _local(2, "int32")
    for axis, size in enumerate(how.size):
        first, last = (boxes[region, 1 - axis + end] * _number(how.scale) for end in (0, 2))
        length = last - first
        if how.is_half_pixel:
            first = first - _number(0.5)
        else:
            length = tirx.max(length, _number(1))
        spans[axis] = length / _number(size)
        begins[axis] = first + tirx.Cast(_FLOAT, place[axis]) * spans[axis]
        steps = tirx.min(tirx.max(tirx.ceil(spans[axis]), _number(0)), _number(_MOST))
        counts[axis] = T.int32(how.samples) if how.samples else tirx.Cast("int32", steps)
    total[0] = _number(-math.inf if how.is_largest else 0)
    with T.serial(0, counts[0]) as row, T.serial(0, counts[1]) as col:
        at = []
        for axis, step in enumerate((row, col)):
            middle = tirx.Cast(_FLOAT, step) + _number(0.5)
            at.append(begins[axis] + middle * spans[axis] / tirx.Cast(_FLOAT, counts[axis]))
        sample = _sample(image, plane, at, how.is_largest)
        total[0] = tirx.max(total[0], sample) if how.is_largest else total[0] + sample
    count = counts[0] * counts[1]
    if how.is_largest:
        return tirx.Select(count > 0, total[0], _number(0))
    return total[0] / tirx.Cast(_FLOAT, tirx.max(count, T.int32(1)))


def _local(size: int, dtype: str) -> Any:
    return T.buffer_proxy(T.alloc_buffer((size,), dtype, scope="local"))


def _sample(image: Any, plane: tuple[Any, Any], at: list[Any], is_largest: bool) -> Any:
    """A place between four pixels: each by how near it is, their sum or the largest of them; zero
    far outside."""
    extents = [int(extent) for extent in image.shape[2:]]
    outside = tirx.any(
        *(tirx.Or(p < _number(-1), p > _number(e)) for p, e in zip(at, extents, strict=True))
    )
    lows, highs, shares = [], [], []
    for p, extent in zip(at, extents, strict=True):
        near = tirx.min(tirx.max(p, _number(0)), _number(extent - 1))
        low = tirx.Cast("int32", near)
        lows.append(low)
        highs.append(tirx.min(low + 1, T.int32(extent - 1)))
        shares.append(near - tirx.Cast(_FLOAT, low))
    parts = []
    for rows, row_share in ((lows, _number(1) - shares[0]), (highs, shares[0])):
        for cols, col_share in ((lows, _number(1) - shares[1]), (highs, shares[1])):
            parts.append(row_share * col_share * image[(*plane, rows[0], cols[1])])
    total = parts[0]
    for part in parts[1:]:
        total = tirx.max(total, part) if is_largest else total + part
    return tirx.Select(outside, _number(0), total)


def _number(value: float) -> Any:
    return tirx.const(float(value), _FLOAT)


CONVERTERS: dict[str, Converter] = {"RoiAlign": _aligned}
