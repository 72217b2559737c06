"""Models from wherever they come: `import_model(file or module)`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convtvm.errors import EnvironmentProblem, ModelError
from convtvm.models.imported import Imported


def import_model(
    model: Any, example: Any = None, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Imported:
    """An .onnx file, a .pt2 file, an ExportedProgram, or a module called with `example`."""
    if isinstance(model, (str, Path)) and Path(model).suffix.lower() == ".onnx":
        _need("onnx", model)
        from convtvm.models.from_onnx import from_onnx

        return from_onnx(model, shapes)
    if isinstance(model, (str, Path)) and Path(model).suffix.lower() != ".pt2":
        raise ModelError(f"{model}: expected a file that ends in .onnx or .pt2")
    _need("torch", model)
    from convtvm.models.from_torch import from_torch

    return from_torch(model, example, shapes)


def _need(package: str, model: Any) -> None:
    """Raise EnvironmentProblem if the package that reads such a model is missing."""
    if importlib.util.find_spec(package) is None:
        raise EnvironmentProblem(f"importing {model} needs {package}: pip install {package}")
