"""Transposed convolutions as convolutions: one of stride 1 for all phases of the output, whose
channels are then spread over the pixels (Shi et al., arXiv 1609.07009).

An output row Y with Y + padding = q * stride + phase is the sum over t of the input rows q - t by
the kernel rows phase + t * stride. So each phase has ceil(kernel / stride) taps, and all phases see
the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te

from convtvm.problem.workload import ConvWorkload


@dataclass(frozen=True)
class Spread:
    """From channels (group, phase row, phase column, channel of the group) to pixels.

    `strides` are the phases of each axis, `first` the rows and columns that are cut off before the
    output `shape` [n, c, h, w] begins.
    """

    strides: tuple[int, int]
    first: tuple[int, int]
    shape: tuple[int, int, int, int]
    groups: int

    @property
    def repeats(self) -> int:
        """Channels of the convolution for one of the output."""
        return self.strides[0] * self.strides[1]

    def of_channels(self, values: np.ndarray) -> np.ndarray:
        """One value for each output channel as one for each of the convolution."""
        grouped = values.reshape(self.groups, 1, -1)
        return np.ascontiguousarray(
            np.broadcast_to(grouped, (self.groups, self.repeats, grouped.shape[2])).reshape(-1)
        )

    def compute(self, data: te.Tensor) -> te.Tensor:
        """Of `data` in NCHW or in blocks, in the same."""
        (sh, sw), (top, left), (n, c, h, w) = self.strides, self.first, self.shape
        block = int(data.shape[4]) if len(data.shape) == 5 else 0
        of_group = c // self.groups

        def element(image: Any, channel: Any, y: Any, x: Any) -> Any:
            row, col = y + top, x + left
            phase = row % sh * sw + col % sw
            group = channel // of_group
            source = (group * self.repeats + phase) * of_group + channel % of_group
            if block:
                return data[image, source // block, row // sh, col // sw, source % block]
            return data[image, source, row // sh, col // sw]

        if not block:
            return te.compute(self.shape, element, name="spread")
        return te.compute(
            (n, c // block, h, w, block),
            lambda i, k, y, x, lane: element(i, k * block + lane, y, x),
            name="spread",
        )


def as_convolution(
    data: tuple[int, ...],
    weight: np.ndarray,
    out: tuple[int, ...],
    strides: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
) -> tuple[ConvWorkload, np.ndarray, Spread]:
    """The convolution, its weight and what follows it, for data [n, ic, ih, iw], a weight
    [ic, oc/groups, kh, kw] and output [n, oc, oh, ow], padding top and left, without dilation."""
    n, ic, ih, iw = data
    oc_of_group, kernel = weight.shape[1], weight.shape[2:]
    taps = tuple(-(-k // s) for k, s in zip(kernel, strides, strict=True))
    skipped = tuple(p // s for p, s in zip(padding, strides, strict=True))
    rows, cols = (
        (size - 1 + p) // s - q + 1
        for size, p, s, q in zip(out[2:], padding, strides, skipped, strict=True)
    )
    before = [t - 1 - q for t, q in zip(taps, skipped, strict=True)]
    needed = ((rows, ih, taps[0], before[0]), (cols, iw, taps[1], before[1]))
    after = [max(0, count - 1 + t - b - size) for count, size, t, b in needed]
    workload = ConvWorkload.make(
        n=n,
        ic=ic,
        ih=ih,
        iw=iw,
        oc=groups * strides[0] * strides[1] * oc_of_group,
        kh=taps[0],
        kw=taps[1],
        padding=(*before, *after),
        groups=groups,
    )
    first = tuple(p - q * s for p, q, s in zip(padding, skipped, strides, strict=True))
    spread = Spread(strides, first, tuple(out), groups)  # type: ignore[arg-type]
    return workload, _phases(weight, strides, taps, groups), spread


def _phases(
    weight: np.ndarray, strides: tuple[int, int], taps: tuple[int, ...], groups: int
) -> np.ndarray:
    """A weight [ic, oc/groups, kh, kw] as [groups * phases * oc/groups, ic/groups, taps, taps]; tap
    j is that of t = taps - 1 - j."""
    ic, oc, kh, kw = weight.shape
    (sh, sw), (th, tw) = strides, taps
    full = np.zeros((ic, oc, th * sh, tw * sw), weight.dtype)
    full[:, :, :kh, :kw] = weight
    split = full.reshape(groups, ic // groups, oc, th, sh, tw, sw)[:, :, :, ::-1, :, ::-1]
    ordered = split.transpose(0, 4, 6, 2, 1, 3, 5)  # group, phases, oc, ic, taps
    return np.ascontiguousarray(ordered.reshape(-1, ic // groups, th, tw))
