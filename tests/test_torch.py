"""PyTorch models through `optimize`: same outputs, epilogues taken along, everything reversible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import convtvm  # noqa: E402
from convtvm.errors import ConvtvmError  # noqa: E402
from convtvm.torch import optimize  # noqa: E402


class Net(nn.Module):
    """Every ending that a convolution can have, and some that it cannot take along."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 1)
        self.short = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mirrored = nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect")
        self.twice = nn.Conv2d(8, 8, (1, 3), padding=(0, 1))
        self.relu, self.relu6 = nn.ReLU(inplace=True), nn.ReLU6()

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = self.relu(self.norm(self.stem(x)))
        y = self.a(x)
        y += self.short(x)  # one of both convolutions adds the other
        y = self.relu(y)
        y = nn.functional.relu(torch.add(self.b(y), y))
        y = self.relu6(self.depthwise(y))
        both = self.twice(y)
        return self.mirrored(torch.relu(both) - both)


def build() -> nn.Module:
    torch.manual_seed(0)
    net = Net().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net


@pytest.fixture(scope="module")
def example():  # type: ignore[no-untyped-def]
    return torch.randn(1, 3, 18, 14, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def library(example, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    handle = optimize(build(), example, threads=1, logs=[])
    assert handle.library is not None
    path = tmp_path_factory.mktemp("library") / "net.so"
    handle.library.export(path)
    return path


def test_outputs_and_endings(library: Path, example) -> None:  # type: ignore[no-untyped-def]
    net = build()
    with torch.no_grad():
        expected = net(example)
        names = list(net.state_dict())
        handle = optimize(net, example, library)
        assert list(net.state_dict()) == names
        torch.testing.assert_close(net(example), expected, rtol=1e-4, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(net(example), expected, rtol=1e-4, atol=1e-5)
        wide = example.to(memory_format=torch.channels_last)
        torch.testing.assert_close(net(wide), expected, rtol=1e-4, atol=1e-5)
        handle.restore()
        assert torch.equal(net(example), expected)
    texts = [str(site) for site in handle.sites]
    assert sorted(text.split(":")[0] for text in texts) == [
        "a conv+residual+relu",
        "b conv+residual+relu",
        "depthwise conv+relu6",
        "mirrored",
        "short.0 conv+norm",
        "stem conv+norm+relu",
        "twice conv",
    ]
    assert any("mirrored: eager, its padding is reflect" in text for text in texts)


def test_whatever_the_plans_are_not_for_runs_eagerly(library: Path, example) -> None:  # type: ignore[no-untyped-def]
    net, twin = build(), build()
    with optimize(net, example, library), torch.no_grad():
        other = torch.randn(2, 3, 9, 9)
        torch.testing.assert_close(net(other), twin(other), rtol=1e-4, atol=1e-5)
        assert not np.array_equal(net(example).numpy(), np.zeros(1))
    with optimize(net, example, library):
        x = example.clone().requires_grad_()
        net(x).sum().backward()
        assert x.grad is not None and net.stem.weight.grad is not None
    assert "forward" not in net.__dict__


def test_a_library_that_lacks_the_workloads(library: Path, example) -> None:  # type: ignore[no-untyped-def]
    net = build()
    other = torch.randn(1, 3, 30, 30)
    handle = optimize(net, other, library)
    assert all(site.plan is None for site in handle.sites)
    assert all("the library has no kernel" in site.why_not for site in handle.sites[:1])
    with torch.no_grad():
        torch.testing.assert_close(net(other), build()(other))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda net: net.train(), "in training mode"),
        (lambda net: setattr(net, "forward", net.forward), "optimized already"),
        (lambda net: setattr(net, "relu", _Branch()), "torch.fx cannot trace"),
    ],
)
def test_refusals(example, spoil: Callable[[nn.Module], object], message: str) -> None:  # type: ignore[no-untyped-def]
    net = build()
    spoil(net)
    with pytest.raises(ConvtvmError, match=message):
        convtvm.torch.optimize(net, example)


class _Branch(nn.Module):
    def forward(self, x):  # type: ignore[no-untyped-def]
        return x if x.sum() > 0 else -x
