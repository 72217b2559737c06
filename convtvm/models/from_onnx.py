"""An ONNX file as a Relax function with static shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from convtvm.errors import EnvironmentProblem, ModelError
from convtvm.models.imported import Imported, Port
from convtvm.models.inference import inference_form
from convtvm.models.onnx.importer import import_graph


def from_onnx(path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Imported:
    """The model in the file at `path`; `shapes` pins inputs whose shapes the file leaves open.

    Raises ModelError: the file is damaged, an input's shape is open, an operator cannot be
    compiled.
    """
    path = Path(path)
    model = onnx.load(path)
    graph = model.graph
    inputs = _inputs(graph, dict(shapes or {}))
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    module, origins = import_graph(graph, opset, inputs)
    module = inference_form(module)
    outputs = _outputs(graph, module)
    return Imported(
        path.stem, module, inputs, outputs, _Original(path, [p.name for p in outputs]), origins
    )


def _inputs(graph: onnx.GraphProto, shapes: dict[str, tuple[int, ...]]) -> list[Port]:
    """The inputs that are no initializers, with their shapes pinned."""
    weights = {tensor.name for tensor in graph.initializer}
    ports, open_inputs = [], []
    for value in graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        shape = shapes.get(value.name)
        if shape is None:
            dims = [dim.dim_value for dim in tensor.shape.dim]
            if not tensor.HasField("shape") or 0 in dims:
                names = [dim.dim_param or str(dim.dim_value or "?") for dim in tensor.shape.dim]
                open_inputs.append(f"{value.name} ({'x'.join(names) or 'of unknown rank'})")
            shape = tuple(dims)
        ports.append(
            Port(value.name, shape, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
        )
    if open_inputs:
        raise ModelError(
            f"the shape of {', '.join(open_inputs)} is open; pin it: --shape "
            f"{open_inputs[0].split(' ')[0]}=1x3x224x224"
        )
    return ports


def _outputs(graph: onnx.GraphProto, module: object) -> list[Port]:
    ty = module["main"].ret_ty  # type: ignore[index]
    types = list(ty.fields) if hasattr(ty, "fields") else [ty]
    return [
        Port(value.name, tuple(int(d) for d in ty.shape), str(ty.dtype.dtype))
        for value, ty in zip(graph.output, types, strict=True)
    ]


class _Original:
    """The file in ONNX Runtime with its default options, opened when first asked."""

    def __init__(self, path: Path, outputs: list[str]) -> None:
        self._path, self._outputs = path, outputs
        self._session: object = None

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if self._session is None:
            try:
                import onnxruntime
            except ModuleNotFoundError:
                raise EnvironmentProblem(
                    "comparing with the original needs ONNX Runtime: pip install onnxruntime"
                ) from None
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(
                str(self._path), options, providers=["CPUExecutionProvider"]
            )
        return self._session.run(self._outputs, dict(inputs))  # type: ignore[attr-defined]
