"""Small ONNX models, right and wrong ones, and how tests see them refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from convtvm.errors import ModelError
from convtvm.models.importing import import_model

FLOAT = TensorProto.FLOAT


def model_of(
    nodes: list[Any],
    inputs: dict[str, list[Any]],
    outputs: list[str],
    weights: dict[str, np.ndarray] | None = None,
    dtype: int = FLOAT,
    opset: int = 17,
) -> Any:
    """An ONNX model, not checked."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def relu_of(shape: list[Any], **options: Any) -> Any:
    return model_of(
        [helper.make_node("Relu", ["x"], ["y"], name="it")], {"x": shape}, ["y"], **options
    )


def refusal(path: Path, *words: str, shapes: dict[str, tuple[int, ...]] | None = None) -> str:
    """The message with which a model is refused; one line that holds these words."""
    with pytest.raises(ModelError) as caught:
        import_model(path, shapes=shapes)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message, message
    return message


def external(tensor: Any, **entries: str) -> None:
    """Say of a weight that it lies in a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def one(operator: str, *constants: Any, shape: Any = (1, 3, 8, 8), **attributes: Any) -> Any:
    """A model of one node n7, of data x and of constants."""
    names = [f"k{i}" for i in range(len(constants))]
    node = helper.make_node(operator, ["x", *names], ["y"], name="n7", **attributes)
    weights = {name: np.asarray(c) for name, c in zip(names, constants, strict=True)}
    return model_of([node], {"x": list(shape)}, ["y"], weights)
