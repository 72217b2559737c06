"""How Inductor's code calls our operator, and what a later process finds of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402
from torch._inductor import config as inductor_config  # noqa: E402
from torch._inductor.utils import run_and_get_code  # noqa: E402

import convtvm  # noqa: E402
from convtvm.library import cache  # noqa: E402
from convtvm.torch import backend, contest, operator, optimize  # noqa: E402
from convtvm.torch.backend import Backend  # noqa: E402
from convtvm.torch.kernels import Kernels  # noqa: E402
from convtvm.torch.options import Options  # noqa: E402
from convtvm.torch.watching import Counts  # noqa: E402

OPTIONS = {"threads": 1, "logs": []}


class Forms(nn.Module):
    """Convolutions of every form that Inductor hands on: a residual, a batch norm, no bias,
    computed weights, one without a kernel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.derived = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.last = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.deep = nn.Conv3d(8, 2, 1)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)
        self.eval().requires_grad_(False)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.norm(self.first(x)))
        y = torch.relu(self.derived(x) + x)
        return self.deep(self.last(torch.cat([y[:, 4:], y[:, :4]], 1))[:, :, None])[:, :, 0]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inductor")


@pytest.fixture(autouse=True)
def inductor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all: each graph has a key of its own there, and C++ that is equal is compiled
    once."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_inductor_calls_a_function_that_writes_its_memory(memory_format: Any) -> None:
    net, x = Forms(), torch.randn(2, 3, 9, 7).to(memory_format=memory_format)
    used = Backend(Options.of(OPTIONS), Kernels(Options.of(OPTIONS)))
    compiled = torch.compile(net, backend=used)
    with torch.no_grad():
        found, (code,) = run_and_get_code(compiled, x)
        close(found, net(x))
        close(compiled(x), net(x))
    assert code.count("extern_kernels.convtvm_conv(") == 3 and "torch.ops.convtvm" not in code
    assert code.count("out=") >= 3


def test_one_dimension_and_any_batch() -> None:
    net = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 1)).eval()
    used = Backend(Options.of(OPTIONS), Kernels(Options.of(OPTIONS)))
    compiled = torch.compile(net, backend=used)
    with torch.no_grad():
        for n in (2, 5, 3, 1):
            x = torch.randn(n, 4, 9)
            torch._dynamo.mark_dynamic(x, 0) if n > 1 else None
            close(compiled(x), net(x))
    assert used.graphs == 2 and all(site.plan is not None for site in used.sites)


class Counting(nn.Module):
    """A large weight, of which every call changes one number."""

    def __init__(self) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(32, 16, 3, 3, generator=made))

    def forward(self, x: Any) -> Any:
        self.weight[0, 0, 0, 1] += 1
        return nn.functional.conv2d(x, self.weight), nn.functional.conv2d(x, self.weight.tanh())


@pytest.mark.slow
def test_weights_that_compiled_code_changes() -> None:
    """Inductor writes them itself: in the graph of the convolution, and in another one."""
    net, twin = Counting(), Counting()
    used = Backend(Options.of(OPTIONS), Kernels(Options.of(OPTIONS)))
    compiled, x = torch.compile(net, backend=used), torch.randn(1, 16, 5, 5)
    change = torch.compile(lambda weight: weight.view(-1)[2].add_(1))
    with torch.no_grad():
        for _ in range(3):
            for found, expected in zip(compiled(x), twin(x), strict=True):
                close(found, expected)
            change(net.weight)
            twin.weight.view(-1)[2].add_(1)
    assert all(site.plan for site in used.sites)


def test_kernels_of_another_layout_write_it_too() -> None:
    net, x = nn.Conv2d(3, 8, 3).eval(), torch.randn(1, 3, 9, 7)
    library = convtvm.compile("mb1ic3ih9iw7oc8kh3kw3", layout="NHWC", threads=1, logs=[])
    with optimize(net, x, library) as handle, torch.no_grad():
        close(net(x), nn.functional.conv2d(x, net.weight, net.bias))
        assert handle.sites[0].plan is not None


