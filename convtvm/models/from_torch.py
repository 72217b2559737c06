"""A PyTorch module or exported program as a Relax function with static shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tvm.relax.frontend.torch import from_exported_program

from convtvm.errors import ModelError
from convtvm.models.imported import Imported, Port
from convtvm.models.inference import inference_form


def from_torch(
    model: torch.nn.Module | torch.export.ExportedProgram | str | Path,
    example: Any = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Imported:
    """A module called with `example` (a tensor or a tuple of tensors), an ExportedProgram or a
    `.pt2` file of one.

    Raises ModelError: the module is in training mode or cannot be exported, an operator cannot be
    compiled.
    """
    if isinstance(model, (str, Path)):
        name, program = Path(model).stem, torch.export.load(model)
        original = program.module()
    elif isinstance(model, torch.export.ExportedProgram):
        name, program, original = "program", model, model.module()
    else:
        if model.training:
            raise ModelError("the model is in training mode, expected inference; call model.eval()")
        examples = (example,) if isinstance(example, torch.Tensor) else tuple(example)
        name, original = type(model).__name__, model
        with torch.no_grad():
            program = torch.export.export(model, examples)
    module = from_exported_program(program, unwrap_unit_return_tuple=True)
    module, origins = inference_form(module, {})
    inputs = [_port(var.name, var.ty) for var in module["main"].params]
    ty = module["main"].ret_ty
    types = list(ty.fields) if hasattr(ty, "fields") else [ty]
    outputs = [_port(f"output_{i}", ty) for i, ty in enumerate(types)]
    return Imported(name, module, inputs, outputs, _Original(original, inputs), origins)


def _port(name: str, ty: Any) -> Port:
    return Port(name, tuple(int(extent) for extent in ty.shape), str(ty.dtype.dtype))


class _Original:
    """The eager module, called with arrays."""

    def __init__(self, module: torch.nn.Module, inputs: list[Port]) -> None:
        self._module, self._inputs = module, inputs

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        tensors = [torch.from_numpy(inputs[port.name]) for port in self._inputs]
        with torch.no_grad():
            result = self._module(*tensors)
        results = [result] if isinstance(result, torch.Tensor) else list(result)
        return [tensor.numpy() for tensor in results]
