"""From imported models to programs: right answers, whatever is fused, blocked or left over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from executing import Executor
from models import small_resnet
from torch import nn

from convtvm.errors import NoCandidate
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
    inputs = inputs_of(imported)
    found = Executor(program, target)(inputs)
    for out, expected in zip(found, imported.reference(inputs), strict=True):
        assert out.shape == expected.shape
        assert np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()
    return program


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
