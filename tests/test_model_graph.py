"""From imported models to programs: right answers, whatever is fused, blocked or left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from executing import Executor
from models import small_resnet
from torch import nn

from convtvm.errors import NoCandidate
from convtvm.kernels.task import Task
from convtvm.logs import records
from convtvm.machine.targets import CompileTarget, resolve
from convtvm.models.graph import convolutions, make_program
from convtvm.models.imported import Imported
from convtvm.models.importing import import_model
from convtvm.models.program import ConvKernel, Program

NATIVE = resolve("native", 1)
HISTORY = records.load(records.shipped_logs())[0]


def inputs_of(model: Imported, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {p.name: rng.standard_normal(p.shape).astype(np.float32) for p in model.inputs}


def check(
    model: nn.Module, *shape: int, block: int | None = None, target: CompileTarget = NATIVE
) -> Program:
    """The program of a model, after its outputs are those of the original."""
    imported = import_model(model.eval(), torch.zeros(shape))
    program = make_program(imported, target, HISTORY, block=block)
    assert wrong(program, imported, target) == []
    return program


def wrong(program: Program, imported: Imported, target: CompileTarget = NATIVE) -> list[int]:
    """Which outputs of the program are not those of the original."""
    inputs, off = inputs_of(imported), []
    found = Executor(program, target)(inputs)
    for i, (out, expected) in enumerate(zip(found, imported.reference(inputs), strict=True)):
        assert out.shape == expected.shape, i
        if not np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max():
            off.append(i)
    return off


def layouts(program: Program) -> list[str]:
    kernels = (f for f in program.functions.values() if isinstance(f, ConvKernel))
    return [kernel.task.layout for kernel in kernels]


@pytest.mark.parametrize("block", [0, 8])
def test_residual_network(block: int) -> None:
    program = check(small_resnet(), 1, 3, 33, 41, block=block)
    labels = [step.label for step in program.steps]
    assert sum("bias add relu" in label for label in labels) == 2
    assert len(labels) == 10  # 7 convolutions, a dense layer, two poolings


def test_convolutions_have_multiplicity() -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1))
    found = convolutions(import_model(model.eval(), torch.zeros(1, 8, 9, 9)))
    assert [(w.oc, w.kh, w.multiplicity, count) for w, count in found] == [
        (8, 3, 2, 2),
        (4, 1, 1, 1),
    ]


def test_limits() -> None:
    model = import_model(nn.Conv2d(16, 16, 3).eval(), torch.zeros(1, 16, 20, 20))
    program = make_program(model, NATIVE, HISTORY, workspace_limit=0, max_error=1e-5)
    (kernel,) = (f for f in program.functions.values() if isinstance(f, ConvKernel))
    assert kernel.task.algorithm_name == "direct"
    with pytest.raises(NoCandidate, match="direct has an error of"):
        make_program(model, NATIVE, HISTORY, max_error=1e-12)


@pytest.mark.parametrize(("measured", "bound", "is_chosen"), [
    (1e-4, None, False), (1e-6, None, True), (1e-4, 1e-3, True), (1e-6, 5e-7, False),
])  # fmt: skip
def test_a_fast_kernel_with_too_large_an_error(
    measured: float, bound: float | None, is_chosen: bool
) -> None:
    """A Winograd that was measured to take no time is chosen within the bound only."""
    model = import_model(nn.Conv2d(16, 16, 3).eval(), torch.zeros(1, 16, 20, 20))
    ((workload, _),) = convolutions(model)
    history = []
    for name, secs, error in (("winograd:6", 1e-9, measured), ("direct", 1e-3, 1e-7)):
        task = Task(workload, name, NATIVE)
        history.append(
            records.TuningRecord(
                workload=workload.key, algorithm=name, target=NATIVE.name, threads=1,
                layout="NCHW", device="any", decisions=task.space.default,
                template=task.template_version, run_secs=[secs], max_error=error,
            )
        )  # fmt: skip
    program = make_program(model, NATIVE, history, max_error=bound, block=0)
    (kernel,) = (f for f in program.functions.values() if isinstance(f, ConvKernel))
    assert kernel.task.algorithm_name == ("winograd:6" if is_chosen else "direct")


class Between(nn.Module):
    """Something between two convolutions, so that it meets blocks of channels on both sides."""

    def __init__(self, middle: nn.Module, oc: int = 16, ic: int = 16) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.before, self.middle = nn.Conv2d(ic, ic, 3, padding=1), middle
        self.after = nn.Conv2d(oc, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.middle(self.before(x)))


class Apply(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        return self.function(*x)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.silu(self.down(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.up(y))


def _shuffled(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)


F = nn.functional
# Each takes 16 channels of 9 x 11 pixels and gives 16 channels again.
MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "max pool": lambda: nn.MaxPool2d(3, 2, 1),
    "max pool, dilated, rounded up": lambda: nn.MaxPool2d(2, 2, 0, 2, ceil_mode=True),
    "average pool": lambda: nn.AvgPool2d(3, 2, 1),
    "average pool, inside only": lambda: nn.AvgPool2d((3, 2), 2, 1, count_include_pad=False),
    "adaptive pool": lambda: nn.AdaptiveAvgPool2d((3, 4)),
    "gate": lambda: Gate(16),
    "depthwise": lambda: nn.Conv2d(16, 16, 3, 2, 1, groups=16),
    "groups": lambda: nn.Conv2d(16, 16, 3, 1, 1, groups=4),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "concat": lambda: Apply(lambda x: torch.cat([x[:, :8], x[:, 8:] * 2], 1)),
    "concat, ragged": lambda: Apply(lambda x: torch.cat([x[:, 3:], x[:, :3]], 1)),
    "crop": lambda: Apply(lambda x: x[:, :, 1:-2, 2:9]),
    "pad": lambda: nn.ZeroPad2d((1, 2, 0, 3)),
    "shuffle": lambda: Apply(_shuffled),
    "chunk": lambda: Apply(lambda x: torch.cat([*x.chunk(2, 1)][::-1], 1)),
    "softmax": lambda: nn.Softmax(1),
    "softmax of rows": lambda: nn.Softmax(3),
    "group norm": lambda: nn.GroupNorm(4, 16),
    "instance norm": lambda: nn.InstanceNorm2d(16),
    "product": lambda: Apply(lambda x: x * torch.tanh(x.flip(3))),
    "transposed": lambda: nn.ConvTranspose2d(16, 16, 2, 2),
    "transposed, overlapping": lambda: nn.ConvTranspose2d(16, 16, 4, 2, 1),
    "transposed, odd": lambda: nn.ConvTranspose2d(16, 16, (3, 5), (2, 3), (1, 2), (1, 0)),
    "transposed, groups": lambda: nn.ConvTranspose2d(16, 16, 3, 2, 1, groups=2),
    "transposed, dilated": lambda: nn.ConvTranspose2d(16, 16, 3, 1, 2, dilation=2),
    "transposed, dilated, stride": lambda: nn.ConvTranspose2d(
        16, 16, (3, 2), (2, 3), (3, 1), 1, dilation=(2, 3), groups=2
    ),
    "transposed, cut": lambda: nn.ConvTranspose2d(16, 16, 2, 1, 3),
    "transposed, relu": lambda: nn.Sequential(nn.ConvTranspose2d(16, 16, 3, 3), nn.ReLU()),
    "tall and wide": lambda: nn.Conv2d(16, 16, (1, 7), padding=(0, 3)),
    "dilated": lambda: nn.Conv2d(16, 16, 3, padding=2, dilation=2),
}


class SideBySide(nn.Module):
    """Models side by side, each with an input of its own: one export, and kernels that several
    have are compiled once."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, *x: torch.Tensor) -> list[torch.Tensor]:
        return [model(each) for model, each in zip(self.models, x, strict=True)]


