"""Operators that compute in blocks of channels, [n, c / b, h, w, b], what they compute in NCHW.

A rule says which operands of a call it wants in blocks, and makes the call from these; what has no
rule gets NCHW.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te

from convtvm.models.constants import array_of, constant, op_name
from convtvm.models.dataflow import is_tensor, shape_of
from convtvm.models.legalize import pooling

Builder = Any  # a relax.BlockBuilder


@dataclass(frozen=True)
class InBlocks:
    """A call in blocks: the operands that it reads so, and what makes it from them.

    `is_slower_plain` says whether the same in NCHW takes much longer.
    """

    operands: Sequence[relax.Expr]
    make: Callable[[Builder, Sequence[relax.Expr]], relax.Expr]
    is_slower_plain: bool = False


def in_blocks(call: relax.Expr, block: int) -> InBlocks | None:
    """How a call computes in blocks; None where it does not."""
    shape = shape_of(call) if isinstance(call, relax.Call) else None
    if shape is None or not fits(shape, block) or call.ty.dtype.dtype != "float32":
        return None
    rule = _RULES.get(op_name(call))
    return rule(call, block) if rule else None


def fits(shape: Sequence[int], block: int) -> bool:
    """Whether a tensor can be in blocks: an image whose channels fill them."""
    return block > 0 and len(shape) == 4 and shape[1] % block == 0


def blocked_shape(shape: Sequence[int], block: int) -> tuple[int, ...]:
    n, c, h, w = shape
    return (n, c // block, h, w, block)


def to_blocks(builder: Builder, x: relax.Expr, block: int) -> relax.Expr:
    """An NCHW tensor in blocks; one pixel an image lies in memory as it is."""
    shape = blocked_shape(shape_of(x), block)
    if shape[2:4] == (1, 1):
        return relax.op.reshape(x, shape)

    def pack(data: te.Tensor) -> te.Tensor:
        return te.compute(
            shape, lambda n, c, h, w, lane: data[n, c * block + lane, h, w], name="to_blocks"
        )

    return builder.call_te(pack, x, primfunc_name_hint="to_blocks")


def to_plain(builder: Builder, x: relax.Expr) -> relax.Expr:
    """A tensor in blocks as NCHW."""
    n, chunks, h, w, block = shape_of(x)
    if (h, w) == (1, 1):
        return relax.op.reshape(x, (n, chunks * block, h, w))

    def unpack(data: te.Tensor) -> te.Tensor:
        return te.compute(
            (n, chunks * block, h, w),
            lambda n, c, h, w: data[n, c // block, h, w, c % block],
            name="to_plain",
        )

    return builder.call_te(unpack, x, primfunc_name_hint="to_plain")


def _elementwise(call: relax.Call, block: int) -> InBlocks | None:
    shape = shape_of(call)
    wanted: list[relax.Expr] = []
    places: list[relax.Expr | None] = []
    for arg in call.args:
        array = array_of(arg)
        if not is_tensor(arg):
            places.append(arg)
        elif array is not None:
            packed = _constant(array, shape, block)
            if packed is None:
                return None
            places.append(packed)
        elif shape_of(arg) == shape or _is_gate(shape_of(arg), shape):
            places.append(None)
            wanted.append(arg)
        else:
            return None

    def make(builder: Builder, operands: Sequence[relax.Expr]) -> relax.Expr:
        rest = iter(operands)
        args = [next(rest) if place is None else place for place in places]
        return relax.Call(call.op, args, call.attrs)

    return InBlocks(wanted, make) if wanted else None


def _is_gate(found: Sequence[int] | None, shape: Sequence[int]) -> bool:
    """Whether a tensor holds one number for each channel of an image."""
    return found is not None and tuple(found) == (shape[0], shape[1], 1, 1)


def _constant(array: np.ndarray, shape: Sequence[int], block: int) -> relax.Expr | None:
    """A constant that broadcasts to `shape`, in blocks."""
    if array.dtype != np.float32 or array.ndim > 4:
        return None
    if array.size == 1:
        return constant(array.reshape(()))
    n, c, h, w = (1,) * (4 - array.ndim) + array.shape
    if c == 1:
        return constant(array.reshape(n, 1, h, w, 1))
    if c != shape[1]:
        return None
    return constant(array.reshape(n, c // block, block, h, w).transpose(0, 1, 3, 4, 2))


def _prelu(call: relax.Call, block: int) -> InBlocks | None:
    slope = array_of(call.args[1])
    if slope is None or slope.ndim != 1 or int(call.attrs.axis) != 1:
        return None
    packed = _constant(slope.reshape(1, -1, 1, 1), shape_of(call), block)
    x = call.args[0]

    def make(builder: Builder, operands: Sequence[relax.Expr]) -> relax.Expr:
        y, zero = operands[0], relax.const(0.0, "float32")
        below = builder.emit(relax.op.minimum(y, zero))
        scaled = builder.emit(relax.op.multiply(below, packed))
        return relax.op.add(builder.emit(relax.op.nn.relu(y)), scaled)

    return InBlocks([x], make)


def _pool(call: relax.Call, block: int) -> InBlocks | None:
    pool = pooling.Pool.of(call)
    if pool is None or not fits(shape_of(call.args[0]), block):
        return None
    name, counted = op_name(call).rpartition(".")[2], bool(call.attrs.count_include_pad)

    def make(builder: Builder, operands: Sequence[relax.Expr]) -> relax.Expr:
        return pooling.emit(builder, name, operands[0], pool, counted)

    return InBlocks([call.args[0]], make, is_slower_plain=True)


def _global(call: relax.Call, block: int) -> InBlocks | None:
    x = call.args[0]
    shape = shape_of(x)
    name = op_name(call).rpartition(".")[2]
    if name == "adaptive_avg_pool2d":
        if tuple(shape_of(call)[2:]) != (1, 1) or str(call.attrs.layout) != "NCHW":
            return None
        name = "mean"
    elif not call.attrs.keepdims or sorted(int(a) % 4 for a in call.attrs.axis or ()) != [2, 3]:
        return None
    if not fits(shape, block):
        return None

    def make(builder: Builder, operands: Sequence[relax.Expr]) -> relax.Expr:
        return pooling.emit_global(builder, name, operands[0])

    return InBlocks([x], make, is_slower_plain=True)


def _concat(call: relax.Call, block: int) -> InBlocks | None:
    parts = call.args[0]
    if not isinstance(parts, relax.Tuple) or int(call.attrs.axis or 0) % 4 != 1:
        return None
    if any(shape_of(p) is None or not fits(shape_of(p), block) for p in parts.fields):
        return None
    return InBlocks(list(parts.fields), lambda builder, operands: relax.op.concat(operands, axis=1))


def _resize(call: relax.Call, block: int) -> InBlocks | None:
    attrs = call.attrs
    if str(attrs.layout) != "NCHW" or not fits(shape_of(call.args[0]), block):
        return None

    def make(builder: Builder, operands: Sequence[relax.Expr]) -> relax.Expr:
        return relax.op.image.resize2d(
            operands[0],
            call.args[1],
            roi=[float(v) for v in attrs.roi] if attrs.roi else None,
            layout=f"NCHW{block}c",
            method=attrs.method,
            coordinate_transformation_mode=attrs.coordinate_transformation_mode,
            rounding_method=attrs.rounding_method,
            cubic_alpha=attrs.cubic_alpha,
            cubic_exclude=attrs.cubic_exclude,
            extrapolation_value=attrs.extrapolation_value,
        )

    return InBlocks([call.args[0]], make, is_slower_plain=True)


def _slice(call: relax.Call, block: int) -> InBlocks | None:
    """A slice that begins and ends with a block."""
    shape = shape_of(call.args[0])
    parts = [_numbers(arg) for arg in call.args[1:]]
    if shape is None or not fits(shape, block) or any(p is None for p in parts):
        return None
    axes, begin, end, *steps = parts
    steps = steps[0] if steps else [1] * len(axes)
    starts, ends = [], []
    for axis, first, last, step in zip(axes, begin, end, steps, strict=True):
        if step < 1:
            return None
        extent = shape[axis % 4]
        first, last = (min(v + extent if v < 0 else v, extent) for v in (first, last))
        if axis % 4 == 1:
            if step != 1 or first % block or last % block:
                return None
            first, last = first // block, last // block
        starts.append(first)
        ends.append(last)

    def make(builder: Builder, operands: Sequence[relax.Expr]) -> relax.Expr:
        return relax.op.strided_slice(operands[0], [a % 4 for a in axes], starts, ends, steps)

    return InBlocks([call.args[0]], make)


def _numbers(arg: Any) -> Any:
    """The whole numbers of a tuple or a shape, None for anything else."""
    values = getattr(arg, "fields", None) or getattr(arg, "values", None)
    if values is None:
        return None
    numbers = [getattr(v, "value", v) for v in values]
    numbers = [getattr(v, "value", v) for v in numbers]
    return [int(v) for v in numbers]


def _pad(call: relax.Call, block: int) -> InBlocks | None:
    widths = [int(v) for v in call.attrs.pad_width]
    if any(widths[:4]) or str(call.attrs.pad_mode) != "constant":
        return None
    if not fits(shape_of(call.args[0]), block):
        return None

    def make(builder: Builder, operands: Sequence[relax.Expr]) -> relax.Expr:
        value = float(call.attrs.pad_value)
        return relax.op.nn.pad(operands[0], [*widths, 0, 0], "constant", value)

    return InBlocks([call.args[0]], make)


_ELEMENTWISE = (
    "add subtract multiply divide maximum minimum negative abs exp log sqrt rsqrt tanh erf sigmoid "
    "clip power nn.relu nn.relu6 nn.silu nn.gelu nn.gelu_tanh nn.leakyrelu nn.softplus"
)
_RULES: dict[str, Callable[[relax.Call, int], InBlocks | None]] = {
    **{f"relax.{name}": _elementwise for name in _ELEMENTWISE.split()},
    "relax.nn.prelu": _prelu,
    "relax.nn.max_pool2d": _pool,
    "relax.nn.avg_pool2d": _pool,
    "relax.nn.adaptive_avg_pool2d": _global,
    "relax.mean": _global,
    "relax.sum": _global,
    "relax.max": _global,
    "relax.concat": _concat,
    "relax.image.resize2d": _resize,
    "relax.strided_slice": _slice,
    "relax.nn.pad": _pad,
}
