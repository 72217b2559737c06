"""Transposed convolutions of a live model by kernels: eager's result, whatever the sizes, the
layout and what follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch_models as models  # noqa: E402
from support import log_of, record_of  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch_backend import OPTIONS, check, compiled  # noqa: E402

from convtvm.kernels.task import tasks_of  # noqa: E402
from convtvm.machine.targets import resolve  # noqa: E402
from convtvm.problem.workload import ConvWorkload  # noqa: E402
from convtvm.torch import contest  # noqa: E402
from convtvm.torch.kernels import Kernels  # noqa: E402
from convtvm.torch.options import Options  # noqa: E402

LANES = resolve("native", 1).lanes


class Shifted(nn.Module):
    """One constant a channel, multiplied and added by hand."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(channels, 1, 1))
        self.shift = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x: Any) -> Any:
        return x * self.scale + self.shift


class Twice(nn.Module):
    """Its result is read twice, and added to."""

    def __init__(self, up: nn.Module) -> None:
        super().__init__()
        self.up = up

    def forward(self, x: Any) -> Any:
        y = self.up(x)
        return torch.relu(y) + torch.relu(y + 1)


class Sized(nn.ConvTranspose2d):
    """To a size that the caller wants."""

    def forward(self, x: Any) -> Any:
        return super().forward(x, output_size=(10, 14))


def norm(channels: int) -> nn.Module:
    made = nn.BatchNorm2d(channels)
    nn.init.uniform_(made.running_mean, -0.5, 0.5)
    nn.init.uniform_(made.running_var, 0.5, 2.0)
    return made


def normed(up: nn.Module, channels: int, *more: nn.Module) -> nn.Module:
    return nn.Sequential(up, norm(channels), *more)


UP = nn.ConvTranspose2d
# Of images [n, 6, 5, 7], with the parts of a site.
LAYERS = {
    "as U-Net": (lambda: UP(6, 4, 2, 2), "transposed"),
    "norm": (lambda: normed(UP(6, 4, 2, 2, bias=False), 4, nn.ReLU()), "transposed+norm+relu"),
    "overlapping, silu": (lambda: nn.Sequential(UP(6, 4, 4, 2, 1), nn.SiLU()), "transposed+silu"),
    "one more": (lambda: UP(6, 4, 3, 2, 1, 1), "transposed"),
    "odd": (lambda: UP(6, 4, (3, 5), (2, 3), (1, 2), (1, 0), bias=False), "transposed"),
    "groups": (lambda: normed(UP(6, 4, 3, 2, 1, groups=2), 4, nn.ReLU6()), "transposed+norm+relu6"),
    "depthwise": (lambda: UP(6, 6, 4, 2, 1, groups=6, bias=False), "transposed"),
    "stride 1": (lambda: UP(6, 4, (3, 5), padding=(0, 3)), "transposed"),
    "dilated": (lambda: UP(6, 4, 3, padding=1, dilation=(2, 3)), "transposed"),
    "dilated, strides": (lambda: UP(6, 4, (2, 3), (1, 2), (0, 3), dilation=(3, 2)), "transposed"),
    "cut off": (lambda: UP(6, 4, 3, 2, (3, 4), (1, 0)), "transposed"),
    "smaller than its strides": (lambda: UP(6, 4, (2, 3), 3), "transposed"),
    "to a size": (lambda: Sized(6, 4, 3, 2, 1), "transposed"),
    "scale and shift": (lambda: nn.Sequential(UP(6, 4, 2, 2), Shifted(4)), "transposed+scale"),
    "of groups": (lambda: nn.Sequential(UP(6, 4, 2, 2, groups=2), Shifted(4)), "transposed"),
    "read twice": (lambda: Twice(UP(6, 4, 2, 2)), "transposed"),
    "parametrised": (
        lambda: nn.utils.parametrizations.weight_norm(UP(6, 4, 2, 2)), "transposed",
    ),
}  # fmt: skip


class Layers(nn.Module):
    """All side by side: one graph and one library."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(make() for make, _ in LAYERS.values())
        self.signal = nn.Sequential(nn.ConvTranspose1d(6, 4, 4, 2, 1), nn.ReLU())
        self.eval()

    def forward(self, x: Any) -> Any:
        return [*(layer(x) for layer in self.layers), self.signal(x[:, :, 0])]


def image(n: int = 1) -> Any:
    return torch.randn(n, 6, 5, 7, generator=torch.Generator().manual_seed(n))


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(Options.of(OPTIONS))


@pytest.mark.parametrize("rest", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_every_form_is_planned(rest: str, order: Any, kernels: Kernels) -> None:
    net, x = Layers(), image().to(memory_format=order)
    model, backend = compiled(net, kernels, rest)
    with torch.no_grad():
        check(model(x), net, x)
        assert all(site.plan for site in backend.sites), [str(s) for s in backend.sites]
        parts = [site.parts for site in backend.sites]
        assert parts == [*(parts for _, parts in LAYERS.values()), "transposed+relu"]
        for parameter in net.parameters():
            parameter.mul_(2)
        check(model(x), net, x)
    assert backend.graphs == 1


def test_small_integers_are_exact(kernels: Kernels) -> None:
    net = nn.Sequential(UP(6, 4, 3, 2, 1, 1, groups=2), nn.ReLU(), UP(4, 3, 2, 2)).eval()
    made = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape, generator=made))
        x = torch.randint(-4, 5, (1, 6, 5, 7), generator=made).float()
        model, backend = compiled(net, kernels)
        assert torch.equal(model(x), net.double()(x.double()).float())
    assert [site.parts for site in backend.sites if site.plan] == ["transposed+relu", "transposed"]


@pytest.mark.parametrize("rest", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_any_batch_of_one_graph(rest: str, kernels: Kernels) -> None:
    net = Listed(UP(6, 4, 2, 2), nn.ReLU(), UP(4, 3, 3, 2, 1)).eval()
    model, backend = compiled(net, kernels, rest)
    with torch.no_grad():
        for n in (3, 2, 5):
            x = image(n)
            torch._dynamo.mark_dynamic(x, 0)
            check(model(x), net, x)
    assert backend.graphs == 1 and all(site.plan for site in backend.sites)


class Listed(nn.Sequential):
    def forward(self, x: Any) -> Any:
        return [super().forward(x)]


class Net(nn.Module):
    """A U-Net's step up, between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv2d(LANES, 2 * LANES, 3, 2, 1)
        self.up = normed(UP(2 * LANES, LANES, 2, 2), LANES, nn.ReLU())
        self.cut = UP(2 * LANES, LANES, 3, 2, 1, 1)
        self.merge = nn.Conv2d(3 * LANES, LANES, 1)
        self.eval()

    def forward(self, x: Any) -> Any:
        low = torch.relu(self.down(x))
        return [self.merge(torch.cat([x, self.up(low), self.cut(low)], 1))]


