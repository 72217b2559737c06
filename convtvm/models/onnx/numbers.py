"""Converters of operators that look at what kind of number an element is, or at its bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper
from tvm import relax, te, tirx
from tvm.relax.frontend.onnx import onnx_frontend as frontend

from convtvm.dispatch.model_manifest import DTYPES
from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node


def _by_tvm(node: Node) -> Any:
    """What TVM's own converter makes of the node."""
    convert = getattr(frontend, node.proto.op_type).get_converter(node.opset)
    return convert(node.builder, frontend.onnx_input(node.inputs), dict(node.attributes), [{}, {}])


def _remainder(node: Node) -> relax.Expr:
    """Of an infinite divisor: the dividend itself, or the divisor where Python's rule makes the
    remainder's sign the divisor's."""
    made = _by_tvm(node)
    if not node.dtype().startswith("float"):
        return made
    x, y = node.input(0), node.input(1)
    zero = node.const(0)
    is_beyond = relax.op.logical_and(relax.op.isinf(y), relax.op.isfinite(x))
    whole = x
    if not node.get("fmod", 0):
        opposed = relax.op.logical_or(
            relax.op.logical_and(relax.op.less(x, zero), relax.op.greater(y, zero)),
            relax.op.logical_and(relax.op.greater(x, zero), relax.op.less(y, zero)),
        )
        whole = relax.op.where(opposed, y, x)
    return relax.op.where(is_beyond, whole, node.emit(made))


def _shift(node: Node) -> relax.Expr:
    """By as many bits as there are, and more, or by fewer than none, nothing is left but the sign,
    and that only on the right."""
    x, amount = node.input(0), node.input(1)
    bits = np.dtype(node.dtype()).itemsize * 8
    fits = relax.op.less(amount, node.const(bits, 1))
    if node.dtype(1).startswith("int"):
        fits = relax.op.logical_and(fits, relax.op.greater_equal(amount, node.const(0, 1)))
    safe = node.emit(relax.op.where(fits, amount, node.const(0, 1)))
    left = node.get("direction") == "LEFT"
    shifted = (relax.op.left_shift if left else relax.op.right_shift)(x, safe)
    rest = node.const(0)
    if not left and node.dtype().startswith("int"):
        rest = relax.op.where(relax.op.less(x, rest), node.const(-1), rest)
    return relax.op.where(fits, node.emit(shifted), rest)


def _same_bits(node: Node) -> relax.Expr:
    """The bits of every element as a number of another type of as many."""
    name = str(helper.tensor_dtype_to_np_dtype(node.get("to")))
    if name == "float16" or name not in DTYPES:
        raise node.fails(f"makes {name} of bits, which nothing computes")
    if np.dtype(name).itemsize != np.dtype(node.dtype()).itemsize:
        raise node.fails(f"makes {name} of the bits of {node.dtype()}, expected as many bits")

    def compute(data: te.Tensor) -> te.Tensor:
        # A truth value is a byte of 0 or 1 that kernels hold in a bit.
        turned = tirx.Cast if "bool" in (name, data.dtype) else tirx.reinterpret
        return te.compute(data.shape, lambda *i: turned(name, data(*i)), name="bits")

    return node.builder.call_te(compute, node.input(), primfunc_name_hint="bits")


def _is_infinite(node: Node) -> relax.Expr:
    x, zero = node.input(), node.const(0)
    found = relax.op.isinf(x)
    if not node.get("detect_negative", 1):
        found = relax.op.logical_and(found, relax.op.greater(x, zero))
    if not node.get("detect_positive", 1):
        found = relax.op.logical_and(found, relax.op.less(x, zero))
    return found


CONVERTERS: dict[str, Converter] = {
    "Mod": _remainder,
    "BitShift": _shift,
    "BitCast": _same_bits,
    "IsInf": _is_infinite,
}
