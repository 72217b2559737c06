"""Converters of the operators that ONNX Runtime's optimiser makes of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tvm import relax

from convtvm.models.onnx import arithmetic, layers
from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node


def _number(value: float) -> relax.Expr:
    return relax.const(float(value), "float32")


# What a fused convolution ends with, of its sum and the numbers `activation_params`.
_ACTIVATIONS: dict[str, Callable[[relax.Expr, Sequence[float]], relax.Expr]] = {
    "Relu": lambda x, _: relax.op.nn.relu(x),
    "Sigmoid": lambda x, _: relax.op.sigmoid(x),
    "Tanh": lambda x, _: relax.op.tanh(x),
    "LeakyRelu": lambda x, p: relax.op.nn.leakyrelu(x, p[0] if p else 0.01),
    "Clip": lambda x, p: relax.op.clip(x, p[0], p[1]),
    "HardSigmoid": lambda x, p: relax.op.clip(
        relax.op.add(relax.op.multiply(x, _number(p[0])), _number(p[1])), 0, 1
    ),
}


def _fused_conv(node: Node) -> relax.Expr:
    """A convolution, with operand 3 the addition of a tensor, then an activation."""
    made = node.emit(layers.convolution(replace(node, inputs=node.inputs[:3])))
    if node.has(3):
        made = node.emit(relax.op.add(made, node.input(3)))
    return _activated(node, made, node.get("activation_params") or ())


def _activated(node: Node, made: relax.Expr, numbers: Sequence[float]) -> relax.Expr:
    name = node.get("activation", "")
    if name and name not in _ACTIVATIONS:
        raise node.fails(f"ends with {name}, expected one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name](made, numbers) if name else made


def _fused_gemm(node: Node) -> relax.Expr:
    """A dense layer, then an activation whose numbers are attributes each."""
    made = node.emit(arithmetic.CONVERTERS["Gemm"](node))
    given = [node.get(f"activation_{name}") for name in ("alpha", "beta")]
    return _activated(node, made, [number for number in given if number is not None])


def _fused_product(node: Node) -> relax.Expr:
    """alpha times the product of matrices that may be transposed."""
    operands = []
    for index, letter in enumerate("AB"):
        if node.get(f"transBatch{letter}", 0):
            raise node.fails(f"transposes the batches of operand {index}, which nothing computes")
        operand, ndim = node.input(index), len(node.shape(index))
        if node.get(f"trans{letter}", 0) and ndim > 1:
            order = [*range(ndim - 2), ndim - 1, ndim - 2]
            operand = node.emit(relax.op.permute_dims(operand, order))
        operands.append(operand)
    product = node.emit(relax.op.matmul(*operands))
    alpha = node.get("alpha", 1.0)
    return product if alpha == 1 else relax.op.multiply(product, node.const(alpha))


def _quick_gelu(node: Node) -> relax.Expr:
    x = node.input()
    inner = node.emit(relax.op.multiply(x, node.const(node.get("alpha", 1.702))))
    return relax.op.multiply(x, relax.op.sigmoid(inner))


# Of the domain com.microsoft.
MICROSOFT: dict[str, Converter] = {
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_product,
    "TransposeMatMul": _fused_product,
    "QuickGelu": _quick_gelu,
}
