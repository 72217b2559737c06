"""What tests share in a run: a cache, an emulated GPU, helpers that build."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from convtvm.library.cache import VARIABLE

if TYPE_CHECKING:
    from helpers import Helpers


def pytest_configure(config: pytest.Config) -> None:
    """Folders that are empty at the start of a run and gone at its end, the same for every worker:
    these inherit the variables of the process that starts them."""
    if hasattr(config, "workerinput"):
        return
    shared = TemporaryDirectory(prefix="convtvm-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(shared.cleanup)
    os.environ["EMULATOR_SHARED"] = shared.name
    os.environ[VARIABLE] = str(Path(shared.name, "cache"))


@cache
def _settle(profile: str | None) -> None:
    from hypothesis import settings

    from convtvm.measure import client, remote

    client.BUILD_SECONDS = client.RUN_SECONDS = remote.CONNECT_SECONDS = 300.0
    settings.register_profile("same", derandomize=True, deadline=None)
    settings.load_profile(profile or "same")


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Before any test is imported, and not by the process that only hands out files, where TVM
    would be seconds for nothing. What works is not given up on a slow or busy machine; Hypothesis
    draws the same examples in every run, however long one takes, so that what they find is found by
    the change that brings it (`--hypothesis-profile default` draws others)."""
    _settle(collector.config.getoption("hypothesis_profile", None))


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


@pytest.fixture(scope="session")
def helpers_of_all() -> Iterator[Helpers]:
    from helpers import Helpers

    made = Helpers()
    yield made
    made.close()


# The modules, of the product and of tests, that make libraries.
MAKERS = ("convtvm.library.build", "convtvm.models.compiling")
MAKERS += ("models", "programs", "test_model_cli", "test_model_library")


@pytest.fixture(scope="module", autouse=True)
def shared_helpers(helpers_of_all: Helpers) -> Iterator[None]:
    """Starting one takes longer than building most libraries. And TorchDynamo does not time its own
    guards, which takes longer than compiling most graphs of tests."""
    with pytest.MonkeyPatch.context() as patch:
        if guards := sys.modules.get("torch._dynamo.guards"):
            patch.setattr(guards, "profile_guard_manager", lambda *_: 0.0, raising=False)
        for name in MAKERS:
            if name in sys.modules:
                patch.setattr(sys.modules[name], "Zygote", helpers_of_all)
        yield
