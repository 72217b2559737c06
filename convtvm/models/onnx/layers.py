"""Converters of layers: convolutions, pooling, normalisations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import relax

from convtvm.models.constants import array_of, constant
from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node
from convtvm.models.onnx.shapes import padded

_SPATIAL = {1: "W", 2: "HW", 3: "DHW"}
_PADDING_MODES = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
Window = tuple[list[int], list[int], list[int], list[int]]


def window(node: Node, kernel: Sequence[int], image: Sequence[int]) -> Window:
    """Strides, dilations, and the padding before and after every axis of an image."""
    ones = [1] * len(image)
    strides, dilations = node.sizes("strides", ones), node.sizes("dilations", ones)
    mode = _padding_mode(node)
    if mode in ("NOTSET", "VALID"):
        pads = (
            node.sizes("pads", [0] * 2 * len(image)) if mode == "NOTSET" else [0] * 2 * len(image)
        )
        if min(pads, default=0) < 0:
            raise node.fails(f"has pads {pads}, expected none below 0")
        return strides, dilations, pads[: len(image)], pads[len(image) :]
    before, after = [], []
    for extent, k, stride, dilation in zip(image, kernel, strides, dilations, strict=True):
        reach = (-(-extent // stride) - 1) * stride + (k - 1) * dilation + 1
        total = max(0, reach - extent)
        less, more = total // 2, total - total // 2
        before.append(less if mode == "SAME_UPPER" else more)
        after.append(more if mode == "SAME_UPPER" else less)
    return strides, dilations, before, after


def _padding_mode(node: Node) -> str:
    mode = node.get("auto_pad") or "NOTSET"
    if mode not in _PADDING_MODES:
        raise node.fails(f"pads by {mode}, expected one of {', '.join(_PADDING_MODES)}")
    return mode


def _check_channels(node: Node, weight_channels: int, filters: int) -> None:
    """Whether data, weight, groups and bias have the same numbers of channels."""
    groups, channels = int(node.get("group", 1)), node.shape()[1]
    if groups < 1 or channels != weight_channels or filters % groups:
        raise node.fails(
            f"has {channels} channels for a weight of {list(node.shape(1))} in {groups} groups"
        )
    if node.has(2) and math.prod(node.shape(2)) != filters:
        raise node.fails(f"has a bias of {list(node.shape(2))} for {filters} filters")


def _biased(node: Node, convolved: relax.Expr, spatial: int) -> relax.Expr:
    if not node.has(2):
        return convolved
    return relax.op.add(convolved, relax.op.reshape(node.input(2), (1, -1, *(1,) * spatial)))


def kernel_of(node: Node) -> tuple[int, ...]:
    """The kernel's sizes, of the weight."""
    kernel = node.shape(1)[2:]
    said = tuple(node.get("kernel_shape") or kernel)
    if said != kernel:
        raise node.fails(f"says a kernel of {list(said)}, but its weight has {list(kernel)}")
    return kernel


def convolution(node: Node) -> relax.Expr:
    """Of data, weight and, where there is one, bias; with Conv's attributes."""
    image, kernel = node.shape()[2:], kernel_of(node)
    spatial = _spatial(node, len(image))
    groups = int(node.get("group", 1))
    _check_channels(node, node.shape(1)[1] * groups, node.shape(1)[0])
    strides, dilations, before, after = window(node, kernel, image)
    convolve = getattr(relax.op.nn, f"conv{len(image)}d")
    convolved = convolve(
        node.input(),
        node.input(1),
        strides,
        before + after,
        dilations,
        groups,
        data_layout=f"NC{spatial}",
        kernel_layout=f"OI{spatial}",
    )
    return _biased(node, node.emit(convolved), len(image))


def _spatial(node: Node, axes: int) -> str:
    """The layout letters of the axes of an image."""
    if axes not in _SPATIAL:
        raise node.fails(f"has {axes} axes of an image, expected 1 to 3")
    return _SPATIAL[axes]


def _conv_transpose(node: Node) -> relax.Expr:
    image, kernel = node.shape()[2:], kernel_of(node)
    spatial, ones = _spatial(node, len(image)), [1] * len(image)
    _check_channels(node, node.shape(1)[0], node.shape(1)[1] * max(1, int(node.get("group", 1))))
    strides, dilations = node.sizes("strides", ones), node.sizes("dilations", ones)
    extra = node.sizes("output_padding", [0] * len(image))
    reach = [(k - 1) * dilation + 1 for k, dilation in zip(kernel, dilations, strict=True)]
    before, after = _transposed_padding(node, image, reach, strides, extra)
    sizes = [
        s * (n - 1) + e + r - b - a
        for n, s, e, r, b, a in zip(image, strides, extra, reach, before, after, strict=True)
    ]
    if min(sizes) < 1:
        raise node.fails(f"its padding leaves {sizes} of the image; is --shape right?")
    deconvolve = getattr(relax.op.nn, f"conv{len(image)}d_transpose")
    # Cut by a slice instead where more is taken away than the kernel reaches over the edge.
    cut = any(p >= r for p, r in zip([*before, *after], [*reach, *reach], strict=True))
    # Negative padding, of an output larger than the kernel fills, is zeros around it.
    kept = [0 if cut else max(0, p) for p in (*before, *after)]
    convolved = deconvolve(
        node.input(),
        node.input(1),
        strides,
        kept,
        output_padding=extra,
        dilation=dilations,
        groups=node.get("group", 1),
        data_layout=f"NC{spatial}",
        kernel_layout=f"IO{spatial}",
    )
    convolved = node.emit(convolved)
    pairs = zip(before, after, kept[: len(image)], kept[len(image) :], strict=True)
    widths = [(k0 - b, k1 - a) for b, a, k0, k1 in pairs]
    if any(map(any, widths)):
        convolved = node.emit(padded(convolved, [(0, 0), (0, 0), *widths]))
    return _biased(node, convolved, len(image))


