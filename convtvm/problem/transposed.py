"""Transposed convolutions as convolutions: one of stride 1 for all phases of the output, whose
channels are then spread over the pixels (Shi et al., arXiv 1609.07009).

An output row Y with Y + padding = q * stride + phase is the sum over t of the input rows q - t by
the kernel rows phase + t * stride. So each phase has ceil(kernel / stride) taps, and all phases see
the same rows. With a stride of 1 there is one phase, whose taps may be dilated; elsewhere a dilated
kernel is one with zeros between its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from convtvm.problem.workload import ConvWorkload


@dataclass(frozen=True)
class Phases:
    """A transposed convolution as the convolution `workload`, whose channels are (group, phase row,
    phase column, channel of the group).

    `kernel` is the transposed one's, with `gaps` from one row of it to the next where the weight
    has zeros in between. `strides` are the phases of each axis, `first` the rows and columns that
    are cut off before the output `shape` [n, c, h, w] begins.
    """

    workload: ConvWorkload
    kernel: tuple[int, int]
    gaps: tuple[int, int]
    strides: tuple[int, int]
    first: tuple[int, int]
    shape: tuple[int, int, int, int]

    @property
    def groups(self) -> int:
        return self.workload.groups

    @property
    def of_group(self) -> int:
        """Output channels of a group."""
        return self.shape[1] // self.groups

    @property
    def repeats(self) -> int:
        """Channels of the convolution for one of the output."""
        return self.strides[0] * self.strides[1]

    @property
    def image(self) -> tuple[int, int]:
        """Rows and columns of each phase."""
        return self.workload.oh, self.workload.ow

    @property
    def growth(self) -> float:
        """Multiplications for one of the transposed convolution's own."""
        w = self.workload
        ours = w.oh * w.ow * w.oc * w.kh * w.kw
        return ours / (w.ih * w.iw * self.shape[1] * prod(self.kernel))

    def weight(self, values: np.ndarray) -> np.ndarray:
        """A weight [ic, oc/groups, kh, kw] as the convolution's [oc, ic/groups, taps, taps]; its
        tap j is that of t = taps - 1 - j."""
        ic, oc = values.shape[:2]
        (sh, sw), (th, tw) = self.strides, (self.workload.kh, self.workload.kw)
        rows, columns = (
            slice(0, k * gap, gap) for k, gap in zip(self.kernel, self.gaps, strict=True)
        )
        full = np.zeros((ic, oc, th * sh, tw * sw), values.dtype)
        full[:, :, rows, columns] = values
        split = full.reshape(self.groups, ic // self.groups, oc, th, sh, tw, sw)
        ordered = split[:, :, :, ::-1, :, ::-1].transpose(0, 4, 6, 2, 1, 3, 5)
        return np.ascontiguousarray(ordered.reshape(self.workload.weight_shape))

    def of_channels(self, values: np.ndarray) -> np.ndarray:
        """One value for each output channel as one for each of the convolution."""
        return np.repeat(values.reshape(self.groups, 1, -1), self.repeats, 1).reshape(-1)


def as_phases(
    data: Sequence[int],
    kernel: Sequence[int],
    out: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Phases:
    """For data [n, ic, ih, iw], a kernel of so many rows and columns, output [n, oc, oh, ow], and
    padding top and left; what is cut off bottom and right follows from the output.

    Raises WorkloadError for sizes that no convolution has.
    """
    n, ic, ih, iw = data
    axes = [
        _Axis.of(*sizes)
        for sizes in zip((ih, iw), kernel, out[2:], strides, padding, dilation, strict=True)
    ]
    rows, columns = axes
    workload = ConvWorkload.make(
        n=n,
        ic=ic,
        ih=ih,
        iw=iw,
        oc=strides[0] * strides[1] * out[1],
        kh=rows.taps,
        kw=columns.taps,
        padding=(rows.before, columns.before, rows.after, columns.after),
        dilation=(rows.dilation, columns.dilation),
        groups=groups,
    )
    return Phases(
        workload,
        (kernel[0], kernel[1]),
        (rows.gap, columns.gap),
        (strides[0], strides[1]),
        (rows.first, columns.first),
        (n, out[1], out[2], out[3]),
    )


@dataclass(frozen=True)
class _Axis:
    """The convolution along one axis, as of Phases."""

    taps: int
    dilation: int
    gap: int
    before: int
    after: int
    first: int

    @classmethod
    def of(
        cls, size: int, kernel: int, out: int, stride: int, padding: int, dilation: int
    ) -> _Axis:
        gap, dilation = (1, dilation) if stride == 1 else (dilation, 1)
        taps = -(-((kernel - 1) * gap + 1) // stride)
        reach = (taps - 1) * dilation
        # Rows of the convolution that the output begins after: by less padding, or cut off.
        skipped = min(padding // stride, reach)
        first = padding - skipped * stride
        rows = (out - 1 + first) // stride + 1
        before = reach - skipped
        return cls(taps, dilation, gap, before, max(0, rows + reach - before - size), first)