@pytest.mark.parametrize("rest", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_in_blocks_of_channels(rest: str, tmp_path: Path) -> None:
    blocks, c = f"NCHW{LANES}c", LANES
    texts = [
        f"mb1ic{c}ih8iw6oc{2 * c}oh4ow3kh3kw3sh2sw2ph1pw1",
        f"mb1ic{2 * c}ih4iw3oc{4 * c}kh1kw1",
        f"mb1ic{2 * c}ih4iw3oc{4 * c}oh5ow4kh2kw2ph1pw1",
        f"mb1ic{3 * c}ih8iw6oc{c}kh1kw1",
    ]
    made = []
    for text in texts:
        for layout, secs in (("NCHW", 1e-3), (blocks, 1e-4)):
            w = ConvWorkload.parse(text)
            (task,) = tasks_of([w], resolve("native", 1), layout, ["direct"])[:1]
            made.append(record_of(task, secs))
    log = log_of(tmp_path / "log.jsonl", *made)
    net, x = Net(), torch.randn(1, c, 8, 6)
    model, backend = compiled(net, Kernels(Options.of({**OPTIONS, "logs": [log]})), rest)
    backend.changes_layouts = True
    with torch.no_grad():
        found = model(x)
    if rest == "inductor":
        check(found, net, x)
    else:
        torch.testing.assert_close(found[0], net(x)[0], rtol=1e-4, atol=1e-4)
    needs = {s.name: s.convolution.recipe.need for s in backend.sites if s.convolution}
    assert {name: need.is_blocked for name, need in needs.items()} == {
        "down": True, "up.0": True, "cut": True, "merge": True,
    }  # fmt: skip


def why_not(net: Any, x: Any, kernels: Kernels) -> list[str]:
    """Why layers stay PyTorch's, whose result they then have."""
    model, backend = compiled(net.eval(), kernels)
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(x))
    return [site.why_not for site in backend.sites]


def test_what_stays_pytorchs(kernels: Kernels) -> None:
    x = image()
    (text,) = why_not(UP(6, 4, 2, 3), x[:, :, :1], kernels)
    assert text == "", "two rows of three"
    (text,) = why_not(UP(6, 4, 3, 3, dilation=3), x, kernels)
    assert text.startswith("as a convolution it has ") and "times as many" in text
    (text,) = why_not(nn.ConvTranspose3d(6, 4, 2, 2), x[:, :, None], kernels)
    assert text == "it has 3 dimensions"
    (text,) = why_not(UP(6, 4, 2, 2).double(), x.double(), kernels)
    assert "torch.float64" in text

    class Computed(nn.Module):
        def forward(self, x: Any) -> Any:
            return functional.conv_transpose2d(x, x.mean(0)[:, None, :2, :2], stride=2)

    (text,) = why_not(Computed(), x, kernels)
    assert "its weight changes with every call" in text


@pytest.mark.parametrize(("ours", "planned"), [(1.0, True), (2.0, False)])
def test_the_faster_one_computes(
    ours: float, planned: bool, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contest, "_in_turn", lambda *ways: ([way() for way in ways], ours, 1.5)[1:])
    net, x = Layers(), image()
    for given in (x, x.to(memory_format=torch.channels_last)):
        model, backend = compiled(net, kernels, compares=True)
        with torch.no_grad():
            check(model(given), net, given)
        assert {site.plan is not None for site in backend.sites} == {planned}
        assert planned or "its transposed convolution takes 1500" in str(backend.sites[0])


def test_both_ways_of_a_contest_compute_the_same(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel's phases, spread over the pixels, are what PyTorch is timed for."""
    seen = []

    def compare(ours: Any, theirs: Any) -> tuple[float, float]:
        seen.append((ours().abs().sum(), theirs().abs().sum()))
        return 1.0, 2.0

    monkeypatch.setattr(contest, "_in_turn", compare)
    for net in (UP(6, 4, 2, 2), nn.ConvTranspose1d(6, 4, 2, 2)):
        x = image() if isinstance(net, UP) else image()[:, :, 0]
        model, _ = compiled(net.eval(), kernels, compares=True)
        with torch.no_grad():
            model(x)
    assert len(seen) == 2
    for one, other in seen:
        torch.testing.assert_close(one, other)


def test_u_net_is_whole(kernels: Kernels) -> None:
    """No convolution of it is left, in eager's result."""
    net, x = models.with_statistics(lambda: models.UNet(8, 2)), torch.randn(1, 3, 16, 20)
    model, backend = compiled(net, kernels)
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-4)
    assert all(site.plan for site in backend.sites)
    assert sum(site.parts.startswith("transposed") for site in backend.sites) == 2
