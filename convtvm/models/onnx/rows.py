"""Converters of operators along one axis: the largest elements, running sums, chosen places."""

from __future__ import annotations

import numpy as np
from tvm import relax

from convtvm.models.constants import constant
from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node


def _top(node: Node) -> relax.Expr:
    shape = node.shape()
    axis = node.axis(node.get("axis", -1), len(shape))
    count = node.get("k", 1) if node.opset < 10 else (node.numbers(1, "k") or [0])[0]
    if not 1 <= count <= shape[axis]:
        raise node.fails(f"takes {count} of {shape[axis]} elements; is --shape right?")
    largest = bool(node.get("largest", 1))
    return relax.op.topk(node.input(), count, axis, "both", largest, "int64")


def _running_sum(node: Node) -> relax.Expr:
    shape = node.shape()
    axis = node.axis((node.numbers(1, "axis") or [0])[0], len(shape))
    backwards, x = bool(node.get("reverse", 0)), node.input()
    x = node.emit(relax.op.flip(x, axis)) if backwards else x
    total = node.emit(relax.op.cumsum(x, axis, node.dtype(), bool(node.get("exclusive", 0))))
    return relax.op.flip(total, axis) if backwards else total


def _one_hot(node: Node) -> relax.Expr:
    """Places beyond the depth give no hot element."""
    shape, (depth,) = node.shape(), node.numbers(1, "depth") or [0]
    values = node.array(2, "values")
    if values is None or depth < 1:
        raise node.fails(f"has a depth of {depth}, expected at least 1, and two values")
    axis = node.axis(node.get("axis", -1), len(shape) + 1)
    whole = relax.op.astype(node.input(), "int64")
    negative = relax.op.less(whole, constant(np.array(0, "int64")))
    moved = relax.op.add(whole, constant(np.array(depth, "int64")))
    places = relax.op.expand_dims(relax.op.where(negative, moved, whole), [axis])
    numbers = np.arange(depth).reshape(-1, *(1,) * (len(shape) - axis))
    is_hot = relax.op.equal(places, constant(numbers.astype("int64")))
    return relax.op.where(is_hot, constant(values[1]), constant(values[0]))


def _compress(node: Node) -> relax.Expr:
    """By a condition that is known, else the shape of the result would not be."""
    chosen = node.array(1, "condition")
    assert chosen is not None
    kept = np.flatnonzero(chosen)
    axis, x, shape = node.get("axis"), node.input(), node.shape()
    if axis is None:
        x, axis, shape = relax.op.reshape(x, (-1,)), 0, (int(np.prod(shape)),)
    axis = node.axis(axis, len(shape))
    if not kept.size or kept[-1] >= shape[axis]:
        raise node.fails(f"keeps {kept.tolist()} of {shape[axis]} elements")
    return relax.op.take(x, constant(kept.astype("int64")), axis, "clip")


CONVERTERS: dict[str, Converter] = {
    "TopK": _top,
    "CumSum": _running_sum,
    "OneHot": _one_hot,
    "Compress": _compress,
}
