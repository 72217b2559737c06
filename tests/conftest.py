"""What tests share in a run: a cache, an emulated GPU, helpers that build."""

from __future__ import annotations

import gc
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from convtvm.library.cache import VARIABLE
from convtvm.measure import client, remote
from convtvm.measure.client import Zygote

# The same examples in every run, however long one takes: what they find is found by the change that
# brings it. `--hypothesis-profile default` draws others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")

# Before other modules take them from there: what works is not given up on a slow or busy machine.
client.BUILD_SECONDS = client.RUN_SECONDS = remote.CONNECT_SECONDS = 300.0


def pytest_configure(config: pytest.Config) -> None:
    """Folders that are empty at the start of a run and gone at its end, the same for every worker:
    these inherit the variables of the process that starts them."""
    if hasattr(config, "workerinput"):
        return
    shared = TemporaryDirectory(prefix="convtvm-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(shared.cleanup)
    os.environ["EMULATOR_SHARED"] = shared.name
    os.environ[VARIABLE] = str(Path(shared.name, "cache"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported stays: whoever collects garbage need not look at a million objects of TVM
    and PyTorch each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Random numbers without a seed are the same in every run too, whatever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


# Files that take longest, or have few tests for their time: begun last, one would keep a core busy
# while the others have nothing left.
LONGEST = ("torch_random", "torch", "templates", "documents", "torch_inductor", "cuda", "shapes")
LONGEST += ("model_operators", "torch_threads", "tensor_cores", "environment", "gpu_runner")
LONGEST += ("deployment", "model_graph", "model_cli", "import_quantized", "zygote", "inplace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These first, in this order, all others as they were."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


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


# Variables that no helper reads.
NO_MATTER = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", VARIABLE)


def _tidy(folder: Path) -> None:
    """As new to whoever is next."""
    for path in folder.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.fixture(scope="session")
def helpers_of_all() -> Iterator[Helpers]:
    made = Helpers()
    yield made
    made.close()


# The modules, of the product and of tests, that make libraries.
MAKERS = ("convtvm.library.build", "convtvm.models.compiling")
MAKERS += ("models", "programs", "test_model_cli", "test_model_library")


@pytest.fixture(scope="module", autouse=True)
def shared_helpers(helpers_of_all: Helpers) -> Iterator[None]:
    """Starting one takes longer than building most libraries."""
    with pytest.MonkeyPatch.context() as patch:
        for name in MAKERS:
            if name in sys.modules:
                patch.setattr(sys.modules[name], "Zygote", helpers_of_all)
        yield