def _transposed_padding(
    node: Node,
    image: Sequence[int],
    reach: Sequence[int],
    strides: Sequence[int],
    extra: Sequence[int],
) -> tuple[list[int], list[int]]:
    """What is taken away before and after every axis, by itself or for a wanted size."""
    mode, wanted = _padding_mode(node), node.get("output_shape")
    if wanted is None and mode in ("NOTSET", "VALID"):
        pads = (
            node.sizes("pads", [0] * 2 * len(image)) if mode == "NOTSET" else [0] * 2 * len(image)
        )
        return pads[: len(image)], pads[len(image) :]
    sizes = (
        list(wanted)[-len(image) :]
        if wanted
        else [n * s for n, s in zip(image, strides, strict=True)]
    )
    before, after = [], []
    for n, size, r, s, e in zip(image, sizes, reach, strides, extra, strict=True):
        total = s * (n - 1) + e + r - size
        less, more = total // 2, total - total // 2
        before.append(less if mode == "SAME_UPPER" else more)
        after.append(more if mode == "SAME_UPPER" else less)
    return before, after


# --- pooling -----------------------------------------------------------------------------------


def windows(node: Node) -> tuple[list[int], Window, list[int], list[int]]:
    """The kernel, its window, how far windows that the ceiling adds reach over the padding (those
    only that begin on the image or the padding before it), and how many windows there are."""
    image, kernel = node.shape()[2:], node.sizes("kernel_shape", [0] * (len(node.shape()) - 2))
    _spatial(node, len(image))
    made = strides, dilations, before, after = window(node, kernel, image)
    beyond, counts = [0] * len(image), [0] * len(image)
    for i, extent in enumerate(image):
        reach, padded_size = (kernel[i] - 1) * dilations[i] + 1, extent + before[i] + after[i]
        if max(before[i], after[i]) >= reach:
            raise node.fails(f"pads {before} and {after}, as far as its windows reach or farther")
        steps = (padded_size - reach) / strides[i]
        count = (math.ceil(steps) if node.get("ceil_mode", 0) else math.floor(steps)) + 1
        if node.get("ceil_mode", 0) and (count - 1) * strides[i] >= extent + before[i]:
            count -= 1
        beyond[i], counts[i] = max(0, (count - 1) * strides[i] + reach - padded_size), count
    return kernel, made, beyond, counts


def pool(node: Node, kind: str, include: bool) -> relax.Expr:
    """A pooling of a `kind`, whose padding counts or not; what lies beyond it does not."""
    x, (kernel, (strides, dilations, before, after), beyond, _) = node.input(), windows(node)
    if include and any(beyond):
        x = node.emit(padded(x, [(0, 0), (0, 0), *zip(before, after, strict=True)]))
        before, after, include = [0] * len(kernel), [0] * len(kernel), False
    after = [a + b for a, b in zip(after, beyond, strict=True)]
    operator = getattr(relax.op.nn, f"{kind}_pool{len(kernel)}d")
    return operator(x, kernel, strides, before + after, dilations, False, include)


def _average_pool(node: Node) -> relax.Expr:
    return pool(node, "avg", bool(node.get("count_include_pad", 0)))


def _lp_pool(node: Node) -> relax.Expr:
    """By the mean of powers over whole windows, zeros around the image written out."""
    p = float(node.get("p", 2))
    kernel, (strides, dilations, before, after), beyond, _ = windows(node)
    after = [a + b for a, b in zip(after, beyond, strict=True)]
    powers = node.emit(relax.op.power(relax.op.abs(node.input()), node.const(p)))
    powers = node.emit(padded(powers, [(0, 0), (0, 0), *zip(before, after, strict=True)]))
    average = getattr(relax.op.nn, f"avg_pool{len(kernel)}d")
    mean = node.emit(average(powers, kernel, strides, 0, dilations))
    total = relax.op.multiply(mean, node.const(math.prod(kernel)))
    return relax.op.power(total, node.const(1 / p))


def _global(operator: object) -> Converter:
    return lambda node: operator(  # type: ignore[operator]
        node.input(), list(range(2, len(node.shape()))), True
    )


