"""Converters of sequences, which are known tensor by tensor and so need nothing at run time."""

from __future__ import annotations

import numpy as np
from tvm import relax

from convtvm.models.constants import constant
from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node


def _parts(node: Node) -> list[relax.Expr]:
    """The tensors of the first operand."""
    sequence = node.input()
    if not isinstance(sequence, relax.Tuple):
        raise node.fails("has a tensor for its input 0, expected a sequence of tensors")
    return list(sequence.fields)


def _place(node: Node, index: int, count: int) -> int:
    """A place in a sequence, counted from the front; by default its end."""
    at = (node.numbers(index, "position") or [count])[0]
    if not -count <= at < count + (node.proto.op_type == "SequenceInsert"):
        raise node.fails(f"asks for place {at} of a sequence of {count}")
    return at + count if at < 0 else at


def _construct(node: Node) -> list[relax.Expr]:
    return [relax.Tuple([node.input(i) for i in range(len(node.inputs))])]


def _empty(node: Node) -> list[relax.Expr]:
    return [relax.Tuple([])]


def _at(node: Node) -> relax.Expr:
    parts = _parts(node)
    return parts[_place(node, 1, len(parts))]


def _insert(node: Node) -> list[relax.Expr]:
    parts = _parts(node)
    parts.insert(_place(node, 2, len(parts)), node.input(1))
    return [relax.Tuple(parts)]


def _erase(node: Node) -> list[relax.Expr]:
    parts = _parts(node)
    del parts[_place(node, 1, len(parts)) if node.has(1) else -1]
    return [relax.Tuple(parts)]


def _length(node: Node) -> relax.Expr:
    return constant(np.array(len(_parts(node)), "int64"))


def _split(node: Node) -> list[relax.Expr]:
    """By one each, by an equal number, or by a list of sizes."""
    shape = node.shape()
    axis = node.axis(node.get("axis", 0), len(shape))
    split = node.array(1, "split")
    if split is None or split.ndim == 0:
        step = 1 if split is None else int(split)
        sizes = [min(step, shape[axis] - at) for at in range(0, shape[axis], max(1, step))]
    else:
        sizes = [int(size) for size in split]
    if sum(sizes) != shape[axis] or min(sizes) < 1:
        raise node.fails(f"cannot split {shape[axis]} into {sizes}; is --shape right?")
    ends = np.cumsum(sizes).tolist()
    parts = [
        node.emit(relax.op.strided_slice(node.input(), [axis], [end - size], [end]))
        for size, end in zip(sizes, ends, strict=True)
    ]
    if split is None and not node.get("keepdims", 1):
        parts = [node.emit(relax.op.squeeze(part, [axis])) for part in parts]
    return [relax.Tuple(parts)]


def _joined(node: Node) -> relax.Expr:
    parts = _parts(node)
    if not parts:
        raise node.fails("joins a sequence of nothing")
    axis = node.get("axis", 0)
    if node.get("new_axis", 0):
        parts = [node.emit(relax.op.expand_dims(part, [axis])) for part in parts]
    return parts[0] if len(parts) == 1 else relax.op.concat(parts, axis)


CONVERTERS: dict[str, Converter] = {
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceAt": _at,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceLength": _length,
    "SplitToSequence": _split,
    "ConcatFromSequence": _joined,
}
