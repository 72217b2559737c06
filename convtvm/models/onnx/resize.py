"""Converters of Resize and Upsample, whose operands and rules every few opsets changed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import relax

from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node
from convtvm.models.resizing import ROUNDINGS, Axis, Manner, resized


def _resize(node: Node) -> relax.Expr:
    mode = node.get("mode", "nearest")
    mode = {"bilinear": "linear"}.get(mode, mode)
    if mode not in ("nearest", "linear", "cubic"):
        raise node.fails(f"resizes by mode {mode}, expected nearest, linear or cubic")
    if node.opset < 11:  # one rule, and no attribute for it
        return resized(
            node.builder,
            node.input(),
            _axes(node),
            Manner(mode, "asymmetric", single=mode == "nearest"),
        )
    rounding = node.get("nearest_mode", "round_prefer_floor")
    if rounding not in ROUNDINGS:
        raise node.fails(f"rounds by {rounding}, expected one of {', '.join(ROUNDINGS)}")
    manner = Manner(
        mode,
        node.get("coordinate_transformation_mode", "half_pixel"),
        rounding,
        float(node.get("cubic_coeff_a", -0.75)),
        bool(node.get("exclude_outside", 0)),
        bool(node.get("antialias", 0)),
        float(node.get("extrapolation_value", 0.0)),
        single=mode == "nearest",
    )
    return resized(node.builder, node.input(), _axes(node), manner)


def _axes(node: Node) -> list[Axis]:
    """Every axis of the operand, from scales or sizes."""
    shape = node.shape()
    scales, sizes, roi = _operands(node)
    chosen = node.axes(node.get("axes") or range(len(shape)), len(shape))
    found = [Axis(n, n, 1.0) for n in shape]
    given = scales if scales is not None else sizes
    if given is None or len(given) != len(chosen):
        raise node.fails(f"expected a scale or a size for each of {len(chosen)} axes")
    if any(not 0 < value < math.inf for value in given):
        raise node.fails(f"resizes by {list(given)}, expected numbers above 0; is --shape right?")
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if sizes is not None and policy != "stretch":
        pick = min if policy == "not_larger" else max
        ratio = pick(size / shape[axis] for size, axis in zip(sizes, chosen, strict=True))
        sizes = [math.floor(ratio * shape[axis] + 0.5) for axis in chosen]
        scales = [ratio] * len(chosen)
    for i, axis in enumerate(chosen):
        old = shape[axis]
        new = int(sizes[i]) if sizes is not None else math.floor(old * scales[i])  # type: ignore[index]
        scale = float(scales[i]) if scales is not None else new / old
        ends = (float(roi[i]), float(roi[i + len(chosen)])) if len(roi) else (0.0, 1.0)
        if new < 1:
            raise node.fails(f"leaves nothing of axis {axis}; is --shape right?")
        found[axis] = Axis(old, new, scale, ends)
    return found


def _operands(node: Node) -> tuple[Sequence[float] | None, list[int] | None, np.ndarray]:
    """Scales, sizes and the region of interest; which operand is which depends on the opset."""
    none = np.zeros(0)
    if node.proto.op_type == "Upsample" or node.opset < 11:
        array = node.array(1, "scales")
        scales = node.get("scales") if array is None else array.reshape(-1).tolist()
        if scales is None and node.get("height_scale") is not None:  # opset 1 to 6
            scales = [1.0, 1.0, node.get("height_scale"), node.get("width_scale", 1.0)]
        return scales, None, none
    roi, scales, sizes = (
        node.array(i, name) for i, name in ((1, "roi"), (2, "scales"), (3, "sizes"))
    )
    return (
        None if scales is None or not scales.size else scales.reshape(-1).tolist(),
        None if sizes is None or not sizes.size else [int(size) for size in sizes.reshape(-1)],
        none if roi is None else roi.reshape(-1),
    )


CONVERTERS: dict[str, Converter] = {"Resize": _resize, "Upsample": _resize}
