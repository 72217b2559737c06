"""Operators that are made of others, by ONNX's definition or the file's own, and odd numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")  # `models` has networks of its

from models import compile_files, compile_together  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from convtvm.models.importing import import_model  # noqa: E402

RANDOM = np.random.default_rng(5)
KINDS = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "uint8": TensorProto.UINT8}


def model_of(
    nodes: list[Any],
    outputs: Sequence[str],
    *inputs: np.ndarray,
    opset: int = 23,
    functions: Sequence[Any] = (),
    **weights: np.ndarray,
) -> tuple[Any, dict[str, np.ndarray]]:
    """A model of x0, x1 ..., and these inputs by name."""
    given = {f"x{i}": array for i, array in enumerate(inputs)}
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, KINDS[str(a.dtype)], a.shape)
            for name, a in given.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_model(
        graph, opset_imports=domains, functions=functions, ir_version=10
    ), given


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype("float32")


node = helper.make_node
HALVED = helper.make_function(
    "own", "Halved", ["a"], ["b"],
    [node("Constant", [], ["two"], value_float=2.0), node("Div", ["a", "two"], ["b"])],
    [helper.make_opsetid("", 23)],
)  # fmt: skip
ODD = np.array([0, -0.0, 3, -3, 1, -1, np.inf, -np.inf, 1, np.nan, 7.5], "float32")
DIVISORS = np.array([-2, 2, np.inf, np.inf, -np.inf, -np.inf, 2, 2, 0, 2, -2], "float32")
ONES = np.ones(13, "float32")
MODELS = {
    "Attention": model_of(
        [node("Attention", ["x0", "x1", "x2"], ["y"])], ["y"],
        floats(2, 3, 5, 8), floats(2, 3, 7, 8), floats(2, 3, 7, 4),
    ),
    "Attention of heads": model_of(
        [
            node(
                "Attention", ["x0", "x1", "x2"], ["y"], q_num_heads=3, kv_num_heads=3, is_causal=1
            )
        ],
        ["y"], floats(2, 5, 24), floats(2, 5, 24), floats(2, 5, 12),
    ),
    "RMSNormalization": model_of(
        [node("RMSNormalization", ["x0", "w"], ["y"])], ["y"], floats(3, 13), w=2 * ONES
    ),
    "LayerNormalization and what it knows": model_of(
        [node("LayerNormalization", ["x0", "w", "w"], ["y", "mean", "inverse"])],
        ["y", "mean", "inverse"], floats(3, 13), w=2 * ONES, opset=17,
    ),
    "a function of the file": model_of(
        [
            node("Halved", ["x0"], ["h"], domain="own"),
            node("Halved", ["h"], ["y"], domain="own"),
        ],
        ["y"], floats(3, 5), functions=[HALVED],
    ),
    "Mod by C's rule": model_of(
        [node("Mod", ["x0", "x1"], ["y"], fmod=1)], ["y"], ODD, DIVISORS, opset=13
    ),
    "infinite above": model_of(
        [
            node("IsInf", ["x0"], ["b"], detect_negative=0),
            node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
        ],
        ["y"], ODD, opset=20,
    ),
    "infinite below": model_of(
        [
            node("IsInf", ["x0"], ["b"], detect_positive=0),
            node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
        ],
        ["y"], ODD, opset=20,
    ),
    "BitShift": model_of(
        [node("BitShift", ["x0", "x1"], ["y"], direction="RIGHT")], ["y"],
        np.array([200, 255, 1, 77], "uint8"), np.array([1, 7, 0, 3], "uint8"), opset=11,
    ),
    "SpaceToDepth": model_of(
        [node("SpaceToDepth", ["x0"], ["y"], blocksize=2)], ["y"], floats(1, 3, 4, 6), opset=13
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("functions")
    return compile_files({name: model for name, (model, _) in MODELS.items()}, folder)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_the_original_is(compiled: dict[str, Any], name: str) -> None:
    model, run = compiled[name]
    given = MODELS[name][1]
    for have, want in zip(run(given), model.reference(given), strict=True):
        assert have.shape == want.shape and have.dtype == want.dtype
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("direction", "expected"), [
    ("LEFT", [-16, 0, 0, 0]), ("RIGHT", [-4, 0, -1, -1]),
])  # fmt: skip
def test_shifts_of_signed_numbers(tmp_path: Path, direction: str, expected: list[int]) -> None:
    """Newer than ONNX Runtime: beyond their bits, only a sign stays, on the right."""
    numbers = np.array([-8, 4, -1, -7], "int32"), np.array([1, 33, 32, -1], "int32")
    newest = onnx.defs.onnx_opset_version()
    shift = node("BitShift", ["x0", "x1"], ["y"], direction=direction)
    model, given = model_of([shift], ["y"], *numbers, opset=newest)
    onnx.save(model, tmp_path / "model.onnx")
    (run,) = compile_together([import_model(tmp_path / "model.onnx")], tmp_path)
    assert run(given)[0].tolist() == expected


def test_python_s_remainder(tmp_path: Path) -> None:
    """Of floats, which ONNX Runtime refuses: its sign is the divisor's, whatever is infinite."""
    newest = onnx.defs.onnx_opset_version()
    model, given = model_of([node("Mod", ["x0", "x1"], ["y"])], ["y"], ODD, DIVISORS, opset=newest)
    onnx.save(model, tmp_path / "model.onnx")
    (run,) = compile_together([import_model(tmp_path / "model.onnx")], tmp_path)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(run(given)[0], np.mod(ODD, DIVISORS), rtol=1e-6)
