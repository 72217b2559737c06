"""Converters of operators that move elements without computing: shapes, slices, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import helper, numpy_helper
from tvm import relax

from convtvm.models.constants import array_of, constant
from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _shape(node: Node) -> relax.Expr:
    shape = node.shape()
    start, end = node.get("start", 0), node.get("end", len(shape))
    return constant(np.array(shape[start:end], "int64"))


def _size(node: Node) -> relax.Expr:
    return constant(np.array(math.prod(node.shape()), "int64"))


def _diagonal(node: Node) -> relax.Expr:
    """Ones along a diagonal, which hang on the shape of the data alone."""
    if len(node.shape()) != 2:
        raise node.fails(f"has an operand of {len(node.shape())} axes, expected 2")
    wanted = node.get("dtype", 0)
    dtype = helper.tensor_dtype_to_np_dtype(wanted) if wanted else np.dtype(node.dtype())
    dtype = np.dtype("float32") if str(dtype) in ("float16", "bfloat16") else dtype
    rows, columns = node.shape()
    return constant(np.eye(rows, columns, node.get("k", 0), dtype))


def _filled(node: Node) -> relax.Expr:
    """Of a shape that is a constant, and so computed already where it can be."""
    shape, value = node.numbers(0, "shape") or [], node.get("value")
    number = np.zeros(1, "float32") if value is None else numpy_helper.to_array(value)
    return constant(np.full(shape, number.reshape(-1)[0]))


def _reshape(node: Node) -> relax.Expr:
    old, wanted = node.shape(), node.numbers(1, "shape")
    if wanted is None:
        raise node.fails("has no shape")
    if not node.get("allowzero", 0):
        if any(size == 0 and axis >= len(old) for axis, size in enumerate(wanted)):
            raise node.fails(f"{wanted} keeps an axis that {_text(old)} does not have")
        wanted = [old[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    known = math.prod(size for size in wanted if size != -1)
    if wanted.count(-1) == 1 and known:
        wanted = [math.prod(old) // known if size == -1 else size for size in wanted]
    if min(wanted, default=0) < 0 or math.prod(wanted) != math.prod(old):
        raise node.fails(f"cannot make {_text(wanted)} of {_text(old)}; is --shape right?")
    return relax.op.reshape(node.input(), wanted)


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _flatten(node: Node) -> relax.Expr:
    shape = node.shape()
    axis = node.get("axis", 1)
    axis = axis if axis == len(shape) else node.axis(axis, max(1, len(shape)))
    return relax.op.reshape(node.input(), (math.prod(shape[:axis]), math.prod(shape[axis:])))


def _squeeze(node: Node) -> relax.Expr:
    shape, axes = node.shape(), node.numbers(1, "axes")
    gone = node.axes(axes, len(shape)) if axes else [i for i, n in enumerate(shape) if n == 1]
    if any(shape[axis] != 1 for axis in gone):
        raise node.fails(f"cannot drop axes {gone} of {_text(shape)}; is --shape right?")
    return relax.op.reshape(node.input(), [n for i, n in enumerate(shape) if i not in gone])


def _unsqueeze(node: Node) -> relax.Expr:
    shape, axes = node.shape(), node.numbers(1, "axes") or []
    ndim = len(shape) + len(axes)
    new, old = set(node.axes(axes, ndim)), iter(shape)
    return relax.op.reshape(node.input(), [1 if i in new else next(old) for i in range(ndim)])


def _transpose(node: Node) -> relax.Expr:
    ndim = len(node.shape())
    axes = list(node.get("perm") or reversed(range(ndim)))
    return node.input() if axes == list(range(ndim)) else relax.op.permute_dims(node.input(), axes)


def _concat(node: Node) -> relax.Expr:
    axis = node.axis(node.get("axis", 1), len(node.shape()))
    parts = [node.input(i) for i in range(len(node.inputs)) if node.shape(i)[axis] != 0]
    return relax.op.concat(parts, axis) if len(parts) > 1 else (parts or [node.input()])[0]


def _split(node: Node) -> list[relax.Expr]:
    shape, count = node.shape(), len(node.proto.output)
    axis = node.axis(node.get("axis", 0), len(shape))
    sizes = node.numbers(1, "split")
    if sizes is None:
        step = -(-shape[axis] // count)
        sizes = [min(step, shape[axis] - i * step) for i in range(count)]
    if sum(sizes) != shape[axis] or len(sizes) != count or min(sizes) < 0:
        raise node.fails(f"cannot split {shape[axis]} into {sizes}; is --shape right?")
    ends = np.cumsum(sizes).tolist()
    empty = constant(np.zeros([0 if i == axis else n for i, n in enumerate(shape)], node.dtype()))
    return [
        relax.op.strided_slice(node.input(), [axis], [end - size], [end]) if size else empty
        for size, end in zip(sizes, ends, strict=True)
    ]


def _slice(node: Node) -> relax.Expr:
    shape = node.shape()
    starts, ends = node.numbers(1, "starts"), node.numbers(2, "ends")
    if starts is None or ends is None:
        raise node.fails("has no starts or no ends")
    axes = node.axes(node.numbers(3, "axes") or range(len(starts)), len(shape))
    steps = node.numbers(4, "steps") or [1] * len(starts)
    x, forward = node.input(), []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        kept = range(shape[axis])[_python_slice(start, end, step, shape[axis])]
        if not kept:
            raise node.fails(f"leaves nothing of axis {axis} of {_text(shape)}; is --shape right?")
        if step > 0:
            forward.append((axis, kept[0], kept[-1] + 1, step))
        else:
            x = relax.op.take(x, constant(np.array(kept, "int64")), axis, mode="clip")
    forward = [each for each in forward if each[1:] != (0, shape[each[0]], 1)]
    return relax.op.strided_slice(x, *map(list, zip(*forward, strict=True))) if forward else x


def _python_slice(start: int, end: int, step: int, extent: int) -> slice:
    """ONNX's bounds as Python's: one further back than the first element is before it."""
    return slice(start, None if step < 0 and end < -extent else end, step)


def _gather(node: Node) -> relax.Expr:
    axis, shape = node.axis(node.get("axis", 0), len(node.shape())), node.shape()
    array = array_of(node.input(1))
    if array is not None:
        if array.size and not -shape[axis] <= array.min() <= array.max() < shape[axis]:
            raise node.fails(
                f"index {array.min()} to {array.max()} of axis {axis} of {_text(shape)}"
            )
        array = np.where(array < 0, array + shape[axis], array)
        if array.ndim == 0:  # a slice joins the operators around it
            part = relax.op.strided_slice(node.input(), [axis], [int(array)], [int(array) + 1])
            return relax.op.squeeze(part, [axis])
        return relax.op.take(node.input(), constant(array.astype("int64")), axis, mode="clip")
    return relax.op.take(node.input(), _counted_from_front(node, shape[axis]), axis, mode="clip")


def _counted_from_front(node: Node, extent: int) -> relax.Expr:
    """The second operand: indices of an axis of this extent, negative ones from its end."""
    indices = node.input(1)
    array = array_of(indices)
    if array is not None:
        return constant(np.where(array < 0, array + extent, array))
    negative = relax.op.less(indices, node.const(0, 1))
    return relax.op.where(negative, relax.op.add(indices, node.const(extent, 1)), indices)


def _gather_elements(node: Node) -> relax.Expr:
    shape = node.shape()
    axis = node.axis(node.get("axis", 0), len(shape))
    indices = node.emit(_counted_from_front(node, shape[axis]))
    return relax.op.gather_elements(node.input(), indices, axis)


def _expand(node: Node) -> relax.Expr:
    shape, wanted = node.shape(), node.numbers(1, "shape") or []
    full = np.broadcast_shapes(shape, tuple(wanted))
    return node.input() if full == shape else relax.op.broadcast_to(node.input(), full)


def _tile(node: Node) -> relax.Expr:
    return relax.op.tile(node.input(), node.numbers(1, "repeats") or [])


def _pad(node: Node) -> relax.Expr:
    shape = node.shape()
    pads = node.numbers(1, "pads") or node.get("paddings") or []
    axes = node.axes(node.numbers(3, "axes") or range(len(shape)), len(shape))
    if len(pads) != 2 * len(axes):
        raise node.fails(f"has {len(pads)} pads, expected {2 * len(axes)}")
    mode, widths = node.get("mode", "constant"), [(0, 0)] * len(shape)
    for i, axis in enumerate(axes):
        widths[axis] = (pads[i], pads[i + len(axes)])
    if mode not in _PAD_MODES:
        raise node.fails(f"pads by mode {mode}, expected one of {', '.join(_PAD_MODES)}")
    pairs = list(zip(shape, widths, strict=True))
    if any(extent + min(before, 0) + min(after, 0) < 1 for extent, (before, after) in pairs):
        raise node.fails(f"takes {pads} away from {_text(shape)}, which leaves nothing")
    if mode == "reflect" and any(max(width) >= extent for extent, width in pairs if any(width)):
        raise node.fails(f"mirrors {pads} of {_text(shape)}, which has no more than its extents")
    value = node.array(2, "value")
    number = node.get("value", 0.0) if value is None else value.item()
    return padded(node.input(), widths, _PAD_MODES[mode], number)


def padded(
    x: relax.Expr, widths: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0
) -> relax.Expr:
    """`x` with so many elements before and after every axis; negative widths take away."""
    if any(min(width) < 0 for width in widths):
        shape = [int(extent) for extent in x.ty.shape]
        begins = [max(0, -before) for before, _ in widths]
        ends = [extent + min(0, after) for extent, (_, after) in zip(shape, widths, strict=True)]
        x = relax.op.strided_slice(x, list(range(len(shape))), begins, ends)
    flat = [max(0, width) for pair in widths for width in pair]
    return relax.op.nn.pad(x, flat, mode, value) if any(flat) else x


def _crop_or_pad(node: Node) -> relax.Expr:
    """Every chosen axis at its middle as long as wanted."""
    shape, wanted = node.shape(), node.numbers(1, "shape") or []
    axes = node.axes(node.get("axes") or range(len(shape)), len(shape))
    if len(axes) != len(wanted) or min(wanted, default=1) < 1:
        raise node.fails(f"wants sizes {wanted} of {len(axes)} axes")
    widths = [(0, 0)] * len(shape)
    for axis, size in zip(axes, wanted, strict=True):
        more = size - shape[axis]
        # What is odd is cut from the end and added there.
        before = more // 2 if more > 0 else -(-more // 2)
        widths[axis] = (before, more - before)
    return padded(node.input(), widths)


def _depth_to_space(node: Node) -> relax.Expr:
    block, mode = node.get("blocksize"), node.get("mode", "DCR")
    n, c, h, w = node.shape()
    deep = c // block**2
    if mode == "DCR":
        parts, order = (n, block, block, deep, h, w), [0, 3, 4, 1, 5, 2]
    else:
        parts, order = (n, deep, block, block, h, w), [0, 1, 4, 2, 5, 3]
    moved = relax.op.permute_dims(relax.op.reshape(node.input(), parts), order)
    return relax.op.reshape(moved, (n, deep, h * block, w * block))


def _space_to_depth(node: Node) -> relax.Expr:
    block = node.get("blocksize")
    n, c, h, w = node.shape()
    parts = relax.op.reshape(node.input(), (n, c, h // block, block, w // block, block))
    order = [0, 3, 5, 1, 2, 4] if node.get("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    moved = relax.op.permute_dims(parts, order)
    return relax.op.reshape(moved, (n, c * block**2, h // block, w // block))


CONVERTERS: dict[str, Converter] = {
    "Shape": _shape,
    "Size": _size,
    "EyeLike": _diagonal,
    "ConstantOfShape": _filled,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "CenterCropPad": _crop_or_pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
