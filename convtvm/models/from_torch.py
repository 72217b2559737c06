"""A PyTorch module or exported program as a Relax function with static shapes."""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from convtvm.errors import ModelError
from convtvm.models.imported import Imported, NotComparable, Port
from convtvm.models.inference import inference_form
from convtvm.models.pytorch.importer import import_program

Shapes = Mapping[str, tuple[int, ...]]


def from_torch(
    model: torch.nn.Module | ExportedProgram | str | Path,
    example: Any = None,
    shapes: Shapes | None = None,
) -> Imported:
    """A module called with `example` (a tensor, or a tuple of its arguments), an ExportedProgram,
    or the `.pt2` file of one; `shapes` pins inputs that a program leaves open.

    Raises ModelError: the file is damaged, the module is in training mode or cannot be exported,
    an operator cannot be compiled.
    """
    original: Any
    if isinstance(model, torch.nn.Module):
        name, original = type(model).__name__, model
        program = _exported(model, example)
    elif isinstance(model, ExportedProgram):
        name, program = "program", model
        original = program.module()
    elif isinstance(model, (str, Path)):
        name, program = Path(model).stem, _loaded(Path(model))
        original = program.module()
    else:
        found = type(model).__name__
        raise ModelError(f"expected a torch.nn.Module, an ExportedProgram or a file, found {found}")
    program = _pinned(program, dict(shapes or {}))
    module, origins = import_program(program)
    module, origins = inference_form(module, origins)
    inputs = [_port(var.name, var.ty) for var in module["main"].params]
    ty = module["main"].ret_ty
    types = list(ty.fields) if hasattr(ty, "fields") else [ty]
    outputs = [_port(f"output_{i}", ty) for i, ty in enumerate(types)]
    reference = _Original(original, inputs, program.call_spec.in_spec)
    return Imported(name, module, inputs, outputs, reference, origins)


def _port(name: str, ty: Any) -> Port:
    return Port(name, tuple(int(extent) for extent in ty.shape), str(ty.dtype.dtype))


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _loaded(path: Path) -> ExportedProgram:
    """The program in a file."""
    if not path.is_file():
        reason = "it is no regular file" if path.exists() else "no such file"
        raise ModelError(f"cannot read {path}: {reason}")
    if not zipfile.is_zipfile(path):
        raise ModelError(
            f"{path} is no exported program, or damaged; expected what torch.export.save wrote"
        )
    try:
        with warnings.catch_warnings(), _silence():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as error:  # torch checks little, and raises whatever comes
        raise ModelError(
            f"PyTorch {torch.__version__} does not load {path}: {_first(error)}; expected what "
            "torch.export.save of this version or an older one wrote"
        ) from error


@contextmanager
def _silence() -> Iterator[None]:
    """PyTorch logs tracebacks of what it then raises."""
    logger = logging.getLogger("torch.export")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _check_precision(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype in (torch.float16, torch.bfloat16):
        raise ModelError(
            f"{name} is {tensor.dtype}, expected float32; call model.float() before exporting"
        )


def _exported(model: torch.nn.Module, example: Any) -> ExportedProgram:
    """The module as a program, traced with the example."""
    if model.training:
        raise ModelError("the model is in training mode, expected inference; call model.eval()")
    trained = [name for name, module in model.named_modules() if module.training and name]
    if trained:
        raise ModelError(f"module {trained[0]} is in training mode; call model.eval()")
    for name, weight in model.named_parameters():
        if weight.device.type != "cpu":
            raise ModelError(f"{name} is on {weight.device}, expected the CPU; call model.cpu()")
        _check_precision(name, weight)
    if example is None:
        raise ModelError("a module needs an example of its input: a tensor or a tuple of tensors")
    arguments = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    for leaf in pytree.tree_leaves(arguments):
        if not isinstance(leaf, torch.Tensor):
            raise ModelError(
                f"an example holds a {type(leaf).__name__}, expected tensors only; bind other "
                "arguments in a module around the model"
            )
        if leaf.numel() == 0:
            raise ModelError(f"an example has shape {tuple(leaf.shape)}, which is empty")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, arguments)
    except Exception as error:  # tracing runs the model's own code
        raise ModelError(f"torch.export cannot export the model: {_first(error)}") from error


def _pinned(program: ExportedProgram, shapes: dict[str, tuple[int, ...]]) -> ExportedProgram:
    """The program with the shapes of all inputs fixed; exported anew if some were open."""
    found = {}
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in program.graph_signature.user_inputs:
            found[node.name] = node.meta.get("val")
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"input {name} is a {type(value).__name__}, expected tensors only")
    for name, value in (*program.state_dict.items(), *found.items()):
        _check_precision(name, value)
    unknown = [name for name in shapes if name not in found]
    if unknown:
        raise ModelError(f"no input {unknown[0]} to pin by --shape; there are {', '.join(found)}")
    opened = {}
    for name, value in found.items():
        declared = [size if isinstance(size, int) else "?" for size in value.shape]
        text, shape = "x".join(map(str, declared)) or "scalar", shapes.get(name)
        if shape is None and "?" in declared:
            opened[name] = text
        if shape is None:
            continue
        fits = len(shape) == len(declared) and min(shape, default=1) > 0
        if not fits or any(d not in ("?", n) for d, n in zip(declared, shape, strict=True)):
            wanted = "x".join(map(str, shape)) or "scalar"
            raise ModelError(f"--shape {name}={wanted} does not fit the model, where it is {text}")
    if opened:
        raise ModelError(
            "the model leaves the shape of "
            f"{', '.join(f'{name} ({text})' for name, text in opened.items())} open, and a "
            f"compiled model's shapes are fixed; give one: "
            f"{' '.join(f'--shape {name}={text}' for name, text in opened.items())}"
        )
    if all(isinstance(size, int) for value in found.values() for size in value.shape):
        return program
    tensors = [
        torch.zeros(shapes.get(name) or tuple(value.shape), dtype=value.dtype)
        for name, value in found.items()
    ]
    arguments, names = pytree.tree_unflatten(tensors, program.call_spec.in_spec)
    try:
        return torch.export.export(program.module(), arguments, names)
    except Exception as error:
        raise ModelError(f"the shapes do not fit the model: {_first(error)}") from error


class _Original:
    """The eager module, called with arrays."""

    def __init__(self, module: Any, inputs: list[Port], structure: pytree.TreeSpec) -> None:
        self._module, self._inputs, self._structure = module, inputs, structure

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        tensors = [torch.from_numpy(np.array(inputs[port.name])) for port in self._inputs]
        arguments, names = pytree.tree_unflatten(tensors, self._structure)
        try:
            with torch.no_grad():
                result = self._module(*arguments, **names)
        except Exception as error:  # the model's own code, on numbers that mean nothing to it
            raise NotComparable(f"PyTorch does not run the original: {_first(error)}") from error
        leaves = pytree.tree_leaves(result)
        return [leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]
