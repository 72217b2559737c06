"""Random small modules through the backend: eager's result, whatever they share, view or change.

A module is a list of steps over named values, drawn from a seed: convolutions (some used twice),
norms (some in training mode), operations in place on values that others still see, views, slices,
branches, hooks, channels-last. Convolutions are of a few workloads, compiled once for all.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from convtvm.torch.backend import Backend  # noqa: E402
from convtvm.torch.kernels import Kernels  # noqa: E402
from convtvm.torch.options import Options  # noqa: E402

CHANNELS, SIZE = 8, (6, 7)
CONVOLUTIONS = {
    "3x3": dict(kernel_size=3, padding=1),
    "1x1": dict(kernel_size=1),
    "depthwise": dict(kernel_size=3, padding=1, groups=CHANNELS),
    "wide": dict(kernel_size=(1, 5), padding=(0, 4), dilation=(1, 2), groups=2),
    "mirrored": dict(kernel_size=3, padding=1, padding_mode="reflect"),
}
LIMIT = 2e-4  # of a difference, relative to the largest output; Winograd's several times over


class Steps(nn.Module):
    """Calls drawn from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.draw = draw = random.Random(seed)
        self.convs = nn.ModuleList()
        for _ in range(draw.randint(1, 3)):
            if draw.random() < 0.1:
                conv: nn.Module = nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1)
            else:
                kind = CONVOLUTIONS[draw.choice(list(CONVOLUTIONS))]
                conv = nn.Conv2d(CHANNELS, CHANNELS, bias=draw.random() < 0.7, **kind)
            self.convs.append(self._spoilt(conv))
        self.norms = nn.ModuleList(nn.BatchNorm2d(CHANNELS) for _ in range(2))
        for norm in self.norms:
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
        self.eval()
        self.norms[1].train(draw.random() < 0.2)
        if draw.random() < 0.2:
            self.to(memory_format=torch.channels_last)
        self.steps = [self._step() for _ in range(draw.randint(3, 9))]
        self.last = draw.randrange(3)

    def _spoilt(self, conv: nn.Module) -> nn.Module:
        """Sometimes with a hook or a parametrisation, as users leave them."""
        kind = self.draw.random()
        if kind < 0.1:
            conv.register_forward_hook(lambda module, args, out: out * 2)
        elif kind < 0.2:
            conv.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        elif kind < 0.3:
            conv = nn.utils.parametrizations.weight_norm(conv)
        return conv

    def _step(self) -> tuple[str, int, int, int]:
        kinds = ["conv"] * 6 + ["norm"] * 3 + list(PLAIN)
        return self.draw.choice(kinds), *(self.draw.randrange(12) for _ in range(3))  # type: ignore[return-value]

    def forward(self, x: Any, y: Any) -> Any:
        values = [x, y]
        for kind, one, other, where in self.steps:
            a, b = values[-1 - one % len(values) // 2], values[other % len(values)]
            if kind == "conv":
                out = self.convs[where % len(self.convs)](a)
            elif kind == "norm":
                out = self.norms[where % 2](a)
            else:
                out = PLAIN[kind](a, b)
            values.append(out)
        return [values[-1], values[self.last % len(values)]]


PLAIN = {
    "relu": lambda a, b: torch.relu(a),
    "relu_": lambda a, b: functional.relu(a, inplace=True),
    "relu6": lambda a, b: functional.relu6(a),
    "bounds": lambda a, b: a.clamp(-0.5, 0.75),
    "lower bound": lambda a, b: a.clamp_min(0.1),
    "silu": lambda a, b: functional.silu(a),
    "hardswish": lambda a, b: functional.hardswish(a),
    "add": lambda a, b: a + b,
    "add to itself": lambda a, b: a + a,
    "add_": lambda a, b: a.add_(b),
    "iadd scaled": lambda a, b: torch.add(a, b, alpha=0.5),
    "add numbers": lambda a, b: 1.5 + a,
    "add channels": lambda a, b: a + b.mean((2, 3), keepdim=True),
    "multiply": lambda a, b: a * torch.sigmoid(b),
    "multiply_": lambda a, b: a.mul_(0.5),
    "view written": lambda a, b: written(a, b),
    "slice": lambda a, b: torch.cat([a[:, 4:], b[:, :4]], 1),
    "swap": lambda a, b: a.flip(3).transpose(0, 0),
    "flat": lambda a, b: a.flatten(1).view(a.shape),
    "alias": lambda a, b: a.view_as(a),
    "branch": lambda a, b: a if a.shape[0] > 1 else b,
    "detach": lambda a, b: a.detach(),
    "channels last": lambda a, b: a.contiguous(memory_format=torch.channels_last),
    "contiguous": lambda a, b: a.contiguous(),
    "strided": lambda a, b: torch.cat([a, b], 1)[:, ::2],
}


def written(a: Any, b: Any) -> Any:
    """A part of `a` is overwritten through a view."""
    part = a[:, 2:5]
    part.copy_(torch.tanh(b[:, :3]))
    return a


def inputs(seed: int) -> list[Any]:
    made = torch.Generator().manual_seed(seed)
    pair = [torch.randn(1, CHANNELS, *SIZE, generator=made) for _ in range(2)]
    if seed % 5 == 0:
        pair[0] = pair[0].to(memory_format=torch.channels_last)
    return pair


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    """Of all modules: what one needed, the next one finds."""
    return Kernels(Options.of({"threads": 1, "logs": [], "rest": "eager"}))


def difference(seed: int, kernels: Kernels, rest: str = "eager") -> tuple[float, int]:
    """Of one module's results from eager's, and how many of its convolutions were planned."""
    torch._dynamo.reset()
    model = Steps(seed)
    twin = copy.deepcopy(model)
    backend = Backend(Options.of({"rest": rest}), kernels)
    compiled = torch.compile(model, backend=backend)
    worst = 0.0
    with torch.no_grad():
        for call in range(2):  # the second meets what the first left in buffers
            given, kept = inputs(seed + call), inputs(seed + call)
            found, expected = compiled(*given), twin(*kept)
            for one, other in zip([*found, *given], [*expected, *kept], strict=True):
                assert one.stride() == other.stride()
                scale = max(1.0, float(other.abs().max()))
                worst = max(worst, float((one - other).abs().max()) / scale)
        for one, other in zip(model.buffers(), twin.buffers(), strict=True):
            worst = max(worst, float((one - other).abs().max()))
    return worst, sum(site.plan is not None for site in backend.sites)


def test_random_modules(kernels: Kernels) -> None:
    wrong, planned = {}, 0
    for seed in range(220):
        error, sites = difference(seed, kernels)
        planned += sites
        if not error <= LIMIT:
            wrong[seed] = error
    assert wrong == {} and planned > 300


def test_random_modules_with_inductor(kernels: Kernels) -> None:
    for seed in (3, 20, 35):
        error, _ = difference(seed, kernels, "inductor")
        assert error <= LIMIT, seed
