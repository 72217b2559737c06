"""Converters of Fourier transforms, by matrices that are known beforehand: an axis of n elements
takes n^2 steps, which for the hundreds that speech and music have are a dense layer's."""

from __future__ import annotations

import numpy as np
from tvm import relax

from convtvm.models.constants import constant, static_shape
from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node
from convtvm.models.resizing import times


def _transform(node: Node) -> relax.Expr:
    shape = node.shape()
    axis = node.get("axis", 1) if node.opset < 20 else (node.numbers(2, "axis") or [-2])[0]
    axis = node.axis(axis, len(shape))
    if axis == len(shape) - 1 or shape[-1] not in (1, 2):
        raise node.fails(
            f"transforms axis {axis} of {list(shape)}, expected one before the last, which holds "
            "real and imaginary parts"
        )
    inverse, onesided = bool(node.get("inverse", 0)), bool(node.get("onesided", 0))
    lengths = node.numbers(1, "dft_length")
    length = 2 * (shape[axis] - 1) if inverse and onesided else shape[axis]
    length = lengths[0] if lengths else length
    if length < 1:
        raise node.fails(f"has a length of {length}, expected at least 1")
    parts = _parts(node, node.input(), axis, length // 2 + 1 if inverse and onesided else length)
    if inverse and onesided:
        return _real_again(node, parts, axis, length)
    return _spectrum(node, parts, axis, length, inverse, onesided)


def _parts(node: Node, x: relax.Expr, axis: int, most: int) -> list[relax.Expr]:
    """The real and, where there is one, the imaginary part, of at most so many along an axis."""
    *shape, parts = static_shape(x)
    if shape[axis] > most:
        x = node.emit(relax.op.strided_slice(x, [axis], [0], [most]))
    last = len(shape)
    cut = [node.emit(relax.op.strided_slice(x, [last], [i], [i + 1])) for i in range(parts)]
    return [node.emit(relax.op.squeeze(part, [last])) for part in cut]


def _waves(rows: int, columns: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of 2 pi row column / length."""
    steps = np.outer(np.arange(rows), np.arange(columns)) % length
    angles = 2 * np.pi * steps / length
    return np.cos(angles), np.sin(angles)


def _spectrum(
    node: Node, parts: list[relax.Expr], axis: int, length: int, inverse: bool, onesided: bool
) -> relax.Expr:
    """The sums of the parts times exp(-2 pi i k n / length), or of its conjugate over length."""
    bins = length // 2 + 1 if onesided else length
    cosine, sine = _waves(bins, static_shape(parts[0])[axis], length)
    if inverse:
        cosine, sine = cosine / length, -sine / length
    real = times(node.builder, parts[0], cosine, axis)
    imaginary = times(node.builder, parts[0], -sine, axis)
    if len(parts) > 1:
        real = node.emit(relax.op.add(real, times(node.builder, parts[1], sine, axis)))
        more = times(node.builder, parts[1], cosine, axis)
        imaginary = node.emit(relax.op.add(imaginary, more))
    last = len(static_shape(real))
    both = [node.emit(relax.op.expand_dims(part, [last])) for part in (real, imaginary)]
    return relax.op.concat(both, last)


def _real_again(node: Node, parts: list[relax.Expr], axis: int, length: int) -> relax.Expr:
    """The real signal whose spectrum's first half this is; the other half mirrors it."""
    bins = static_shape(parts[0])[axis]
    cosine, sine = _waves(length, bins, length)
    k = np.arange(bins)
    counts = np.where((k == 0) | (2 * k == length), 1, 2) / length
    signal = times(node.builder, parts[0], cosine * counts, axis)
    if len(parts) > 1:
        other = times(node.builder, parts[1], sine * counts, axis)
        signal = node.emit(relax.op.subtract(signal, other))
    return relax.op.expand_dims(signal, [len(static_shape(signal))])


def _short_time(node: Node) -> relax.Expr:
    """Frames of a signal [batch, time, parts], each times the window and transformed."""
    shape, steps = node.shape(), node.numbers(1, "frame_step") or [0]
    signal = node.input()
    if len(shape) == 2:
        signal, shape = node.emit(relax.op.expand_dims(signal, [2])), (*shape, 1)
    lengths = node.numbers(3, "frame_length")
    length = lengths[0] if lengths else node.shape(2)[0] if node.has(2) else shape[1]
    if steps[0] < 1 or not 1 <= length <= shape[1] or (node.has(2) and node.shape(2) != (length,)):
        window = f" and a window {list(node.shape(2))}" if node.has(2) else ""
        raise node.fails(
            f"takes frames of {length} every {steps[0]} of {shape[1]} elements{window}; is --shape "
            "right?"
        )
    frames = 1 + (shape[1] - length) // steps[0]
    places = np.arange(frames)[:, None] * steps[0] + np.arange(length)
    framed = node.emit(relax.op.take(signal, constant(places), 1, mode="clip"))
    if node.has(2):
        window = node.emit(relax.op.reshape(node.input(2), (length, 1)))
        framed = node.emit(relax.op.multiply(framed, window))
    parts = _parts(node, framed, 2, length)
    return _spectrum(node, parts, 2, length, False, bool(node.get("onesided", 1)))


CONVERTERS: dict[str, Converter] = {"DFT": _transform, "STFT": _short_time}