class Process:
    """Compiles as a process that has just started does, with caches of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, monkeypatch
        self.x = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))

    def start(self, **options: Any) -> tuple[int, list[tuple[str, str, str]]]:
        """How many graphs PyTorch had, and the sites."""
        self._patch.setenv(cache.VARIABLE, str(self.folder))
        self._patch.setattr(operator, "_registered", {})
        torch._dynamo.reset()
        counters.clear()
        net = Forms()
        with optimize(net, self.x, **{**OPTIONS, **options}) as handle, torch.no_grad():
            close(net(self.x), Forms()(self.x))
            net.last.weight.mul_(2)
            net.derived.parametrizations.weight.original0.mul_(3)
            changed = Forms()
            changed.load_state_dict(net.state_dict())
            close(net(self.x), changed(self.x))
            assert [s.plan is not None for s in handle.sites] == [True, True, True, False]
            texts = [(s.name, s.parts, s.why_not) for s in handle.sites]
        return counters["aot_autograd"]["autograd_cache_hit"], texts


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    yield Process(tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_compiled_graph_is_found_again(process: Process, tmp_path: Path) -> None:
    hits, sites = process.start()
    assert hits == 0
    assert process.start() == (1, sites)
    assert process.start(policy="predicted")[0] == 0, "the choice may be another"
    assert process.start() == (1, sites)
    for entry in tmp_path.rglob("*.entry"):  # what was remembered is lost or damaged
        entry.write_bytes(b"")
    assert process.start() == (0, sites)
    assert process.start() == (1, sites)


def test_without_our_cache_nothing_is_found(process: Process) -> None:
    process.folder = Path("off")
    assert [process.start()[0] for _ in range(2)] == [0, 0]


def test_pytorch_has_lost_it(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    _, sites = process.start()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(process.folder / "another"))
    assert process.start() == (0, sites)
    assert process.start() == (1, sites)


@pytest.mark.slow
def test_names_are_of_one_graph(process: Process) -> None:
    """Two models of one form in one process, with kernels of different origin."""
    process.start()
    library = convtvm.compile(
        ["mb2ic3ih9iw7oc8oh9ow7kh3kw3ph1pw1", "mb2ic8ih9iw7oc8kh1kw1"], threads=1, logs=[]
    )
    torch._dynamo.reset()
    one, other, x = Forms(), Forms(), process.x
    with torch.no_grad(), optimize(one, x, library) as given, optimize(other, x, **OPTIONS) as own:
        close(one(x), other(x))
        planned = [[s.plan is not None for s in handle.sites] for handle in (given, own)]
    assert planned == [[True, True, False, False], [True, True, True, False]]


@pytest.mark.slow
def test_pytorch_compiled_it_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By settings that its keys see and ours do not: a later process may find either graph."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    x = torch.randn(9, 6)

    def start(wins: bool) -> tuple[int, bool]:
        """How many graphs PyTorch had, and whether a kernel computes."""
        monkeypatch.setattr(operator, "_registered", {})
        monkeypatch.setattr(contest, "_in_turn", lambda *ways: (1.0, 2.0) if wins else (2.0, 1.0))
        torch._dynamo.reset()
        counters.clear()
        net = nn.Linear(6, 10).eval()
        with optimize(net, x, **OPTIONS) as handle, torch.no_grad():
            close(net(x), nn.functional.linear(x, net.weight, net.bias))
            planned = any(site.plan is not None for site in handle.sites)
        return counters["aot_autograd"]["autograd_cache_hit"], planned

    assert start(True) == (0, True)
    with inductor_config.patch(epilogue_fusion=False):
        assert start(False) == (0, False)
    assert start(True) == (1, True)


SCRIPT = """
import sys
import torch
from torch import nn
from torch._dynamo.utils import counters
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()
x = torch.randn(1, 3, 5, 7)
with torch.no_grad():
    expected = net(x)
    found = torch.compile(net, backend="convtvm", options={"threads": 1, "logs": []})(x)
torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
hits = counters["aot_autograd"]["autograd_cache_hit"]
torch._dynamo.reset()
import convtvm.torch
other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
with torch.no_grad():
    expected = other(x)
    handle = convtvm.torch.optimize(other, x, threads=1, logs=[], rest="eager")
    torch.testing.assert_close(other(x), expected, rtol=1e-4, atol=1e-5)
print(hits, handle.sites[0].plan is not None, "tvm" in sys.modules)
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    """By its name and by `optimize`, with Inductor and without."""
    environment = {
        **os.environ,
        cache.VARIABLE: str(tmp_path / "ours"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "theirs"),
    }
    said = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
        )
        for _ in range(2)
    ]
    found = [done.stdout for done in said]
    assert found == ["0 True True\n", "1 True False\n"], said[-1].stderr[-2000:]


def test_counts() -> None:
    def made() -> list[Any]:
        with torch.inference_mode():
            uncounted = torch.ones(3)
        return [torch.ones(4), nn.Parameter(torch.ones(2, 2)), uncounted]

    changes = [
        lambda tensors: tensors[0].mul_(2),
        lambda tensors: tensors[1].requires_grad_(False).add_(1),
        lambda tensors: setattr(tensors[1], "data", torch.zeros(2, 2)),
        lambda tensors: tensors[0].set_(torch.zeros(4)),
        lambda tensors: tensors.pop(),
        lambda tensors: tensors.clear(),
    ]
    for change in changes:
        tensors = made()
        counts = Counts([*tensors, tensors[0]])
        assert counts.are_same()
        change(tensors)
        assert not counts.are_same()


def test_replays_keep_up_with_weights() -> None:
    """Before a graph that calls no operator, changed weights are packed; others are left alone."""
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).eval(), torch.randn(1, 3, 5, 5)
    with optimize(net, x, rest="eager", **OPTIONS) as handle, torch.no_grad():
        made = [site.convolution for site in handle.sites if site.convolution]
        called: list[int] = []
        replay = backend._keeping_up(lambda: called.append(1), made)
        replay()
        first = [next(iter(c._packed.values())) for c in made]
        replay()
        assert all(p is next(iter(c._packed.values())) for p, c in zip(first, made, strict=True))
        net[1].weight.add_(1)
        replay()
        after = [next(iter(c._packed.values())) for c in made]
        assert after[0] is first[0] and after[1] is not first[1]
        packed = [p for c in made for p in c._packed.values()]
        assert all(p.watched.are(p.watched.tensors() or []) for p in packed)
        assert len(called) == 3
