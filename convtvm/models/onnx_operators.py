"""Converters of ONNX operators that TVM lacks, gets wrong, or turns into opaque calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import numpy_helper
from tvm import relax

from convtvm.models.constants import constant
from convtvm.models.onnx_node import Node

Converter = Callable[[Node], Any]


def _identity(node: Node) -> relax.Expr:
    return node.input()


def _constant(node: Node) -> relax.Expr:
    for name, dtype in (("value_float", "float32"), ("value_floats", "float32")):
        if node.get(name) is not None:
            return constant(np.asarray(node.get(name), dtype))
    for name in ("value_int", "value_ints"):
        if node.get(name) is not None:
            return constant(np.asarray(node.get(name), "int64"))
    if node.get("value") is None:
        raise node.fails("holds neither a tensor nor numbers")
    return constant(numpy_helper.to_array(node.get("value")))


def _shape(node: Node) -> relax.Expr:
    shape = node.shape()
    start, end = node.get("start", 0), node.get("end", len(shape))
    return constant(np.array(shape[start:end], "int64"))


def _size(node: Node) -> relax.Expr:
    return constant(np.array(math.prod(node.shape()), "int64"))


def _clip(node: Node) -> relax.Expr:
    bounds = []
    for index, name, free in ((1, "min", -math.inf), (2, "max", math.inf)):
        array = node.array(index, f"{name} bound")
        bound = node.get(name, free) if array is None else array.item()
        bounds.append(free if math.isnan(bound) else bound)
    return relax.op.clip(node.input(), *bounds)


def _hard_sigmoid(node: Node) -> relax.Expr:
    slope, offset = node.const(node.get("alpha", 0.2)), node.const(node.get("beta", 0.5))
    x = relax.op.add(relax.op.multiply(node.input(), slope), offset)
    return relax.op.clip(x, 0, 1)


def _hard_swish(node: Node) -> relax.Expr:
    x = node.input()
    gate = relax.op.add(relax.op.multiply(x, node.const(1 / 6)), node.const(0.5))
    return relax.op.multiply(x, relax.op.clip(gate, 0, 1))


CONVERTERS: dict[str, Converter] = {
    "Identity": _identity,
    "Dropout": _identity,
    "Constant": _constant,
    "Shape": _shape,
    "Size": _size,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
}
