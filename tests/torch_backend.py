"""Models compiled by the backend with kernels that tests share, and what is asked of results."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from support import Unoptimised
from torch import nn

from convtvm.torch.backend import Backend
from convtvm.torch.kernels import Kernels
from convtvm.torch.options import Options

OPTIONS = {"threads": 1, "logs": []}
LIMIT = 1e-5  # of a difference, relative to the largest number


class PlainKernels(Kernels):
    """Compiled without LLVM's optimisations: for tests of what graphs ask of kernels, which take no
    time of them."""

    def target(self, device: str) -> tuple[Any, int | None]:
        return Unoptimised.native(self.threads), None


def compiled(net: nn.Module, kernels: Kernels, rest: str = "eager", compares: bool = False) -> Any:
    """The model and its backend."""
    torch._dynamo.reset()
    backend = Backend(Options.of({**OPTIONS, "rest": rest}), kernels)
    backend.compares = compares
    return torch.compile(net, backend=backend), backend


def check(found: Any, net: nn.Module, *given: torch.Tensor) -> None:
    """Float64's results within rounding, in eager's order of memory."""
    with torch.no_grad():
        eager: Sequence[Any] = net(*given)
        exact = copy.deepcopy(net).double()(*(x.double() for x in given))
    for number, (one, other, twin) in enumerate(zip(found, exact, eager, strict=True)):
        assert one.shape == other.shape and one.dtype is twin.dtype, number
        assert (one - other).abs().max() <= LIMIT * other.abs().max(), number
        assert one.stride() == twin.stride(), number
