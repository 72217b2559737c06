"""Helper processes that build libraries, kept for a run of tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from convtvm.library.cache import VARIABLE
from convtvm.measure.client import Zygote

# Variables that no helper reads.
NO_MATTER = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", VARIABLE)


class Helper(Zygote):
    """One that can unpickle what tests define."""

    def _spawn(self) -> subprocess.Popen[bytes]:
        path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
            return super()._spawn()


class Helpers:
    """In the place of the class Zygote where libraries are made: helpers that are kept for the run,
    one for each of the last two environments, as long as nobody else has one of them."""

    def __init__(self) -> None:
        self._kept: dict[frozenset[tuple[str, str]], Helper] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, at_once: bool = True) -> Iterator[Zygote]:
        if not self._lock.acquire(blocking=False):
            with Helper(at_once=at_once) as own:
                yield own
            return
        try:
            helper = self._found()
            try:
                yield helper
            finally:
                _tidy(helper.folder)
        finally:
            self._lock.release()

    def _found(self) -> Helper:
        """The one of this environment, as the last of those that are kept."""
        ours = frozenset((k, v) for k, v in os.environ.items() if k not in NO_MATTER)
        helper = self._kept.pop(ours, None) or Helper(at_once=False)
        self._kept[ours] = helper
        if len(self._kept) > 2:
            self._kept.pop(next(iter(self._kept))).close()
        return helper

    def close(self) -> None:
        for helper in self._kept.values():
            helper.close()


def _tidy(folder: Path) -> None:
    """As new to whoever is next."""
    for path in folder.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