def test_operators() -> None:
    torch.manual_seed(0)
    model = SideBySide(Between(make()) for make in MIDDLES.values()).eval()
    imported = import_model(model, tuple(torch.zeros(1, 16, 9, 11) for _ in MIDDLES))
    program = make_program(imported, NATIVE, HISTORY)
    assert [list(MIDDLES)[i] for i in wrong(program, imported)] == []


ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.Hardtanh(-2, 3),
    nn.SiLU(),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.LeakyReLU(0.2),
    nn.PReLU(8),
    nn.Mish(),
]


class Activations(nn.Module):
    """Every activation after a convolution, with a residual before, after or without."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3 * len(ACTIVATIONS)))
        self.activations = nn.ModuleList(ACTIVATIONS)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        made, layers = [], iter(self.layers)
        for activation in self.activations:
            made.append(activation(next(layers)(x)))
            made.append(activation(x + next(layers)(x)))
            made.append(x + activation(next(layers)(x)) * 0.5)
        return made


def test_activations_are_part_of_their_layer() -> None:
    program = check(Activations(), 1, 8, 5, 7)
    outside = [step.label for step in program.steps if not step.label.startswith("conv ")]
    assert all(label.startswith("to_") for label in outside), outside


def test_what_others_read_stays() -> None:
    """A sum that is read twice, a bias that is an output, a gate that depends on its layer."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = self.a(x)
            z = torch.relu(y) + y.mean((2, 3), keepdim=True)
            u = self.b(z)
            v = u + torch.flip(u, (2,))
            return y, v, v + self.a(v)

    check(Model(), 2, 8, 6, 7)


