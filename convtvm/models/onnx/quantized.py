"""Converters of quantised operators, computed in float32 on the whole numbers that they hold.

Sums of products of 8-bit numbers are exact there up to 2^24, which 500 products of the largest
ones reach; beyond that they are rounded, to one part in ten million.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import helper
from tvm import relax

from convtvm.models.constants import array_of, static_shape
from convtvm.models.onnx import arithmetic, layers
from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node

_FLOAT = "float32"
_TYPES = ("int8", "uint8", "int16", "uint16", "int32")


# --- one tensor --------------------------------------------------------------------------------


def _in_float(node: Node, index: int) -> relax.Expr:
    """An operand as float32."""
    expr = node.input(index)
    return expr if node.dtype(index) == _FLOAT else node.emit(relax.op.astype(expr, _FLOAT))


def _along(node: Node, index: int, axis: int, ndim: int) -> relax.Expr:
    """A scale or zero point in float32: one number, or one for each place of an axis."""
    shape = node.shape(index)
    expr = _in_float(node, index)
    if len(shape) > 1 and node.get("block_size", 0):
        return _of_blocks(node, expr, node.axis(axis, ndim))
    if int(np.prod(shape)) == 1:
        return relax.op.reshape(expr, ())
    if len(shape) != 1:
        raise node.fails(f"has scales {shape}, expected one or one for each place of an axis")
    full = [1] * ndim
    full[node.axis(axis, ndim)] = shape[0]
    return relax.op.reshape(expr, full)


def _of_blocks(node: Node, expr: relax.Expr, axis: int) -> relax.Expr:
    """A scale or zero point of every block of an axis, repeated for each of its places."""
    shape, block, extent = static_shape(expr), int(node.get("block_size")), node.shape()[axis]
    others = [n for i, n in enumerate(node.shape()) if i != axis]
    if [n for i, n in enumerate(shape) if i != axis] != others or shape[axis] != -(
        -extent // block
    ):
        raise node.fails(
            f"has scales {shape} for blocks of {block} along axis {axis} of {node.shape()}"
        )
    wide = node.emit(relax.op.repeat(expr, block, axis))
    if shape[axis] * block == extent:
        return wide
    return node.emit(relax.op.strided_slice(wide, [axis], [0], [extent]))


def _without_zero_point(
    node: Node, index: int, zero_point: int, axis: int = 0, ndim: int | None = None
) -> relax.Expr:
    """The whole numbers that an operand stands for, as float32."""
    x = _in_float(node, index)
    if not node.has(zero_point):
        return x
    array = array_of(node.input(zero_point))
    if array is not None and not array.any():
        return x
    ndim = len(node.shape(index)) if ndim is None else ndim
    return node.emit(relax.op.subtract(x, _along(node, zero_point, axis, ndim)))


def _dequantized(node: Node, index: int, axis: int = 0) -> relax.Expr:
    """The tensor that the operands at `index`, value, scale and zero point, stand for."""
    whole = _without_zero_point(node, index, index + 2, axis)
    scale = _along(node, index + 1, axis, len(node.shape(index)))
    return node.emit(relax.op.multiply(whole, scale))


def _rounded(
    node: Node, scaled: relax.Expr, zero_point: relax.Expr | None, dtype: str
) -> relax.Expr:
    """Numbers in steps of the scale, as the nearest of `dtype` that there is."""
    if dtype not in _TYPES:
        raise node.fails(f"makes {dtype}, expected one of {', '.join(_TYPES)}")
    whole = node.emit(relax.op.round(scaled))
    if zero_point is not None:
        whole = node.emit(relax.op.add(whole, zero_point))
    bounds = np.iinfo(dtype)
    return relax.op.astype(node.emit(relax.op.clip(whole, bounds.min, bounds.max)), dtype)


def _quantized(node: Node, x: relax.Expr, scale: int, axis: int = 0) -> relax.Expr:
    """`x` in steps of the operand at `scale`, around the zero point that follows it."""
    ndim = len(x.ty.shape)
    steps = node.emit(relax.op.divide(x, _along(node, scale, axis, ndim)))
    if not node.has(scale + 1):
        wanted = node.get("output_dtype", 0)
        dtype = str(helper.tensor_dtype_to_np_dtype(wanted)) if wanted else "uint8"
        return _rounded(node, steps, None, dtype)
    zero_point = _along(node, scale + 1, axis, ndim)
    return _rounded(node, steps, zero_point, node.dtype(scale + 1))


def _quantize(node: Node) -> relax.Expr:
    if node.dtype(1) != _FLOAT:
        raise node.fails(f"has a scale of {node.dtype(1)}, expected float32")
    return _quantized(node, _in_float(node, 0), 1, node.get("axis", 1))


def _dequantize(node: Node) -> relax.Expr:
    return _dequantized(node, 0, node.get("axis", 1))


def _dynamic(node: Node) -> list[relax.Expr]:
    """The 8-bit numbers, the scale and the zero point that the range of the data asks for."""
    x, zero = node.input(), node.const(0)
    low = node.emit(relax.op.minimum(relax.op.min(x), zero))
    high = node.emit(relax.op.maximum(relax.op.max(x), zero))
    scale = node.emit(relax.op.divide(relax.op.subtract(high, low), node.const(255)))
    is_flat = relax.op.equal(scale, zero)
    scale = node.emit(relax.op.where(is_flat, node.const(1), scale))
    point = relax.op.round(relax.op.divide(relax.op.subtract(zero, low), scale))
    point = node.emit(relax.op.clip(node.emit(point), 0, 255))
    steps = node.emit(relax.op.divide(x, scale))
    return [_rounded(node, steps, point, "uint8"), scale, relax.op.astype(point, "uint8")]


def in_steps(node: Node) -> relax.Expr:
    """The first operand rounded to 8 bits by its range, as floats again."""
    whole, scale, point = map(node.emit, _dynamic(node))
    floats = [node.emit(relax.op.astype(part, _FLOAT)) for part in (whole, point)]
    return node.emit(relax.op.multiply(node.emit(relax.op.subtract(*floats)), scale))


# --- convolutions and products -----------------------------------------------------------------


def _whole_numbers(node: Node, sums: relax.Expr) -> relax.Expr:
    return relax.op.astype(node.emit(relax.op.round(node.emit(sums))), "int32")


def _conv_integer(node: Node) -> relax.Expr:
    operands: list[relax.Expr | None] = [
        _without_zero_point(node, 0, 2),
        _without_zero_point(node, 1, 3),
    ]
    return _whole_numbers(node, layers.convolution(replace(node, inputs=operands)))


def _matmul_integer(node: Node) -> relax.Expr:
    a = _without_zero_point(node, 0, 2, axis=len(node.shape()) - 2 if len(node.shape()) > 1 else 0)
    b = _without_zero_point(node, 1, 3, axis=len(node.shape(1)) - 1)
    return _whole_numbers(node, relax.op.matmul(a, b))


def _conv_linear(node: Node) -> relax.Expr:
    """Of x, its scale and zero point, the weight's, the output's, and a bias in whole numbers of
    both scales."""
    data, weight = _without_zero_point(node, 0, 2), _without_zero_point(node, 3, 5)
    ndim = len(node.shape())
    inputs: list[relax.Expr | None] = [data, weight]
    if node.has(8):
        inputs.append(_in_float(node, 8))
    sums = node.emit(layers.convolution(replace(node, inputs=inputs)))
    factor = relax.op.multiply(_along(node, 1, 1, ndim), _along(node, 4, 1, ndim))
    return _quantized(node, node.emit(relax.op.multiply(sums, node.emit(factor))), 6)


def _matmul_linear(node: Node) -> relax.Expr:
    rows, columns = max(0, len(node.shape()) - 2), len(node.shape(3)) - 1
    a, b = _dequantized(node, 0, rows), _dequantized(node, 3, columns)
    return _quantized(node, node.emit(relax.op.matmul(a, b)), 6)


# --- ONNX Runtime's own ------------------------------------------------------------------------


def _linear(convert: Converter, operands: int) -> Converter:
    """An operator on what its quantised operands stand for; its result quantised."""

    def made(node: Node) -> relax.Expr:
        inputs: list[relax.Expr | None] = [_dequantized(node, 3 * i) for i in range(operands)]
        result = node.emit(convert(replace(node, inputs=inputs)))
        return _quantized(node, result, 3 * operands)

    return made


def _concat_linear(node: Node) -> relax.Expr:
    parts = [_dequantized(node, index) for index in range(2, len(node.inputs), 3)]
    return _quantized(node, node.emit(relax.op.concat(parts, node.get("axis", 1))), 0)


def _average(convert: Converter) -> Converter:
    def made(node: Node) -> relax.Expr:
        if node.get("channels_last", 0):
            raise node.fails("takes its channels last, expected images in NCHW")
        return convert(node)

    return made


def _gemm_linear(node: Node) -> relax.Expr:
    """Without a scale for its output, the result is a float."""
    columns, alpha = 0 if node.get("transB", 0) else 1, float(node.get("alpha", 1.0))
    inputs: list[relax.Expr | None] = [_dequantized(node, 0), _dequantized(node, 3, columns)]
    if node.has(6):
        scale = relax.op.multiply(_along(node, 1, 0, 1), _along(node, 4, 0, 1))
        inputs.append(node.emit(relax.op.multiply(_in_float(node, 6), node.emit(scale))))
    plain = replace(node, inputs=inputs, attributes={**node.attributes, "alpha": 1.0})
    result = node.emit(arithmetic.CONVERTERS["Gemm"](plain))
    if alpha != 1:
        result = node.emit(relax.op.multiply(result, relax.const(alpha, _FLOAT)))
    return _quantized(node, result, 7) if node.has(7) else result


def _product_in_float(node: Node) -> relax.Expr:
    """Of a and b in whole numbers: a, b, their scales, their zero points, what is added."""
    columns = len(node.shape(1)) - 1
    a = _without_zero_point(node, 0, 4)
    b = _without_zero_point(node, 1, 5, axis=columns)
    return _scaled_product(node, relax.op.matmul(a, b), (2, 3), 6)


def _dynamic_product(node: Node) -> relax.Expr:
    """Of a float, which is quantised by its range, and b: a, b, b's scale and zero point, what is
    added."""
    whole, scale, point = map(node.emit, _dynamic(node))
    a = node.emit(relax.op.subtract(relax.op.astype(whole, _FLOAT), relax.op.astype(point, _FLOAT)))
    b = _without_zero_point(node, 1, 3, axis=len(node.shape(1)) - 1)
    product = node.emit(relax.op.multiply(node.emit(relax.op.matmul(a, b)), scale))
    return _scaled_product(node, product, (2,), 4)


def _scaled_product(
    node: Node, product: relax.Expr, scales: tuple[int, ...], added: int
) -> relax.Expr:
    """A product of matrices times scales, of all or of each column, plus a row."""
    made = node.emit(product)
    ndim = len(static_shape(made))
    for index in scales:
        made = node.emit(relax.op.multiply(made, _along(node, index, ndim - 1, ndim)))
    return relax.op.add(made, node.input(added)) if node.has(added) else made


def _softmax(node: Node) -> relax.Expr:
    return relax.op.nn.softmax(node.input(), node.get("axis", -1))


def _leaky(node: Node) -> relax.Expr:
    return relax.op.nn.leakyrelu(node.input(), node.get("alpha", 0.01))


CONVERTERS: dict[str, Converter] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic,
    "ConvInteger": _conv_integer,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _conv_linear,
    "QLinearMatMul": _matmul_linear,
}
# Of the domain com.microsoft, as ONNX Runtime's quantiser writes them.
MICROSOFT: dict[str, Converter] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "QLinearAdd": _linear(lambda node: relax.op.add(*node.inputs), 2),
    "QLinearMul": _linear(lambda node: relax.op.multiply(*node.inputs), 2),
    "QLinearSigmoid": _linear(lambda node: relax.op.sigmoid(node.input()), 1),
    "QLinearLeakyRelu": _linear(_leaky, 1),
    "QLinearSoftmax": _linear(_softmax, 1),
    "QLinearAveragePool": _average(_linear(layers.CONVERTERS["AveragePool"], 1)),
    "QLinearGlobalAveragePool": _average(_linear(layers.CONVERTERS["GlobalAveragePool"], 1)),
    "QLinearConcat": _concat_linear,
    "QGemm": _gemm_linear,
    "MatMulIntegerToFloat": _product_in_float,
    "DynamicQuantizeMatMul": _dynamic_product,
}
