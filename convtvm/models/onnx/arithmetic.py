"""Converters of element-wise operators, matrix products and reductions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend as frontend

from convtvm.models.constants import array_of, constant
from convtvm.models.onnx.node import Node

# From a node to its result, or to a list of results.
Converter = Callable[[Node], Any]


def _identity(node: Node) -> relax.Expr:
    return node.input()


def _dropout(node: Node) -> list[relax.Expr]:
    """The data, and the mask of what is kept: all."""
    training = node.array(2, "training mode")
    ratio = array_of(node.input(1)) if node.has(1) else np.float32(0.5)
    if training is not None and training.any() and (ratio is None or ratio.any()):
        raise node.fails("is in training mode; export the model for inference")
    if len(node.proto.output) < 2:
        return [node.input()]
    kept = np.ones(node.shape(), bool if node.opset >= 10 else node.dtype())
    return [node.input(), constant(kept)]


def _constant(node: Node) -> relax.Expr:
    for name, dtype in (("value_float", "float32"), ("value_int", "int64")):
        for form in (name, f"{name}s"):
            if node.get(form) is not None:
                return constant(np.asarray(node.get(form), dtype))
    if node.get("value") is None:
        raise node.fails("expected a dense tensor or numbers")
    array = numpy_helper.to_array(node.get("value"))
    return constant(
        array.astype("float32") if str(array.dtype) in ("float16", "bfloat16") else array
    )


def _cast(node: Node) -> relax.Expr:
    to = node.get("to")
    if isinstance(to, str):  # opset 1 to 5
        to = TensorProto.DataType.Value(to)
    if to in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        to = TensorProto.FLOAT
    if to == TensorProto.STRING:
        raise node.fails("makes text, expected numbers")
    dtype = frontend.get_type(to)
    if dtype == node.dtype():
        return node.input()
    operands = frontend.onnx_input([node.input()])
    return frontend.Cast.get_converter(node.opset)(node.builder, operands, {"to": to}, [{}, {}])


# --- two operands and more ---------------------------------------------------------------------


def _aligned(node: Node) -> tuple[relax.Expr, relax.Expr]:
    """Two operands; before opset 7 the second may say at which axis it begins."""
    a, b = node.input(0), node.input(1)
    if node.opset < 7 and node.get("broadcast") and node.get("axis") is not None:
        axis, shape = node.axis(node.get("axis"), len(node.shape())), node.shape(1)
        trailing = len(node.shape()) - axis - len(shape)
        b = relax.op.reshape(b, (*shape, *(1,) * trailing))
    return a, b


def _binary(operator: Callable[..., relax.Expr]) -> Converter:
    return lambda node: operator(*_aligned(node))


def _divide(node: Node) -> relax.Expr:
    a, b = _aligned(node)
    if node.dtype().startswith("float"):
        return relax.op.divide(a, b)
    operands = frontend.onnx_input([a, b])
    return frontend.Div.get_converter(7)(node.builder, operands, {}, [{}, {}])


def _power(node: Node) -> relax.Expr:
    base, exponent = _aligned(node)
    array = array_of(exponent)
    is_number = array is not None and array.size == 1 and array.ndim <= len(node.shape())
    is_float = node.dtype().startswith("float")
    number = array.item() if is_number else None  # type: ignore[union-attr]
    if number in (1, 2, 3, 4):  # C's pow takes a hundred times as long
        return functools.reduce(relax.op.multiply, [base] * int(number))
    if is_float and number == 0.5:
        return relax.op.sqrt(base)
    if not is_float:  # whole up to 2^53
        wide = [node.emit(relax.op.astype(x, "float64")) for x in (base, exponent)]
        return relax.op.astype(node.emit(relax.op.power(*wide)), node.dtype())
    if node.dtype(1) != node.dtype():
        exponent = relax.op.astype(exponent, node.dtype())
    return relax.op.power(base, exponent)


def _pairwise(operator: Callable[..., relax.Expr]) -> Converter:
    """Any number of operands, taken together from the left."""

    def convert(node: Node) -> relax.Expr:
        operands = [node.input(index) for index in range(len(node.inputs))]
        return functools.reduce(lambda a, b: node.emit(operator(a, b)), operands)

    return convert


def _mean(node: Node) -> relax.Expr:
    total = _pairwise(relax.op.add)(node)
    return relax.op.multiply(total, node.const(1 / len(node.inputs)))


def _matmul(node: Node) -> relax.Expr:
    return relax.op.matmul(node.input(0), node.input(1))


def _gemm(node: Node) -> relax.Expr:
    a, b = node.input(0), node.input(1)
    if node.get("transA", 0):
        a = relax.op.permute_dims(a, [1, 0])
    if node.get("transB", 0):
        b = relax.op.permute_dims(b, [1, 0])
    product = node.emit(relax.op.matmul(a, b))
    if node.get("alpha", 1.0) != 1:
        product = node.emit(relax.op.multiply(product, node.const(node.get("alpha"))))
    if not node.has(2) or node.get("beta", 1.0) == 0:
        return product
    term, beta = node.input(2), node.get("beta", 1.0)
    if beta != 1:
        term = relax.op.multiply(term, node.const(beta))
    return relax.op.add(product, term)


# --- activations -------------------------------------------------------------------------------


def _clip(node: Node) -> relax.Expr:
    x = node.input()
    arrays = [array_of(node.input(i)) if node.has(i) else None for i in (1, 2)]
    if any(node.has(i) and array is None for i, array in zip((1, 2), arrays, strict=True)):
        for i, operator in ((1, relax.op.maximum), (2, relax.op.minimum)):
            x = operator(x, node.input(i)) if node.has(i) else x
        return x
    bounds = []
    for array, name, free in zip(arrays, ("min", "max"), (-math.inf, math.inf), strict=True):
        bound = node.get(name, free) if array is None else array.item()
        bounds.append(free if math.isnan(bound) else bound)
    if not node.dtype().startswith("float"):
        info = np.iinfo(node.dtype())
        bounds = [int(min(max(bound, info.min), info.max)) for bound in bounds]
    low, high = bounds
    return relax.op.clip(x, min(low, high), high)


def _hard_sigmoid(node: Node) -> relax.Expr:
    slope, offset = node.const(node.get("alpha", 0.2)), node.const(node.get("beta", 0.5))
    x = relax.op.add(relax.op.multiply(node.input(), slope), offset)
    return relax.op.clip(x, 0, 1)


def _hard_swish(node: Node) -> relax.Expr:
    x = node.input()
    gate = relax.op.add(relax.op.multiply(x, node.const(1 / 6)), node.const(0.5))
    return relax.op.multiply(x, relax.op.clip(gate, 0, 1))


def _swish(node: Node) -> relax.Expr:
    x, alpha = node.input(), node.get("alpha", 1.0)
    inner = x if alpha == 1 else relax.op.multiply(x, node.const(alpha))
    return relax.op.multiply(x, relax.op.sigmoid(inner))


def _elu(node: Node) -> relax.Expr:
    return _exponential(node, node.get("alpha", 1.0))


def _celu(node: Node) -> relax.Expr:
    alpha = node.get("alpha", 1.0)
    return _exponential(node, alpha, 1 / alpha)


def _selu(node: Node) -> relax.Expr:
    alpha = node.get("alpha", 1.67326319217681884765625)
    gamma = node.get("gamma", 1.05070102214813232421875)
    return relax.op.multiply(node.emit(_exponential(node, alpha)), node.const(gamma))


def _exponential(node: Node, alpha: float, slope: float = 1.0) -> relax.Expr:
    """x where it is positive, alpha * (exp(slope * x) - 1) where it is not."""
    x, zero = node.input(), node.const(0)
    below = relax.op.minimum(x, zero)
    below = relax.op.multiply(below, node.const(slope)) if slope != 1 else below
    below = relax.op.multiply(
        relax.op.subtract(relax.op.exp(below), node.const(1)), node.const(alpha)
    )
    return relax.op.add(relax.op.maximum(x, zero), below)


def _thresholded_relu(node: Node) -> relax.Expr:
    x = node.input()
    above = relax.op.greater(x, node.const(node.get("alpha", 1.0)))
    return relax.op.where(above, x, node.const(0))


def _prelu(node: Node) -> relax.Expr:
    x, slope, ndim = node.input(), node.input(1), len(node.shape())
    shape = node.shape(1)
    if node.opset < 7 and len(shape) == 1:  # not yet numpy's broadcasting: one a channel
        shape = (*shape, *(1,) * (ndim - 2))
    full = (1,) * (ndim - len(shape)) + shape
    wide = [axis for axis, extent in enumerate(full) if extent != 1]
    if wide in ([], [1]) and ndim > 1:
        channels = node.shape()[1]
        slope = relax.op.broadcast_to(relax.op.reshape(slope, (-1,)), (channels,))
        return relax.op.nn.prelu(x, slope, 1)
    slope = relax.op.reshape(slope, full)
    negative = relax.op.less(x, node.const(0))
    return relax.op.where(negative, relax.op.multiply(x, slope), x)


# --- reductions --------------------------------------------------------------------------------


def _reduction(
    operator: Callable[..., relax.Expr],
    before: Callable[[relax.Expr], relax.Expr] = lambda x: x,
    after: Callable[[relax.Expr], relax.Expr] = lambda x: x,
) -> Converter:
    """A reduction over the axes that an attribute or, later, an operand lists."""

    def convert(node: Node) -> relax.Expr:
        axes, ndim = node.numbers(1, "axes"), len(node.shape())
        if not axes and node.get("noop_with_empty_axes", 0):
            return after(before(node.input()))
        found = node.axes(axes or range(ndim), ndim)
        return after(operator(before(node.input()), found, bool(node.get("keepdims", 1))))

    return convert


def _squared(x: relax.Expr) -> relax.Expr:
    return relax.op.multiply(x, x)


def _log_sum_exp(node: Node) -> relax.Expr:
    """Shifted by the largest element, which alone decides whether exp overflows; an infinite one
    decides all by itself."""
    axes, ndim = node.numbers(1, "axes"), len(node.shape())
    if not axes and node.get("noop_with_empty_axes", 0):
        return node.input()
    found, x = node.axes(axes or range(ndim), ndim), node.input()
    largest = node.emit(relax.op.max(x, found, True))
    total = relax.op.sum(relax.op.exp(relax.op.subtract(x, largest)), found, True)
    whole = node.emit(relax.op.add(relax.op.log(total), largest))
    whole = node.emit(relax.op.where(relax.op.isinf(largest), largest, whole))
    return whole if node.get("keepdims", 1) else relax.op.squeeze(whole, found)


def _mean_variance(node: Node) -> relax.Expr:
    axes, x = node.axes(node.get("axes", (0, 2, 3)), len(node.shape())), node.input()
    centred = node.emit(relax.op.subtract(x, relax.op.mean(x, axes, True)))
    variance = relax.op.mean(_squared(centred), axes, True)
    spread = relax.op.add(relax.op.sqrt(variance), node.const(1e-9))
    return relax.op.divide(centred, spread)


CONVERTERS: dict[str, Converter] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Constant": _constant,
    "Cast": _cast,
    "Add": _binary(relax.op.add),
    "Sub": _binary(relax.op.subtract),
    "Mul": _binary(relax.op.multiply),
    "Div": _divide,
    "Pow": _power,
    "Less": _binary(relax.op.less),
    "Greater": _binary(relax.op.greater),
    "Equal": _binary(relax.op.equal),
    "And": _binary(relax.op.logical_and),
    "Or": _binary(relax.op.logical_or),
    "Xor": _binary(relax.op.logical_xor),
    "Min": _pairwise(relax.op.minimum),
    "Max": _pairwise(relax.op.maximum),
    "Sum": _pairwise(relax.op.add),
    "Mean": _mean,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Swish": _swish,
    "Elu": _elu,
    "Celu": _celu,
    "Selu": _selu,
    "ThresholdedRelu": _thresholded_relu,
    "PRelu": _prelu,
    "ReduceMax": _reduction(relax.op.max),
    "ReduceMin": _reduction(relax.op.min),
    "ReduceSum": _reduction(relax.op.sum),
    "ReduceMean": _reduction(relax.op.mean),
    "ReduceProd": _reduction(relax.op.prod),
    "ReduceL1": _reduction(relax.op.sum, before=relax.op.abs),
    "ReduceL2": _reduction(relax.op.sum, before=_squared, after=relax.op.sqrt),
    "ReduceSumSquare": _reduction(relax.op.sum, before=_squared),
    "ReduceLogSum": _reduction(relax.op.sum, after=relax.op.log),
    "ReduceLogSumExp": _log_sum_exp,
    "MeanVarianceNormalization": _mean_variance,
}
