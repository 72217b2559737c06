"""Transposed convolutions as convolutions: PyTorch's result in exact integers, of any sizes."""

from __future__ import annotations

import itertools
import random

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch.nn import functional  # noqa: E402

from convtvm.problem.transposed import Phases, as_phases  # noqa: E402

Pair = tuple[int, int]


def spread(made: torch.Tensor, phases: Phases) -> torch.Tensor:
    """The output, number by number as `Phases` says."""
    (sh, sw), (top, left), (n, c, h, w) = phases.strides, phases.first, phases.shape
    split = made.reshape(n, phases.groups, sh, sw, phases.of_group, *made.shape[2:])
    rows, columns = (torch.arange(size) + first for size, first in ((h, top), (w, left)))
    r, q = rows[:, None], columns[None, :]
    picked = split[:, :, r % sh, q % sw, :, r // sh, q // sw]  # h, w, n, groups, of_group
    return picked.permute(2, 3, 4, 0, 1).reshape(n, c, h, w)


def check(
    size: Pair, kernel: Pair, stride: Pair, padding: Pair, extra: Pair, dilation: Pair, groups: int
) -> bool:
    """Whether the sizes are ones that PyTorch takes; the convolution's result is then the same."""
    made = torch.Generator().manual_seed(0)
    x = torch.randint(-9, 10, (2, 2 * groups, *size), generator=made).double()
    weight = torch.randint(-9, 10, (2 * groups, 3, *kernel), generator=made).double()
    try:
        expected = functional.conv_transpose2d(
            x, weight, None, stride, padding, extra, groups, dilation
        )
    except RuntimeError:
        return False
    phases = as_phases(x.shape, kernel, expected.shape, stride, padding, dilation, groups)
    w = phases.workload
    assert w.sh == w.sw == 1 and phases.image == (w.oh, w.ow)
    padded = functional.pad(x, (w.pw, w.pw_r, w.ph, w.ph_r))
    turned = torch.from_numpy(phases.weight(weight.numpy()))
    found = functional.conv2d(padded, turned, dilation=(w.dh, w.dw), groups=groups)
    assert found.shape == w.out_shape()
    assert torch.equal(spread(found, phases), expected)
    ours, theirs = w.macs, x.numel() * weight[0].numel()
    assert phases.growth == pytest.approx(ours / theirs)
    return True


def test_every_combination_of_small_sizes() -> None:
    """Along the width, with more padding than the kernel reaches over the edge and less."""
    ranges = [(1, 2, 5), (1, 2, 3, 4, 5), (1, 2, 3), (0, 1, 2, 5), (0, 1, 2), (1, 2, 3)]
    tried = sum(
        check((1, size), (1, k), (1, s), (0, p), (0, extra), (1, d), 1)
        for size, k, s, p, extra, d in itertools.product(*ranges)
    )
    assert tried > 500


def test_both_axes_and_groups() -> None:
    draw, tried = random.Random(0), 0

    def pair(low: int, high: int) -> Pair:
        return draw.randint(low, high), draw.randint(low, high)

    for _ in range(400):
        sizes = pair(1, 6), pair(1, 5), pair(1, 3), pair(0, 4), pair(0, 1), pair(1, 3)
        tried += check(*sizes, draw.randint(1, 3))
    assert tried > 150


def test_one_value_a_channel_goes_to_every_phase() -> None:
    phases = as_phases((1, 4, 3, 3), (2, 2), (1, 6, 6, 9), (2, 3), (0, 0), groups=2)
    values = torch.arange(6.0)
    each = phases.of_channels(values.numpy())
    made = torch.from_numpy(each).reshape(1, -1, 1, 1).expand(1, 36, 3, 3)
    assert torch.equal(spread(made, phases), values.reshape(1, 6, 1, 1).expand(1, 6, 6, 9))
