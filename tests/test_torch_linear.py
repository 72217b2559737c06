"""Linear layers by kernels: 1x1 convolutions of their rows, wherever these lie; eager's results."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch_models as models  # noqa: E402
from support import log_of, record_of  # noqa: E402
from torch import nn  # noqa: E402
from torch._inductor.utils import run_and_get_code  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch_backend import OPTIONS, check, compiled  # noqa: E402

from convtvm.kernels.task import tasks_of  # noqa: E402
from convtvm.machine.targets import resolve  # noqa: E402
from convtvm.problem.workload import ConvWorkload  # noqa: E402
from convtvm.torch import contest  # noqa: E402
from convtvm.torch.backend import Backend  # noqa: E402
from convtvm.torch.kernels import Kernels  # noqa: E402
from convtvm.torch.options import Options  # noqa: E402


class Matrix(nn.Module):
    """A product with a parameter as it lies, and its bias apart."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.shift = nn.Parameter(torch.randn(5, 9)), nn.Parameter(torch.randn(9))

    def forward(self, x: Any) -> Any:
        return x @ self.matrix + self.shift


class Forms(nn.Module):
    """Rows of images, sequences, matrices and more; with and without bias; one layer used twice,
    one with a matrix of its own; rows that lie apart in memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = models.Next(6)
        nn.init.uniform_(self.block.scale, -1, 1)
        self.norm, self.up = nn.LayerNorm(6), nn.Linear(6, 10)
        self.down = nn.Linear(10, 6, bias=False)
        self.matrix, self.shared = Matrix(), nn.Linear(9, 9)
        self.eval()

    def forward(self, image: Any, sequence: Any, rows: Any, video: Any) -> Any:
        hidden = functional.gelu(self.up(self.norm(sequence)), approximate="tanh")
        matrix = self.shared(torch.relu(self.shared(self.matrix(rows.T))))
        turned = self.up(video.transpose(1, 3))
        return self.block(image), sequence + self.down(hidden), matrix, turned, turned.sum(-1)


PARTS = {
    "block.depthwise": "conv",
    "block.mlp.0": "linear+gelu",
    "block.mlp.2": "linear+scale+residual",
    "up": "linear+gelu_tanh",
    "down": "linear+residual",
    "matrix": "linear",
    "shared": "linear+relu",
    "shared again": "linear",
    "up again": "linear",
}


def inputs(n: int = 2, dtype: Any = torch.float32) -> list[Any]:
    made = torch.Generator().manual_seed(n)
    shapes = [(n, 6, 5, 3), (n, 9, 6), (5, 11), (n, 2, 3, 4, 6)]
    return [torch.randn(shape, generator=made).to(dtype) for shape in shapes]


def parts_of(backend: Backend) -> dict[str, str]:
    found: dict[str, str] = {}
    for site in backend.sites:
        name = f"{site.name} again" if site.name in found else site.name
        found[name] = site.parts if site.plan else site.why_not
    return found


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(Options.of(OPTIONS))


def test_every_form_is_planned(kernels: Kernels) -> None:
    net, given = Forms(), inputs()
    model, backend = compiled(net, kernels)
    with torch.no_grad():
        check(model(*given), net, *given)
        assert parts_of(backend) == PARTS
        net.up.weight.mul_(2)
        net.block.scale.mul_(3)
        check(model(*given), net, *given)
    assert backend.graphs == 1


def test_inductor_has_the_rest(kernels: Kernels) -> None:
    net, given = Forms(), inputs()
    model, backend = compiled(net, kernels, "inductor")
    with torch.no_grad():
        found, (code,) = run_and_get_code(model, *given)
        check(found, net, *given)
    assert parts_of(backend) == PARTS
    assert code.count("extern_kernels.convtvm_conv(") == len(PARTS)
    assert "extern_kernels.addmm(" not in code and "extern_kernels.mm(" not in code


class Batched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block, self.up = models.Next(6), nn.Linear(6, 10)
        self.eval()

    def forward(self, image: Any, sequence: Any) -> Any:
        return self.block(image), torch.relu(self.up(sequence))


@pytest.mark.parametrize("rest", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_any_batch_of_one_graph(kernels: Kernels, rest: str) -> None:
    net = Batched()
    model, backend = compiled(net, kernels, rest)
    with torch.no_grad():
        for n in (3, 2, 5):
            given = inputs(n)[:2]
            for x in given:
                torch._dynamo.mark_dynamic(x, 0)
            check(model(*given), net, *given)
    assert backend.graphs == 1 and all(site.plan for site in backend.sites)


def why_not(net: Any, given: Any, kernels: Kernels) -> list[str]:
    """Why layers stay PyTorch's, whose result they then have."""
    model, backend = compiled(net.eval(), kernels)
    with torch.no_grad():
        torch.testing.assert_close(model(given), net(given))
    return [site.why_not for site in backend.sites]


