"""Whole models become Relax functions in inference form, from PyTorch and from ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from models import build_together, operators, random_inputs, small_resnet  # noqa: E402

from convtvm.models.imported import Imported, Port  # noqa: E402
from convtvm.models.importing import import_model  # noqa: E402

EXAMPLE = torch.zeros(1, 3, 33, 31)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small.onnx"
    torch.onnx.export(
        small_resnet(), (EXAMPLE,), path, dynamo=False, do_constant_folding=False,
        input_names=["image"], output_names=["logits"],
    )  # fmt: skip
    return path


def assert_agrees(model: Imported, folder: Path, bound: float = 2e-6) -> None:
    """The module computes what the original computes, relative to the largest value."""
    inputs = random_inputs(model)
    (run,) = build_together([model], folder)
    expected, found = model.reference(inputs), run(inputs)
    assert len(expected) == len(found) == len(model.outputs)
    for port, want, have in zip(model.outputs, expected, found, strict=True):
        assert have.shape == want.shape == port.shape
        assert have.dtype == want.dtype == np.dtype(port.dtype)
        assert np.abs(have - want).max() <= bound * max(1, np.abs(want).max())


def test_a_module_comes_in_inference_form(tmp_path: Path) -> None:
    model = import_model(small_resnet(), EXAMPLE)
    assert model.name == "Sequential"
    assert [port.shape for port in model.inputs] == [(1, 3, 33, 31)]
    assert model.outputs == [Port("output_0", (1, 7), "float32")]
    found = operators(model.module)
    assert found["relax.nn.conv2d"] == 7 and found["relax.nn.batch_norm"] == 0
    assert found["relax.add"] == 7 + 2 + 1, "seven biases, two residual additions, the dense bias"
    assert_agrees(model, tmp_path)


def test_a_file_comes_in_inference_form(exported: Path, tmp_path: Path) -> None:
    model = import_model(exported)
    assert model.name == "small"
    assert model.inputs == [Port("image", (1, 3, 33, 31), "float32")]
    assert model.outputs == [Port("logits", (1, 7), "float32")]
    found = operators(model.module)
    assert found["relax.nn.conv2d"] == 7 and found["relax.nn.batch_norm"] == 0
    assert found["relax.add"] == 10
    assert_agrees(model, tmp_path)
