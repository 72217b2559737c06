"""Small networks, and how tests run an imported model without a schedule."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from support import Unoptimised
from torch import nn
from tvm import relax

from convtvm.dispatch.model import Model
from convtvm.measure.client import Zygote
from convtvm.models.building import assemble
from convtvm.models.constants import op_name
from convtvm.models.graph import make_program
from convtvm.models.imported import Imported
from convtvm.models.importing import import_model


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode, its batch norms with statistics worth folding."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            count = module.num_features
            if module.affine:
                module.weight.data = torch.rand(count, generator=generator) * 0.5 + 0.75
                module.bias.data = torch.randn(count, generator=generator) * 0.1
            module.running_mean = torch.randn(count, generator=generator) * 0.1
            module.running_var = torch.rand(count, generator=generator) * 0.5 + 0.75
    return model.eval()


class Residual(nn.Module):
    """A residual block with a projection, as in ResNet."""

    def __init__(self, ic: int, oc: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ic, oc, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(oc)
        self.conv2 = nn.Conv2d(oc, oc, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(oc)
        self.down = nn.Sequential(nn.Conv2d(ic, oc, 1, stride), nn.BatchNorm2d(oc))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.down(x)
        return self.relu(y)


def small_resnet() -> nn.Module:
    """Stem, pooling, two residual blocks, classifier; takes 3 channels."""
    torch.manual_seed(0)
    return settle(
        nn.Sequential(
            nn.Conv2d(3, 10, 7, 2, 3, bias=False),
            nn.BatchNorm2d(10),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            Residual(10, 12, 1),
            Residual(12, 18, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(18, 7),
        )
    )


def operators(module: tvm.IRModule) -> Counter[str]:
    """How often `main` calls every operator."""
    counted: Counter[str] = Counter()

    def count(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call):
            counted[op_name(expr)] += 1

    relax.analysis.post_order_visit(module["main"], count)
    return counted


def build_together(
    models: list[Imported], folder: Path
) -> list[Callable[[dict[str, np.ndarray]], list[np.ndarray]]]:
    """Runs of the models as Relax's default build computes them, independent of our kernels.

    All by one build, which takes a tenth of the time, without LLVM's optimisations, and as a
    library in `folder`: compiling in memory does not heed that setting. What is tested is the
    meaning of a module.
    """
    target = tvm.target.Target({"kind": "llvm", "opt-level": 0})
    whole, machines = tvm.IRModule(), {}
    for index, model in enumerate(models):
        main = model.module["main"].with_attr("global_symbol", f"model_{index}")
        if len(model.module.functions) == 1:
            whole[f"model_{index}"] = main
        else:  # calls functions of its own, whose names may be another's
            built = tvm.compile(model.module, target=target)
            machines[index] = relax.VirtualMachine(built, tvm.cpu())["main"]
    path = str(folder / "models.so")
    tvm.compile(whole, target=target).export_library(path)
    machine = relax.VirtualMachine(tvm.runtime.load_module(path), tvm.cpu())

    def runner(index: int, model: Imported) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
        function = machines.get(index) or machine[f"model_{index}"]
        return lambda inputs: _called(function, model, inputs)

    return [runner(index, model) for index, model in enumerate(models)]


def compile_together(
    models: list[Imported], folder: Path
) -> list[Callable[[dict[str, np.ndarray]], list[np.ndarray]]]:
    """Model libraries of all of them, by the default decisions of our kernels, compiled at once and
    without LLVM's optimisations."""
    target = Unoptimised.native()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an operator that stays without a schedule
        programs = [(make_program(model, target, []), target) for model in models]
    with Zygote() as zygote:
        content = assemble(programs, zygote)

    def runner(index: int) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
        def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            model = Model(replace(content, targets=[content.targets[index]]))
            found = model(inputs)
            return list(found) if isinstance(found, tuple) else [found]

        return run

    return [runner(index) for index in range(len(models))]


def _called(
    function: Callable[..., Any], model: Imported, inputs: dict[str, np.ndarray]
) -> list[np.ndarray]:
    result = function(*(tvm.runtime.tensor(inputs[port.name]) for port in model.inputs))
    return [result.numpy()] if hasattr(result, "numpy") else [item.numpy() for item in result]


def random_inputs(model: Imported, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal floats, small integers, for every input."""
    generator = np.random.default_rng(seed)
    found = {}
    for port in model.inputs:
        if port.dtype.startswith("float"):
            found[port.name] = generator.standard_normal(port.shape).astype(port.dtype)
        else:
            found[port.name] = generator.integers(0, 2, port.shape).astype(port.dtype)
    return found


def compile_files(models: Mapping[str, Any], folder: Path) -> dict[str, tuple[Imported, Any]]:
    """ONNX models by name, each saved in `folder`, imported and compiled with the others."""
    import onnx  # which users of this module may lack

    imported = {}
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
        imported[name] = import_model(folder / f"{name}.onnx")
    runs = compile_together(list(imported.values()), folder)
    return {name: (imported[name], run) for name, run in zip(imported, runs, strict=True)}
