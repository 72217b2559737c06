"""The operators of `model_cases`, alone and between two convolutions, against ONNX Runtime."""

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
from models import build_together, random_inputs  # noqa: E402

from convtvm.models.from_onnx import from_onnx  # noqa: E402
from convtvm.models.imported import Imported  # noqa: E402

PLACES = {"alone": alone, "between": between}
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class Built:
    """All cases, imported and built in one go when the first is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failures: dict[str, Exception] = {}

    def model(self, it: Case, place: str) -> Imported:
        path = self.folder / f"{CASES.index(it)} {place}.onnx"
        if not path.exists():
            onnx.save(PLACES[place](it), path)
        return from_onnx(path)

    @cache  # noqa: B019 - one object, as long as the tests
    def all(self) -> dict[str, tuple[Imported, Run]]:
        models = {}
        for it in CASES:
            for place in PLACES:
                try:
                    models[f"{it.name} {place}"] = self.model(it, place)
                except Exception as error:
                    self.failures[f"{it.name} {place}"] = error
        runs = build_together(list(models.values()), self.folder)
        return {key: (model, run) for (key, model), run in zip(models.items(), runs, strict=True)}

    def find(self, it: Case, place: str) -> tuple[Imported, Run]:
        found = self.all()
        if f"{it.name} {place}" in self.failures:
            raise self.failures[f"{it.name} {place}"]
        return found[f"{it.name} {place}"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("operators"))


def test_there_are_enough_cases() -> None:
    assert len({it.name for it in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("it", CASES, ids=str)
def test_operator(built: Built, it: Case, place: str) -> None:
    model, run = built.find(it, place)
    inputs = random_inputs(model)
    expected, found = model.reference(inputs), run(inputs)
    assert len(found) == len(expected) == len(model.outputs)
    for port, want, have in zip(model.outputs, expected, found, strict=True):
        assert have.shape == want.shape == port.shape
        assert have.dtype == want.dtype == np.dtype(port.dtype)
        error = np.abs(have.astype("float64") - want).max(initial=0)
        assert error <= it.bound * max(1, np.abs(want).max(initial=0)), port.name
