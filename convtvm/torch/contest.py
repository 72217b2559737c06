"""Whether a kernel computes a linear layer or a transposed convolution in less time than PyTorch.

PyTorch multiplies matrices by MKL or OpenBLAS and has oneDNN for transposed convolutions, which no
log has records of: both are measured where the graph will run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from convtvm.torch.graph import Site
from convtvm.torch.kernels import Kernels
from convtvm.torch.operator import Convolution, Recipe

aten = torch.ops.aten

_ROUNDS, _SECONDS = 12, 0.05  # of a comparison, whichever ends it first
_LEAST_ROUNDS = 3
_PASS = 10e9  # bytes a second, read and written by a loop of Inductor's
_Ways = tuple[Callable[[], Tensor], Callable[[], Tensor]]


class Contest:
    """Compares kernels with PyTorch, each problem once."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._seconds: dict[Any, tuple[float, float]] = {}

    def objection(self, site: Site) -> str:
        """Why PyTorch computes a layer; empty if the kernel takes less time."""
        assert site.recipe is not None
        need, phases = site.recipe.need, site.recipe.phases
        problem = need.workload, need.layout, phases
        if problem not in self._seconds:
            self._seconds[problem] = self._measured(site, site.recipe)
        ours, theirs = self._seconds[problem]
        out_bytes = 4 * prod(phases.shape) if phases else need.workload.out_bytes
        a_pass = 2 * out_bytes / _PASS / self._kernels.threads
        if len(site.nodes) > 1:  # what a kernel takes along is a loop of its own after PyTorch's
            theirs += a_pass
        if phases and not _is_joined(site):  # so are the channels spread over the pixels
            ours += a_pass
        if ours <= theirs:
            return ""
        what = "product" if site.is_linear else "transposed convolution"
        return f"its {what} takes {1e6 * theirs:.0f} us, the kernel {1e6 * ours:.0f} us"

    def _measured(self, site: Site, recipe: Recipe) -> tuple[float, float]:
        """Seconds of a kernel and of PyTorch's operation without what follows."""
        plain = replace(recipe.need, activation=None, adds=False)
        bare = Recipe(plain, biased=True, wide=True)
        with torch.no_grad(), _disable_current_modes():
            if site.is_linear:
                return _in_turn(*_of_product(Convolution(bare, self._kernels)))
            bare = replace(bare, wide=recipe.wide, flat=recipe.flat, phases=recipe.phases)
            return _in_turn(*_of_transposed(Convolution(bare, self._kernels), site.conv.args[3:]))


def _is_joined(site: Site) -> bool:
    """Whether a concatenation copies the site's result anyway."""
    return all(user.target is aten.cat.default for user in site.last.users)


def _of_product(convolution: Convolution) -> _Ways:
    w = convolution.recipe.need.workload
    x, weight, bias = _random(w.n, w.ih, w.iw, w.ic), _random(w.oc, w.ic), torch.zeros(w.oc)
    out = torch.empty(w.n, w.oh, w.ow, w.oc)
    rows, image, result = x.view(-1, w.ic), x.permute(0, 3, 1, 2), out.permute(0, 3, 1, 2)
    weights = weight, bias

    def ours() -> Tensor:
        return convolution(image, weights, None, result)

    def theirs() -> Tensor:
        return torch.addmm(bias, rows, weight.t(), out=out.view(-1, w.oc))

    return ours, theirs


def _of_transposed(convolution: Convolution, arguments: Any) -> _Ways:
    """`arguments` are those of PyTorch's convolution after the bias."""
    recipe = convolution.recipe
    need, phases = recipe.need, recipe.phases
    assert phases is not None
    w = need.workload
    x = _random(*w.data_shape()).contiguous(memory_format=recipe.memory_format)
    weight, bias = _random(w.ic, phases.of_group, *phases.kernel), torch.zeros(phases.shape[1])
    if recipe.flat:
        x, weight = x.squeeze(2), weight.squeeze(2)
    given = _random(*w.data_shape(need.layout)) if need.is_blocked else x
    weights, out = (weight, bias), convolution.empty(given)

    def ours() -> Tensor:
        return convolution(given, weights, None, out)

    def theirs() -> Tensor:
        made: Tensor = aten.convolution.default(x, weight, bias, *arguments)
        return made

    return ours, theirs


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


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
