"""An ONNX file as a Relax function with static shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm

from convtvm.errors import EnvironmentProblem, ModelError
from convtvm.models.imported import ROUNDINGS, Imported, NotComparable, Port
from convtvm.models.inference import inference_form
from convtvm.models.onnx.importer import import_graph
from convtvm.models.onnx.reading import input_ports, opset_of, precisions_of, read_model

_WRONG = ("InvalidGraph", "InvalidProtobuf")  # what ONNX Runtime raises for files that are wrong


def from_onnx(path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Imported:
    """The model in the file at `path`; `shapes` pins inputs whose shapes the file leaves open.

    Raises ModelError: the file is damaged, an input's shape is open, an operator cannot be
    compiled.
    """
    path = Path(path)
    model = read_model(path)
    inputs = input_ports(model.graph, shapes or {}, str(path))
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        twice = [name for name, count in Counter(v.name for v in values).items() if count > 1]
        if twice:
            raise ModelError(f"{path} lists {kind} {twice[0]} twice; export it anew")
    try:
        module, origins, decided = import_graph(model.graph, opset_of(model), inputs)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    module, origins = inference_form(module, origins)
    outputs = _outputs(model.graph, module)
    original = _Original(path, outputs)
    rounding = max(ROUNDINGS.get(dtype, 0.0) for dtype in ("float32", *precisions_of(model)))
    return Imported(path.stem, module, inputs, outputs, original, origins, rounding, decided)


def _outputs(graph: onnx.GraphProto, module: tvm.IRModule) -> list[Port]:
    ty = module["main"].ret_ty
    types = list(ty.fields) if hasattr(ty, "fields") else [ty]
    return [
        Port(value.name, tuple(int(d) for d in ty.shape), str(ty.dtype.dtype))
        for value, ty in zip(graph.output, types, strict=True)
    ]


class _Original:
    """The file in ONNX Runtime with its default options, opened when first asked."""

    def __init__(self, path: Path, outputs: list[Port]) -> None:
        self._path, self._outputs = path, outputs
        self._session: Any = None

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if self._session is None:
            self._session = _session(self._path)
        try:
            return self._session.run([port.name for port in self._outputs], dict(inputs))
        except Exception as error:  # pybind classes of its own
            first = (str(error).splitlines() or ["no message"])[0]
            raise NotComparable(f"ONNX Runtime does not run {self._path}: {first}") from error


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise EnvironmentProblem(
            "comparing with the original needs ONNX Runtime: pip install onnxruntime"
        ) from None

    def load(**entries: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it has to say comes as an error
        for key, value in entries.items():
            options.add_session_config_entry(f"session.{key}", value)
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    # Else it adds up pairs of products of bytes in 16 bits where a CPU has nothing better. It does
    # so by changing types, and lacks some operators in the changed ones.
    with suppress(Exception):
        return load(x64quantprecision="1")
    try:
        return load()
    except Exception as error:  # pybind classes of its own
        first = (str(error).splitlines() or ["no message"])[0]
        # Others say what this version of it lacks.
        is_wrong = type(error).__name__ in _WRONG or "Type Error" in first
        kind = ModelError if is_wrong else NotComparable
        raise kind(f"ONNX Runtime does not load {path}: {first}") from error
