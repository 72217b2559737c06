"""Converters of operators of the first ONNX files, which later versions of ONNX dropped."""

from __future__ import annotations

import numpy as np
from tvm import relax

from convtvm.models.constants import constant
from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node


def _times(node: Node, x: relax.Expr, factor: float) -> relax.Expr:
    return node.emit(relax.op.multiply(x, node.const(factor)))


def _image_scaler(node: Node) -> relax.Expr:
    """One factor for all, then one term a channel."""
    scaled, channels = _times(node, node.input(), node.get("scale", 1.0)), node.shape()[1]
    bias = node.get("bias") or (0.0,) * channels
    if len(bias) != channels:
        raise node.fails(f"has {len(bias)} biases for {channels} channels")
    terms = np.array(bias, node.dtype()).reshape(-1, *(1,) * (len(node.shape()) - 2))
    return relax.op.add(scaled, constant(terms))


def _affine(node: Node) -> relax.Expr:
    scaled = _times(node, node.input(), node.get("alpha", 1.0))
    return relax.op.add(scaled, node.const(node.get("beta", 0.0)))


def _scaled_tanh(node: Node) -> relax.Expr:
    inner = relax.op.tanh(_times(node, node.input(), node.get("beta", 1.0)))
    return relax.op.multiply(inner, node.const(node.get("alpha", 1.0)))


def _parametric_softplus(node: Node) -> relax.Expr:
    inner = relax.op.nn.softplus(_times(node, node.input(), node.get("beta", 1.0)))
    return relax.op.multiply(inner, node.const(node.get("alpha", 1.0)))


def _crop(node: Node) -> relax.Expr:
    """Without its borders (left, top, right, bottom), or a size that begins after the first two."""
    *_, height, width = node.shape()
    left, top, right, bottom = node.sizes("border", [0] * 4)
    ends = [height - bottom, width - right]
    if node.get("scale"):
        ends = [top + node.get("scale")[0], left + node.get("scale")[1]]
    if not (0 <= top < ends[0] <= height and 0 <= left < ends[1] <= width):
        raise node.fails(f"keeps {top}:{ends[0]} of {height} rows, {left}:{ends[1]} of {width}")
    return relax.op.strided_slice(node.input(), [2, 3], [top, left], ends)


CONVERTERS: dict[str, Converter] = {
    "ImageScaler": _image_scaler,
    "Affine": _affine,
    "ScaledTanh": _scaled_tanh,
    "ParametricSoftplus": _parametric_softplus,
    "Crop": _crop,
}
