"""The operators of `model_cases`, alone and between two convolutions, against ONNX Runtime.

Relax's default build tells whether they are imported right. Of each operator one case, and of those
that have loops of their own every one, is compiled as models are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")  # `models` has networks of its

from model_cases import CASES, Case, alone, between  # noqa: E402
from models import build_together, compile_together, random_inputs  # noqa: E402

from convtvm.models.from_onnx import from_onnx  # noqa: E402
from convtvm.models.imported import Imported  # noqa: E402

PLACES = {"alone": alone, "between": between, "compiled": between}
BUILDS = {"alone": build_together, "between": build_together, "compiled": compile_together}
OWN_LOOPS = {"TopK", "CumSum", "LSTM", "GRU", "RNN", "ScatterND", "ScatterElements"}
# Computed as others here are: one of a kind is enough.
ALIKE = {
    *("Neg", "Floor", "Ceil", "Round", "Sign", "Tanh", "Elu", "Selu", "Celu", "Softsign", "Min"),
    *("Sub", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceSumSquare", "ArgMin", "Flatten"),
    *("Squeeze", "Unsqueeze", "SpaceToDepth", "Identity", "Dropout", "Equal", "Reciprocal"),
}
FIRST = {it.operator: it for it in reversed(CASES) if it.operator not in ALIKE}.values()
COMPILED = [it for it in CASES if it in FIRST or it.operator in OWN_LOOPS]
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class Built:
    """All cases of a place, imported and built in one go when the first is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failures: dict[str, Exception] = {}

    def model(self, it: Case, place: str) -> Imported:
        path = self.folder / f"{CASES.index(it)} {place}.onnx"
        onnx.save(PLACES[place](it), path)
        return from_onnx(path)

    @cache  # noqa: B019 - one object, as long as the tests
    def all(self, place: str) -> dict[str, tuple[Imported, Run]]:
        models = {}
        for it in COMPILED if place == "compiled" else CASES:
            try:
                models[it.name] = self.model(it, place)
            except Exception as error:
                self.failures[f"{it.name} {place}"] = error
        apart = self.folder / place  # a second library of the same path would be the first one
        apart.mkdir()
        runs = BUILDS[place](list(models.values()), apart)
        return {key: (model, run) for (key, model), run in zip(models.items(), runs, strict=True)}

    def find(self, it: Case, place: str) -> tuple[Imported, Run]:
        found = self.all(place)
        if f"{it.name} {place}" in self.failures:
            raise self.failures[f"{it.name} {place}"]
        return found[it.name]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("operators"))


def test_there_are_enough_cases() -> None:
    assert len({it.name for it in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("it", CASES, ids=str)
@pytest.mark.parametrize("place", ["alone", "between"])
def test_import(built: Built, it: Case, place: str) -> None:
    check(built, it, place)


@pytest.mark.parametrize("it", COMPILED, ids=str)
def test_compiled(built: Built, it: Case) -> None:
    check(built, it, "compiled")


def check(built: Built, it: Case, place: str) -> None:
    """The outputs are ONNX Runtime's."""
    model, run = built.find(it, place)
    inputs = random_inputs(model)
    expected, found = model.reference(inputs), run(inputs)
    assert len(found) == len(expected) == len(model.outputs)
    for port, want, have in zip(model.outputs, expected, found, strict=True):
        assert have.shape == want.shape == port.shape
        assert have.dtype == want.dtype == np.dtype(port.dtype)
        error = np.abs(have.astype("float64") - want).max(initial=0)
        assert error <= it.bound * max(1, np.abs(want).max(initial=0)), port.name
