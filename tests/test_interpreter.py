"""Packages that no import may load, and what others see of that."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from convtvm.machine.interpreter import hidden, shown

ROOT = Path(__file__).resolve().parents[1]
NAME = "package_of_this_test"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One that is installed and not loaded."""
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "__init__.py").touch()
    (tmp_path / NAME / "part.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield NAME
    for name in [n for n in sys.modules if n.startswith(NAME)]:
        del sys.modules[name]


def loads(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name == NAME and str(error) == f"{NAME} is hidden"
        return False
    return True


def test_an_import_fails_and_leaves_nothing(package: str) -> None:
    with hidden(package):
        assert not loads(package) and not loads(f"{package}.part")
        assert not any(name.startswith(package) for name in sys.modules)
        assert find_spec(package), "it is installed all the same"
        assert find_spec("xml.dom") and loads("xml.dom.minicompat")
    assert loads(f"{package}.part")


def test_what_is_loaded_stays(package: str) -> None:
    assert loads(package)
    with hidden(package):
        assert loads(package) and loads(f"{package}.part")


def test_shown_again_in_the_middle_and_hidden_twice(package: str) -> None:
    with hidden(package):
        with hidden(package):
            assert not loads(package)
        assert not loads(package)
        with shown(package):
            assert find_spec(package).loader.get_filename(package)  # type: ignore[union-attr]
            with hidden(package):
                assert not loads(package)
        assert not loads(package)
        with pytest.raises(KeyError), shown(package):
            raise KeyError
        assert not loads(package)
        with shown(package):
            assert loads(package)


# As scipy does with what it finds under `torch`, when scikit-learn is imported, which xgboost
# imports where it is installed.
ASKS = """
import sys
if "torch" in sys.modules:
    sys.modules["torch"].Tensor
raise ImportError("asked")
"""
COMMAND = """
import sys
from convtvm.cli.output import without_torch
with without_torch():
    import xgboost
assert "torch" not in sys.modules
"""


def test_commands_without_torch_import_what_asks_for_its_tensor(tmp_path: Path) -> None:
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text(ASKS, encoding="utf8")
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", COMMAND],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
