"""What pyproject.toml cannot say: a wheel and a source distribution know their commit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent


def _version():  # by its file: importing the package would need what is not installed yet
    spec = importlib.util.spec_from_file_location("version", ROOT / "convtvm" / "version.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _note_commit(folder: str) -> None:
    version = _version()
    found = version.commit()
    if found and Path(folder).is_dir():
        (Path(folder) / version.FILE).write_text(f"{found}\n", encoding="utf8")


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # an editable one is a checkout, which moves on
            _note_commit(str(Path(self.build_lib) / "convtvm"))


class Sdist(sdist):
    def make_release_tree(self, base_dir, files) -> None:
        super().make_release_tree(base_dir, files)
        _note_commit(str(Path(base_dir) / "convtvm"))


setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})
