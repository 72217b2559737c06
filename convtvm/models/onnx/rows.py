"""Converters of operators along one axis: the largest elements, running sums and products, chosen
places, sequences turned around."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax

from convtvm.models.constants import array_of, constant
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


def _running(operator: Callable[..., relax.Expr]) -> Converter:
    def convert(node: Node) -> relax.Expr:
        shape = node.shape()
        axis = node.axis((node.numbers(1, "axis") or [0])[0], len(shape))
        backwards, x = bool(node.get("reverse", 0)), node.input()
        x = node.emit(relax.op.flip(x, axis)) if backwards else x
        total = node.emit(operator(x, axis, node.dtype(), bool(node.get("exclusive", 0))))
        return relax.op.flip(total, axis) if backwards else total

    return convert


def _reversed(node: Node) -> relax.Expr:
    """Every sequence turned around as far as its length says, the rest as it is."""
    shape = node.shape()
    batch = node.axis(node.get("batch_axis", 1), len(shape))
    time = node.axis(node.get("time_axis", 0), len(shape))
    if batch == time or node.shape(1) != (shape[batch],):
        raise node.fails(f"has lengths {node.shape(1)} for {shape}, batches along axis {batch}")
    along = [1] * len(shape)
    along[batch] = shape[batch]
    lengths = node.emit(relax.op.reshape(relax.op.astype(node.input(1), "int64"), along))
    steps = np.arange(shape[time]).reshape(-1, *(1,) * (len(shape) - 1 - time))
    places = constant(steps.astype("int64"))
    turned = relax.op.subtract(lengths, constant((steps + 1).astype("int64")))
    places = node.emit(relax.op.where(relax.op.less(places, lengths), turned, places))
    return relax.op.gather_elements(node.input(), relax.op.broadcast_to(places, shape), time)


def _one_hot(node: Node) -> relax.Expr:
    """Places beyond the depth give no hot element."""
    shape, (depth,) = node.shape(), node.numbers(1, "depth") or [0]
    if node.shape(2) != (2,) or depth < 1:
        raise node.fails(f"has a depth of {depth}, expected at least 1, and two values")
    cold, hot = (_element(node, 2, i) for i in (0, 1))
    axis = node.axis(node.get("axis", -1), len(shape) + 1)
    whole = relax.op.astype(node.input(), "int64")
    negative = relax.op.less(whole, constant(np.array(0, "int64")))
    moved = relax.op.add(whole, constant(np.array(depth, "int64")))
    places = relax.op.expand_dims(relax.op.where(negative, moved, whole), [axis])
    numbers = np.arange(depth).reshape(-1, *(1,) * (len(shape) - axis))
    is_hot = relax.op.equal(places, constant(numbers.astype("int64")))
    return relax.op.where(is_hot, hot, cold)


def _element(node: Node, index: int, place: int) -> relax.Expr:
    """A number of an operand that is a row."""
    array = array_of(node.input(index))
    if array is not None:
        return constant(array[place])
    part = relax.op.strided_slice(node.input(index), [0], [place], [place + 1])
    return node.emit(relax.op.squeeze(node.emit(part), [0]))


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
    "CumSum": _running(relax.op.cumsum),
    "CumProd": _running(relax.op.cumprod),
    "ReverseSequence": _reversed,
    "OneHot": _one_hot,
    "Compress": _compress,
}
