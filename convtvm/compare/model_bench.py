"""A whole model beside other libraries, in one run."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convtvm.compare.bench import Measured, interleave
from convtvm.compare.model_peers import Original, set_up
from convtvm.compare.peers import Run
from convtvm.dispatch import Model
from convtvm.errors import ConvtvmError
from convtvm.measure.jobs import failure, wrong_answer
from convtvm.models.imported import Imported
from convtvm.problem.reference import relative_error

_WRONG = 1e-2  # relative error that no library has in fp32
OURS = "convtvm"


@dataclass(frozen=True)
class ModelBench:
    """Our model and the peers' settings by name; `absent` are peers that took no part, and why.

    Errors are relative to the largest element of the original's outputs.
    """

    ours: Measured
    peers: Mapping[str, Measured]
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def best_peer(self) -> str | None:
        return min(self.peers, key=lambda name: self.peers[name].seconds, default=None)

    @property
    def speedup(self) -> float | None:
        """Time of the best peer over ours."""
        best = self.best_peer
        return self.peers[best].seconds / self.ours.seconds if best else None


def bench_model(
    model: Model, imported: Imported, source: Path, peers: Sequence[str], repeat: int = 25
) -> ModelBench:
    """Time the model and these peers in turn, each in the steady state, until all have `repeat`
    calls that count; answers are compared with the original's first. A peer that fails, or computes
    something else, is absent."""
    inputs = model.random_inputs()
    expected = imported.reference(inputs)
    first = model(inputs)
    out = first if isinstance(first, tuple) else (first,)
    errors = {OURS: _error(out, expected)}

    def check(name: str, run: Run) -> None:
        errors[name] = error = _error(run(), expected)
        if not error < _WRONG:
            raise ConvtvmError(wrong_answer(error, _WRONG).message)

    with _original(source, imported, inputs, model.threads) as original:
        runs, absent = set_up(list(peers), original, check)
        times = interleave({OURS: lambda: model(inputs, out=out), **runs}, repeat, model.threads)
    measured = {name: Measured.of(timing, errors[name]) for name, timing in times.items()}
    ours = measured.pop(OURS)
    return ModelBench(ours, measured, absent)


def _error(found: Sequence[Any], expected: Sequence[np.ndarray]) -> float:
    """The largest over the outputs; shapes may differ in axes of length 1."""
    if len(found) != len(expected):
        raise ConvtvmError(f"{len(found)} outputs, expected {len(expected)}")
    return max(
        relative_error(np.asarray(a).reshape(b.shape), b)
        for a, b in zip(found, expected, strict=True)
    )


@contextmanager
def _original(
    source: Path, imported: Imported, inputs: Mapping[str, np.ndarray], threads: int
) -> Iterator[Original]:
    """The model as peers take it: an ONNX file with the shapes of `inputs`, exported if need be."""
    names = tuple(port.name for port in imported.outputs)
    with tempfile.TemporaryDirectory(prefix="convtvm-") as folder:
        path, module, problem = Path(folder, "model.onnx"), None, ""
        if source.suffix.lower() == ".pt2":
            module = _module(source)
            try:
                _export(module, path, inputs, names)
            except Exception as error:  # PyTorch's own code; PyTorch itself can still take part
                problem = f"PyTorch cannot write it as ONNX: {failure('export', error).message}"
        else:
            _pin(source, path, inputs)
        yield Original(path, module, inputs, names, threads, problem)


def _pin(source: Path, path: Path, inputs: Mapping[str, np.ndarray]) -> None:
    """Write the model with the inputs' shapes, and without what it knew of open ones."""
    import onnx

    model = onnx.load(source)
    for value in model.graph.input:
        if value.name in inputs:
            dims = value.type.tensor_type.shape
            del dims.dim[:]
            for size in inputs[value.name].shape:
                dims.dim.add().dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(model), path)


def _module(source: Path) -> Any:
    """The module of a .pt2 file."""
    import torch

    module = torch.export.load(source).module()
    module.train = lambda mode=True: module  # the exporter asks for it, exported modules refuse
    return module


def _export(
    module: Any, path: Path, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> None:
    import torch

    tensors = tuple(torch.from_numpy(array.copy()) for array in inputs.values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tensors,
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamo=False,
            opset_version=17,
        )
