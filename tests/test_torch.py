"""PyTorch models through the backend and `optimize`: the same outputs, or a reason in one line."""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch_models as models  # noqa: E402
from torch import nn  # noqa: E402
from torch_backend import PlainKernels  # noqa: E402

import convtvm  # noqa: E402
import convtvm.torch  # noqa: E402
from convtvm.errors import ConvtvmError, LogError  # noqa: E402
from convtvm.torch import optimize  # noqa: E402
from convtvm.torch.backend import Backend  # noqa: E402
from convtvm.torch.kernels import Kernels  # noqa: E402
from convtvm.torch.options import Options  # noqa: E402
from convtvm.tuning import tuner  # noqa: E402

EAGER = {"rest": "eager", "threads": 1, "logs": []}


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
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.twice = nn.Conv2d(8, 8, (1, 3), padding=(0, 1))
        self.relu, self.relu6 = nn.ReLU(inplace=True), nn.ReLU6()

    def forward(self, x: Any) -> Any:
        x = self.relu(self.norm(self.stem(x)))
        y = self.a(x)
        y += self.short(x)  # one of both convolutions adds the other
        y = self.relu(y)
        y = nn.functional.relu(torch.add(self.b(y), y))
        y = self.relu6(self.depthwise(y))
        both = self.twice(y)
        return self.up(torch.relu(both) - both)


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = Net().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def example() -> Any:
    return torch.randn(1, 3, 18, 14, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def library(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    handle = optimize(build(), example, threads=1, logs=[], rest="eager")
    assert handle.library is not None
    path = tmp_path_factory.mktemp("library") / "net.so"
    handle.library.export(path)
    return path


def test_outputs_and_endings(library: Path, example: Any) -> None:
    net = build()
    with torch.no_grad():
        expected = net(example)
        names = list(net.state_dict())
        handle = optimize(net, example, library, rest="eager")
        assert list(net.state_dict()) == names
        close(net(example), expected)
        with torch.inference_mode():
            close(net(example), expected)
        wide = net(example.to(memory_format=torch.channels_last))
        close(wide, expected)
        handle.restore()
        assert torch.equal(net(example), expected)
        assert wide.stride() == net(example.to(memory_format=torch.channels_last)).stride()
    *texts, last = [str(site) for site in handle.sites[:7]]
    assert [text.split(":")[0] for text in texts] == [
        "stem conv+norm+relu",
        "a conv+residual+relu",
        "short.0 conv+norm",
        "b conv+residual+relu",
        "depthwise conv+relu6",
        "twice conv",
    ]
    assert re.match("up( transposed: |: PyTorch's, its transposed convolution takes)", last)


def test_inductor_has_the_rest(library: Path, example: Any) -> None:
    net, twin = build(), build()
    with optimize(net, example, library) as handle, torch.no_grad():
        close(net(example), twin(example))
        planned = [site.name for site in handle.sites if site.plan is not None]
        assert len(planned) == 6 + ("up" in planned)


def test_whatever_the_plans_are_not_for_is_pytorchs(library: Path, example: Any) -> None:
    net, twin = build(), build()
    with optimize(net, example, library, rest="eager") as handle, torch.no_grad():
        other = torch.randn(2, 3, 9, 9)
        close(net(other), twin(other))
        lacking = [s for s in handle.sites[7:] if s.plan is None]
        assert any("its image size is dynamic" in s.why_not for s in lacking)
        torch._dynamo.reset()
        close(net(other), twin(other))
        assert any("the library has no kernel" in s.why_not for s in handle.sites)
    with optimize(net, example, library, rest="eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = example.clone().requires_grad_()
        net(x).sum().backward()
        assert x.grad is not None and net.stem.weight.grad is not None
    assert net._compiled_call_impl is None


def test_a_graph_that_needs_gradients_is_said_once(example: Any) -> None:
    convtvm.torch.backend._said.clear()
    net = nn.Conv2d(3, 4, 3)
    compiled = torch.compile(net, backend=convtvm.torch.convtvm, options=EAGER)
    with pytest.warns(UserWarning, match="needs gradients keeps PyTorch's") as said:
        compiled(example).sum().backward()
        compiled(torch.randn(2, 3, 8, 8)).sum().backward()
    assert len([w for w in said if "needs gradients" in str(w.message)]) == 1
    assert net.weight.grad is not None


CHANGES = [
    lambda net: net.a.weight.mul_(2),
    lambda net: net.a.weight.data.mul_(2),
    lambda net: net.a.bias.data[3].add_(1),
    lambda net: net.norm.running_var.data.mul_(2),
    lambda net: setattr(net.a, "weight", nn.Parameter(net.a.weight * 2)),
    lambda net: net.load_state_dict(build(5).state_dict()),
    lambda net: net.a.weight.detach().numpy().__imul__(2),
    lambda net: net.to(memory_format=torch.channels_last),
]


def test_weights_that_change_are_seen(library: Path, example: Any) -> None:
    """One change after another, of a model that is compiled once."""
    net, twin = build(), build()
    with optimize(net, example, library, rest="eager"), torch.no_grad():
        net.requires_grad_(False), twin.requires_grad_(False)
        for number, change in enumerate(CHANGES):
            before, strides = net(example), net.a.weight.stride()
            change(net), change(twin)
            close(net(example), twin(example))
            changed = not torch.allclose(net(example), before, rtol=1e-3, atol=1e-3)
            assert changed or net.a.weight.stride() != strides, number


ACTIVATIONS = {
    "silu": nn.SiLU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "mish": nn.Mish(),
    "leaky_relu:0.01": nn.LeakyReLU(),
    "leaky_relu:0.2": nn.LeakyReLU(0.2, inplace=True),
    "relu6": nn.ReLU6(),
    "bounds": nn.Hardtanh(-0.5, 2.0),
}


class Ends(nn.Module):
    """A convolution with each activation, every other one after a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in ACTIVATIONS)
        self.ends = nn.ModuleList(ACTIVATIONS.values())

    def forward(self, x: Any) -> Any:
        for i, (layer, end) in enumerate(zip(self.layers, self.ends, strict=True)):
            x = end(layer(x) + x if i % 2 else layer(x)) + 0.5
        return x


@pytest.mark.parametrize("rest", ["eager", "inductor"])
def test_activations_go_into_kernels(rest: str) -> None:
    torch.manual_seed(0)
    net, x = Ends().eval().requires_grad_(False), torch.randn(2, 4, 9, 7)
    twin = copy.deepcopy(net)
    with optimize(net, x, **{**EAGER, "rest": rest}) as handle, torch.no_grad():
        close(net(x), twin(x))
        for i, (name, site) in enumerate(zip(ACTIVATIONS, handle.sites, strict=True)):
            assert site.parts == ("conv+residual+" if i % 2 else "conv+") + name
            assert "applied inside the kernel" in str(site)


def test_kernels_without_the_function_leave_it_to_pytorch() -> None:
    net, x = nn.Sequential(nn.Conv2d(4, 8, 3), nn.SiLU()).eval(), torch.randn(1, 4, 9, 7)
    library = convtvm.compile("mb1ic4ih9iw7oc8kh3kw3", threads=1, logs=[])
    with optimize(net, x, library, rest="eager") as handle, torch.no_grad():
        close(net(x), nn.Sequential(*net)(x))
        assert [s.parts for s in handle.sites] == ["conv"] and handle.sites[0].plan


class Derived(nn.Module):
    """Weights that are computed from parameters at every call."""

    def __init__(self) -> None:
        super().__init__()
        normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
        self.normed, self.plain = normed, nn.Conv2d(8, 8, 3)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.normed(x))
        weight = self.plain.weight - self.plain.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, 2 * self.plain.bias)


def test_weights_computed_from_parameters(example: Any) -> None:
    torch.manual_seed(0)
    net = Derived().eval().requires_grad_(False)
    twin = copy.deepcopy(net)
    with optimize(net, example, **EAGER) as handle, torch.no_grad():
        assert len(handle.sites) == 2 and all(s.plan for s in handle.sites)
        close(net(example), twin(example))
        for model in (net, twin):
            model.normed.parametrizations.weight.original0.mul_(3)
            model.plain.bias.add_(1)
        close(net(example), twin(example))
        # A replayed CUDA graph calls no operator, so its caller asks for this.
        for model in (net, twin):
            model.plain.weight.mul_(2)
        for site in handle.sites:
            site.convolution.keep_up()
        packed = [p for s in handle.sites for p in s.convolution._packed.values()]
        assert all(p.watched.are(p.watched.tensors()) for p in packed)
        close(net(example), twin(example))


def test_tune_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no log has is tuned, once: later there are records of it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    few = functools.partial(tuner.tune, total_trials=2, confirm=False)
    monkeypatch.setattr(tuner, "tune", few)  # the time of so few depends on the machine
    log = tmp_path / "convtvm" / "torch.jsonl"
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval(), torch.randn(1, 3, 5, 7)
    tuned = []
    for _ in range(2):
        torch._dynamo.reset()
        with optimize(net, x, tune_seconds=100, **EAGER) as handle, torch.no_grad():
            close(net(x), nn.Sequential(*net)(x))
            assert [s.plan.decisions for s in handle.sites if s.plan] == ["tuned"]
        tuned.append(log.read_text())
    assert tuned[0] == tuned[1] and '"run_secs"' in tuned[0]


def test_without_a_compiler_the_rest_is_eager(tmp_path: Path) -> None:
    (tmp_path / "ld").symlink_to(str(shutil.which("ld")))
    script = """
import torch, convtvm.torch
from torch import nn
torch.manual_seed(0)
options = {"threads": 1, "logs": []}
for kernel in (1, 3):
    net, x = nn.Sequential(nn.Conv2d(3, 4, kernel), nn.Softmax(1)).eval(), torch.randn(1, 3, 5, 7)
    with torch.no_grad():
        found = torch.compile(net, backend="convtvm", options=options)(x)
        torch.testing.assert_close(found, net(x), rtol=1e-4, atol=1e-5)
print("right")
"""
    variables = {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "CXX": "", **variables},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
    assert done.stderr.count("Inductor has no C++ compiler") == 1


def test_an_older_pytorch_is_one_line(tmp_path: Path) -> None:
    """Before anything else of it is used."""
    (tmp_path / "torch.py").write_text("__version__ = '2.10.1+cu126'", encoding="utf8")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", "import convtvm.torch"]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    *_, last = done.stderr.splitlines()
    message = "convtvm.torch needs PyTorch 2.11 or newer, found 2.10.1+cu126; pip install"
    assert done.returncode and message in last


def test_copies_are_the_model_alone(library: Path, example: Any) -> None:
    net = build()
    with optimize(net, example, library, rest="eager"), torch.no_grad():
        for made in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert made._compiled_call_impl is None
            close(made(example), net(example))
            made.a.weight.mul_(2)  # its own
        twice = copy.deepcopy(torch.compile(net, backend="convtvm", options=EAGER))
        twice.a.weight.mul_(2)
        close(twice(example), made(example))
        close(net(example), build()(example))
        torch.save(net.state_dict(), io.BytesIO())


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Any, y: Any, scale: float = 1.0) -> dict[str, Any]:
        return {"sum": self.conv(x) * scale + y, "other": self.point(y)}


def test_several_inputs_and_outputs(library: Path, example: Any) -> None:
    net, y = Two().eval(), torch.randn(1, 8, 9, 7)
    expected = net(example, y, 2.0)
    for given in ((example, y, 2.0), {"x": example, "y": y, "scale": 2.0}):
        with optimize(net, given, library, rest="eager") as handle, torch.no_grad():
            found = net(example, y, scale=2.0)
            assert len(handle.sites) >= 2 and all(s.plan for s in handle.sites)
        assert found.keys() == expected.keys()
        for name in found:
            close(found[name], expected[name].detach())


def test_one_graph_for_every_batch() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).eval()
    options = Options.of(EAGER)
    backend = Backend(options, Kernels(options))
    compiled = torch.compile(net, backend=backend, dynamic=None)
    with torch.no_grad():
        for n in (2, 4, 3, 7, 1):
            x = torch.randn(n, 3, 9, 7)
            if n == 4:
                torch._dynamo.mark_dynamic(x, 0)
            close(compiled(x), net(x))
    assert backend.graphs == 3, "batches of 2, of any size, of one image"
    assert all(s.plan is not None for s in backend.sites)


def test_the_registered_name_and_options(example: Any) -> None:
    from torch._dynamo.backends.registry import lookup_backend

    assert lookup_backend("convtvm") is convtvm.torch.convtvm
    net = nn.Conv2d(3, 8, 3, 2, 1, bias=False).eval()
    with torch.no_grad():
        limited = torch.compile(
            net, backend="convtvm", options={**EAGER, "workspace_limit": 1 << 20, "max_error": 1e-4}
        )
        close(limited(example), net(example))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log": []}, "option 'log' is unknown, expected logs, threads, max_error"),
        ({"threads": 0}, "threads is 0, expected a whole number of 1 or more"),
        ({"max_error": float("nan")}, "max_error is nan, expected a number of 0 or more"),
        ({"policy": "best"}, "policy is 'best', expected one of logged, predicted, measure"),
        ({"workers": "many"}, "workers is 'many', expected one of pytorch, own"),
        ({"tune_seconds": -1}, "tune_seconds is -1, expected a number of 0"),
        ({"logs": 3}, "logs is 3, expected a list of files"),
        ({"logs": [None]}, "logs holds None, expected the path of a file"),
        ({"logs": ["/nonexistent.jsonl"]}, "nonexistent.jsonl"),
    ],
)
def test_bad_options_are_one_line(example: Any, options: Any, message: str) -> None:
    net = nn.Conv2d(3, 8, 3).eval()
    compiled = torch.compile(net, backend=convtvm.torch.convtvm, options={**EAGER, **options})
    with pytest.raises(ConvtvmError) as caught, torch.no_grad():
        compiled(example)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConvtvmError, match=re.escape(message)):
        optimize(net, example, **{**EAGER, **options})
    assert net._compiled_call_impl is None


def test_foreign_logs(example: Any, tmp_path: Path) -> None:
    import json

    line = (
        next(Path(convtvm.__file__).parents[1].glob("tuning_logs/znver5/*.jsonl")).open().readline()
    )
    record = json.loads(line)
    record["target"] = "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76"
    log = tmp_path / "foreign.jsonl"
    log.write_text(json.dumps(record) + "\n", encoding="utf8")
    net = nn.Conv2d(3, 8, 3).eval()
    options = {**EAGER, "logs": [str(log)]}
    compiled = torch.compile(net, backend=convtvm.torch.convtvm, options=options)
    with pytest.raises(LogError), torch.no_grad():
        compiled(example)


def test_options_that_are_no_dict() -> None:
    with pytest.raises(ConvtvmError, match="options is 3, expected a dict"):
        Options.of(3)  # type: ignore[arg-type]


def test_a_damaged_log_is_told(example: Any, tmp_path: Path) -> None:
    log = tmp_path / "torn.jsonl"
    log.write_bytes(b'{"workload": "torn')
    net = nn.Conv2d(3, 8, 3, 2, 1).eval()
    with pytest.warns(UserWarning, match=r"torn\.jsonl:1: not a complete JSON line"):
        optimize(net, example, **{**EAGER, "logs": [log]})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda net: net.train(), "in training mode"),
        (lambda net: net.compile(), "optimized or compiled already"),
    ],
)
def test_refusals(example: Any, spoil: Callable[[nn.Module], object], message: str) -> None:
    net = build()
    spoil(net)
    with pytest.raises(ConvtvmError, match=message):
        optimize(net, example)


class Branch(nn.Module):
    """Its graph breaks at a decision on data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Any) -> Any:
        y = self.a(x)
        return self.b(y) if y.sum() > 1e9 else self.b(-y)


def test_what_cannot_be_captured_runs_as_it_is(library: Path, example: Any) -> None:
    net = Branch().eval()
    with optimize(net, example, library, rest="eager") as handle, torch.no_grad():
        found = net(example)
    close(found, net(example).detach())
    assert [s.name for s in handle.sites] == ["a", "b"] and all(s.plan for s in handle.sites)
    torch._dynamo.reset()
    whole = torch.compile(net, backend=convtvm.torch.convtvm, options=EAGER, fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="branching"), torch.no_grad():
        whole(example)


def test_a_wrong_result_is_told_and_the_model_left(library: Path, example: Any) -> None:
    """A library whose kernel of one workload computes something else."""
    net = build()
    right = convtvm.load(library)

    class Wrong:
        """The same library, but every plan doubles its weight."""

        manifest, layout, workloads = right.manifest, right.layout, right.workloads
        join = right.join

        def plan(self, workload: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
            return right.plan(workload, weight * 2, *args, **kwargs)

    with pytest.raises(ConvtvmError, match=r"differs from its own by [0-9.e+-]+ of the largest"):
        optimize(net, example, Wrong(), rest="eager")  # type: ignore[arg-type]
    assert net._compiled_call_impl is None


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)

    def forward(self, x: Any) -> Any:
        return self.conv(x) * random.random()


def test_a_random_result_cannot_be_compared(library: Path, example: Any) -> None:
    with pytest.warns(UserWarning, match="another result at every call"):
        handle = optimize(Random().eval(), example, library, rest="eager")
    assert handle.sites[0].plan is not None


def test_the_example_and_the_buffers_stay_as_they_are(library: Path, example: Any) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 2, 1)
            self.norm = nn.BatchNorm2d(8).train()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Any) -> Any:
            self.calls += 1
            x.mul_(2)
            return self.norm(self.conv(x))

    net = Counting().eval()
    net.norm.train()
    before, kept = copy.deepcopy(net.state_dict()), example.clone()
    with optimize(net, example, library, rest="eager"), torch.no_grad():
        assert torch.equal(example, kept)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        twin = copy.deepcopy(net)
        close(net(kept.clone()), twin(kept.clone()))
        assert net.calls == 1 and torch.allclose(net.norm.running_mean, twin.norm.running_mean)


