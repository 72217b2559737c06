"""What tests share in a run: a cache, an emulated GPU, helpers that build."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import warm

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
LONGEST = ("cuda", "torch", "templates", "torch_random", "documents", "torch_inductor", "shapes")
LONGEST += ("model_operators", "tuner", "accesses", "environment", "torch_ordinary", "gpu_bench")
LONGEST += ("torch_threads", "tensor_cores", "gpu_runner", "deployment", "model_graph", "model_cli")
LONGEST += ("import_quantized", "zygote", "inplace", "faults", "threads", "cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These first, in this order, all others as they were."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """A function to the socket of a server with TVM, convtvm and no PyTorch, from which helpers and
    commands of tests fork. It is started when it is first asked for; one for each LD_LIBRARY_PATH,
    which only a process that has just started looks at."""
    started: dict[str, str] = {}
    lock = Lock()
    with ExitStack() as stack:

        def server() -> str:
            from support import ROOT, without_torch

            libraries = os.environ.get(warm.LIBRARIES, "")
            with lock:
                if libraries not in started:
                    path = str(tmp_path_factory.mktemp("warm") / "socket")
                    stack.enter_context(
                        warm.serving(path, warm.HELPERS, environment=without_torch(ROOT))
                    )
                    started[libraries] = path
                return started[libraries]

        yield server


@pytest.fixture(scope="session")
def helpers_of_all(servers: Callable[[], str]) -> Iterator[Helpers]:
    """Ended before the servers that they forked from."""
    from helpers import Helpers

    made = Helpers()
    yield made
    made.close()


# The modules, of the product and of tests, that make libraries.
MAKERS = ("convtvm.library.build", "convtvm.models.compiling")
MAKERS += ("models", "programs", "test_model_cli", "test_model_library")


def fork_helpers(patch: pytest.MonkeyPatch, servers: Callable[[], str]) -> None:
    from convtvm.measure.client import Zygote

    patch.setattr(Zygote, "_spawn", lambda zygote: warm.helper(servers(), str(zygote.folder)))


# The tests of how helper processes start, die, and are told from others.
REAL_HELPERS = ("test_zygote", "test_tuner", "test_faults", "test_builders")


@pytest.fixture
def forked_helpers(monkeypatch: pytest.MonkeyPatch, servers: Callable[[], str]) -> None:
    """For those tests of these modules in which nothing depends on that."""
    fork_helpers(monkeypatch, servers)


@pytest.fixture(scope="module", autouse=True)
def shared_helpers(
    helpers_of_all: Helpers, servers: Callable[[], str], request: pytest.FixtureRequest
) -> Iterator[None]:
    """Starting one takes longer than building most libraries. And TorchDynamo does not time its own
    guards, which takes longer than compiling most graphs of tests."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ not in REAL_HELPERS:
            fork_helpers(patch, servers)
        if guards := sys.modules.get("torch._dynamo.guards"):
            patch.setattr(guards, "profile_guard_manager", lambda *_: 0.0, raising=False)
        for name in MAKERS:
            if name in sys.modules:
                patch.setattr(sys.modules[name], "Zygote", helpers_of_all)
        yield