class WithAndWithoutBias(nn.Module):
    """One sum, read with its bias and without, as common subexpressions leave it."""

    def __init__(self, layer: nn.Module, bias: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.bias = layer, nn.Parameter(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain = self.layer(x)
        return plain + torch.relu(plain + self.bias)


def test_a_sum_with_and_without_its_bias() -> None:
    torch.manual_seed(0)
    bias = torch.randn(9, 1, 1)
    for block in (0, 8):
        check(WithAndWithoutBias(nn.Conv2d(5, 9, 3, bias=False), bias), 1, 5, 7, 9, block=block)
    check(WithAndWithoutBias(nn.Linear(5, 9, bias=False), bias.reshape(9)), 3, 5)


def test_u_net() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(4)
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
            self.c, self.up = nn.Conv2d(16, 16, 3, padding=1), nn.ConvTranspose2d(16, 8, 2, 2)
            self.d = nn.Conv2d(16, 2, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = F.relu(self.a(x))
            low = F.relu(self.c(F.relu(self.b(first))))
            return self.d(torch.cat([first, F.relu(self.up(low))], 1))

    check(Net(), 1, 3, 16, 20)


def test_dense_layers() -> None:
    """Of rows, of one row, without bias, with what follows."""
    torch.manual_seed(5)
    check(nn.Sequential(nn.Linear(33, 20), nn.GELU(), nn.Linear(20, 9, bias=False)), 7, 33)
    check(nn.Sequential(nn.Flatten(), nn.Linear(24, 130), nn.ReLU(), nn.Linear(130, 10)), 1, 6, 4)
    norm = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 16), nn.Softmax(-1))
    check(norm, 2, 5, 16)


def test_signals() -> None:
    torch.manual_seed(6)
    layers = [nn.Conv1d(8, 16, 5, 2, 2), nn.ReLU(), nn.ConvTranspose1d(16, 8, 4, 2, 1), nn.SiLU()]
    check(nn.Sequential(*layers), 2, 8, 21)


def test_attention() -> None:
    def attend(x: torch.Tensor) -> torch.Tensor:
        q, k, v = x[..., :8], x[..., 8:16], x[..., 16:]
        return torch.softmax(q @ k.transpose(1, 2) * 0.35, -1) @ v

    check(Apply(attend), 2, 11, 27)


@pytest.mark.parametrize("batch", [1, 3])
def test_two_threads(batch: int) -> None:
    check(small_resnet(), batch, 3, 40, 40, target=resolve("native", 2))


def test_nothing_to_compute() -> None:
    check(Apply(lambda x: x.reshape(4, 6)), 2, 12)