FAMILIES = {
    "resnet": lambda: models.resnet((1, 1), False),
    "bottleneck": lambda: models.resnet((1,), True),
    "mobilenet": lambda: models.inverted([(1, 16, 1, 1), (6, 16, 2, 2)], nn.ReLU6, False),
    "efficientnet": lambda: models.inverted([(6, 24, 2, 2, 5)], nn.SiLU, True),
    "convnext": lambda: models.convnext((1, 1), 16),
    "unet": lambda: models.UNet(8, 2),
    "densenet": lambda: models.densenet((2, 1), 8),
}


@pytest.mark.slow
def test_families_of_networks() -> None:
    """Small ones of each; `scripts/figures/compare_torch_models.py` has those of full size."""
    options = Options.of(EAGER)
    kernels, x = PlainKernels(options), torch.randn(1, 3, 32, 32)
    for name, make in FAMILIES.items():
        torch._dynamo.reset()
        net, backend = models.with_statistics(make), Backend(options, kernels)
        with torch.no_grad():
            found, expected = torch.compile(net, backend=backend)(x), net(x)
        assert found.sub(expected).abs().max() <= 1e-4 * expected.abs().max(), name
        sites = [s for s in backend.sites if s.parts.startswith("conv")]
        assert all(s.plan is not None for s in sites), name
        convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        assert len(sites) == len(convolutions), name
