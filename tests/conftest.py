"""What tests share: a cache and an emulated GPU in a run, a helper that builds in a file."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from convtvm.library.cache import VARIABLE
from convtvm.measure.client import Zygote


def pytest_configure(config: pytest.Config) -> None:
    """Folders that are empty at the start of a run and gone at its end, the same for every worker:
    these inherit the variables of the process that starts them."""
    if hasattr(config, "workerinput"):
        return
    shared = TemporaryDirectory(prefix="convtvm-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(shared.cleanup)
    os.environ["EMULATOR_SHARED"] = shared.name
    os.environ[VARIABLE] = str(Path(shared.name, "cache"))


class Helper:
    """In the place of the class Zygote where libraries are made: a helper that is kept, as long as
    the environment is the one it was started in and nobody else has it."""

    def __init__(self) -> None:
        self._kept: Zygote | None = None
        self._environment: dict[str, str] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, at_once: bool = True) -> Iterator[Zygote]:
        if not self._lock.acquire(blocking=False):
            with Zygote(at_once=at_once) as own:
                yield own
            return
        try:
            yield self._started()
        finally:
            self._tidy()
            self._lock.release()

    def _started(self) -> Zygote:
        environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        if self._kept is None or self._environment != environment:
            self.close()
            self._kept, self._environment = Zygote(at_once=False), environment
        return self._kept

    def _tidy(self) -> None:
        """As new to whoever is next."""
        for path in self._kept.folder.glob("*") if self._kept else ():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
        self._kept = None


@pytest.fixture(scope="module", autouse=True)
def helper_of_this_file() -> Iterator[None]:
    """Starting one takes longer than building most libraries."""
    helper = Helper()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("convtvm.library.build", "convtvm.models.compiling"):
            if name in sys.modules:
                patch.setattr(sys.modules[name], "Zygote", helper)
        yield
    helper.close()
