"""Whether a kernel computes a linear layer in less time than PyTorch's product does.

PyTorch multiplies matrices by MKL or OpenBLAS, which no log has records of: both are measured where
the graph will run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from convtvm.problem.workload import ConvWorkload
from convtvm.torch.kernels import Kernels
from convtvm.torch.operator import Convolution, Recipe

_ROUNDS, _SECONDS = 12, 0.05  # of a comparison, whichever ends it first
_LEAST_ROUNDS = 3
_PASS = 10e9  # bytes a second, read and written by a loop of Inductor's that a kernel takes along


class Contest:
    """Compares kernels with PyTorch's products, each workload once."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._seconds: dict[ConvWorkload, tuple[float, float]] = {}

    def objection(self, recipe: Recipe) -> str:
        """Why PyTorch computes a linear layer; empty if the kernel takes less time."""
        need = recipe.need
        w = need.workload
        if w not in self._seconds:
            self._seconds[w] = _measure(recipe, self._kernels)
        ours, theirs = self._seconds[w]
        if need.activation is not None or need.adds:
            theirs += 2 * w.out_bytes / _PASS / self._kernels.threads
        if ours <= theirs:
            return ""
        return f"its product takes {1e6 * theirs:.0f} us, the kernel {1e6 * ours:.0f} us"


def _measure(recipe: Recipe, kernels: Kernels) -> tuple[float, float]:
    """Seconds of a kernel and of PyTorch's product without what follows."""
    w = recipe.need.workload
    plain = replace(recipe.need, activation=None, adds=False)
    bare = Recipe(plain, biased=True, wide=True)
    with torch.no_grad(), _disable_current_modes():
        made = torch.Generator().manual_seed(0)
        x = torch.randn(w.n, w.ih, w.iw, w.ic, generator=made)
        weight, bias = torch.randn(w.oc, w.ic, generator=made), torch.zeros(w.oc)
        out = torch.empty(w.n, w.oh, w.ow, w.oc)
        rows, image, result = x.view(-1, w.ic), x.permute(0, 3, 1, 2), out.permute(0, 3, 1, 2)
        weights, convolution = (weight, bias), Convolution(bare, kernels)

        def ours() -> Tensor:
            return convolution(image, weights, None, result)

        def theirs() -> Tensor:
            return torch.addmm(bias, rows, weight.t(), out=out.view(-1, w.oc))

        return _in_turn(ours, theirs)


def _in_turn(*ways: Callable[[], object]) -> tuple[float, float]:
    """The least seconds of each way, called in turn so that a disturbance meets both."""
    for way in ways:
        way()
    least, end = [float("inf")] * len(ways), time.perf_counter() + _SECONDS
    for done in count():
        if done == _ROUNDS or (done >= _LEAST_ROUNDS and time.perf_counter() > end):
            break
        for index, way in enumerate(ways):
            started = time.perf_counter()
            way()
            least[index] = min(least[index], time.perf_counter() - started)
    return least[0], least[1]