def _global_lp_pool(node: Node) -> relax.Expr:
    p, axes = float(node.get("p", 2)), list(range(2, len(node.shape())))
    powers = relax.op.power(relax.op.abs(node.input()), node.const(p))
    return relax.op.power(relax.op.sum(powers, axes, True), node.const(1 / p))


# --- normalisations ----------------------------------------------------------------------------


def _batch_norm(node: Node) -> relax.Expr:
    if node.get("training_mode", 0):
        raise node.fails("is in training mode; export the model for inference")
    if node.opset < 9 and not node.get("spatial", 1):
        raise node.fails("normalises every pixel by itself (spatial=0), which nothing computes")
    statistics = [node.input(i) for i in range(1, 5)]
    epsilon = node.get("epsilon", 1e-5)
    made = relax.op.nn.batch_norm(
        node.input(), *statistics, axis=1, epsilon=epsilon, training=False
    )
    return relax.TupleGetItem(node.emit(made), 0)


def _instance_norm(node: Node) -> relax.Expr:
    x, axes = node.input(), list(range(2, len(node.shape())))
    return _standardised(node, x, axes, node.get("epsilon", 1e-5), [1, -1, *(1,) * len(axes)])


def _standardised(
    node: Node, x: relax.Expr, axes: list[int], epsilon: float, affine: Sequence[int]
) -> relax.Expr:
    """`x` minus mean over deviation along `axes`, times operand 1, plus operand 2."""
    centred = node.emit(relax.op.subtract(x, relax.op.mean(x, axes, True)))
    variance = relax.op.mean(relax.op.multiply(centred, centred), axes, True)
    inverse = relax.op.rsqrt(relax.op.add(variance, node.const(epsilon)))
    scale = relax.op.reshape(node.input(1), affine)
    made = relax.op.multiply(relax.op.multiply(centred, inverse), scale)
    return relax.op.add(made, relax.op.reshape(node.input(2), affine)) if node.has(2) else made


def _lp_norm(node: Node) -> relax.Expr:
    """Divided by the norm along an axis; where that is 0, nothing."""
    x, axis = node.input(), node.axis(node.get("axis", -1), len(node.shape()))
    if node.get("p", 2) == 1:
        norm = relax.op.sum(relax.op.abs(x), [axis], True)
    else:
        norm = relax.op.sqrt(relax.op.sum(relax.op.multiply(x, x), [axis], True))
    norm = node.emit(norm)
    divisor = relax.op.where(relax.op.equal(norm, node.const(0)), node.const(1), norm)
    return relax.op.divide(x, divisor)


def _layer_norm(node: Node) -> relax.Expr:
    shape = node.shape()
    axis = node.axis(node.get("axis", -1), len(shape))
    inner, epsilon = shape[axis:], node.get("epsilon", 1e-5)
    axes = list(range(axis, len(shape)))
    if node.shape(1) != inner or (node.has(2) and node.shape(2) != inner):
        affine = (1,) * (len(inner) - len(node.shape(1))) + node.shape(1)
        return _standardised(node, node.input(), axes, epsilon, affine)
    zeros = constant(np.zeros(inner, node.dtype()))
    shift = node.input(2) if node.has(2) else zeros
    return relax.op.nn.layer_norm(node.input(), node.input(1), shift, axes, epsilon)


def _group_norm(node: Node) -> relax.Expr:
    """Scale and shift count groups up to opset 20 and channels from 21 on."""
    groups, channels = node.get("num_groups"), node.shape()[1]
    if channels % groups:
        raise node.fails(f"has {groups} groups for {channels} channels")
    affine = []
    for index in (1, 2):
        expr, array = node.input(index), array_of(node.input(index))
        if node.opset < 21 and array is not None:
            expr = constant(np.repeat(array, channels // groups))
        affine.append(expr)
    axes = list(range(2, len(node.shape())))
    epsilon = node.get("epsilon", 1e-5)
    return relax.op.nn.group_norm(node.input(), *affine, groups, 1, axes, epsilon)


def _lrn(node: Node) -> relax.Expr:
    """The mean of squares over neighbouring channels, as a pooling along the channels."""
    x, shape, size = node.input(), node.shape(), node.get("size")
    pixels = math.prod(shape[2:])
    squares = relax.op.reshape(relax.op.multiply(x, x), (shape[0], 1, shape[1], pixels))
    pads = [(size - 1) // 2, 0, size // 2, 0]
    mean = relax.op.nn.avg_pool2d(squares, (size, 1), (1, 1), pads, count_include_pad=True)
    mean = relax.op.reshape(node.emit(mean), shape)
    scaled = relax.op.multiply(mean, node.const(node.get("alpha", 1e-4)))
    spread = relax.op.add(scaled, node.const(node.get("bias", 1.0)))
    return relax.op.divide(x, relax.op.power(spread, node.const(node.get("beta", 0.75))))


CONVERTERS: dict[str, Converter] = {
    "Conv": convolution,
    "ConvTranspose": _conv_transpose,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global(relax.op.mean),
    "GlobalMaxPool": _global(relax.op.max),
    "GlobalLpPool": _global_lp_pool,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_norm,
    "LRN": _lrn,
}