def test_what_stays_pytorchs(kernels: Kernels) -> None:
    linear, rows = nn.Linear(6, 10), torch.randn(9, 6)
    assert "it has 7 rows" in why_not(linear, rows[:7], kernels)[0]
    assert "torch.float64" in why_not(nn.Linear(6, 10).double(), rows.double(), kernels)[0]
    assert "torch.bfloat16" in why_not(nn.Linear(6, 10).bfloat16(), rows.bfloat16(), kernels)[0]
    torch._dynamo.mark_dynamic(rows, 0)
    assert "rows is dynamic" in why_not(linear, rows, kernels)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert all("torch.bfloat16" in text for text in why_not(linear, inputs()[1], kernels))

    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x: Any) -> Any:
            scaled = torch.addmm(self.bias, x, self.weight, alpha=2)
            return scaled, torch.addmm(x[:, :4], x, self.weight), x @ x.T, self.weight @ x[:4]

    texts = why_not(Products(), torch.randn(9, 6), kernels)
    assert [text.split(" ", 2)[1] for text in texts] == ["is", "bias"], texts


def test_gradients_stay_pytorchs(kernels: Kernels) -> None:
    net, x = nn.Linear(6, 10), inputs()[1]
    model, backend = compiled(net, kernels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it says so, once a process
        model(x).sum().backward()
    assert net.weight.grad is not None and not backend.sites


@pytest.mark.parametrize(("ours", "planned"), [(1.0, True), (2.0, False)])
def test_the_faster_one_computes(
    ours: float, planned: bool, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contest, "_in_turn", lambda *ways: ([way() for way in ways], ours, 1.5)[1:])
    net, given = Forms(), inputs()
    model, backend = compiled(net, kernels, compares=True)
    with torch.no_grad():
        check(model(*given), net, *given)
    linear = [site for site in backend.sites if site.name != "block.depthwise"]
    assert [site.plan is not None for site in linear] == [planned] * (len(PARTS) - 1)
    assert planned or "its product takes 1500" in str(linear[0])


def test_a_contest_is_measured(kernels: Kernels) -> None:
    given = torch.randn(1, 9, 6)
    model, backend = compiled(nn.Linear(6, 10).eval(), kernels, compares=True)
    with torch.no_grad():
        model(given)
    (site,) = backend.sites
    assert site.plan or "its product takes" in site.why_not


@pytest.mark.parametrize("seconds", [(1e-3, 1e-4), (1e-4, 1e-3)])
@pytest.mark.parametrize("rest", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_layouts_beside_linear_layers(
    seconds: tuple[float, float], rest: str, tmp_path: Path
) -> None:
    """A depthwise convolution computes channels-last where that takes less time."""
    w = ConvWorkload.parse("g6mb1ic6ih5iw3oc6oh5ow3kh7kw7ph3pw3")
    made = []
    for layout, secs in zip(("NCHW", "NHWC"), seconds, strict=True):
        (task,) = tasks_of([w], resolve("native", 1), layout, ["direct"])[:1]
        made.append(record_of(task, secs))
    log = log_of(tmp_path / "log.jsonl", *made)
    net, given = Batched(), inputs(1)[:2]
    model, backend = compiled(net, Kernels(Options.of({**OPTIONS, "logs": [log]})), rest)
    backend.changes_layouts = True
    with torch.no_grad():
        found = model(*given)
    if rest == "inductor":
        check(found, net, *given)
    else:
        torch.testing.assert_close(found[0], net(*given)[0], rtol=1e-4, atol=1e-4)
    (depthwise,) = (s for s in backend.sites if s.name == "block.depthwise")
    wanted = "NHWC" if seconds[1] < seconds[0] else "NCHW"
    assert depthwise.convolution and depthwise.convolution.recipe.need.layout == wanted
