"""Rounds built ahead: in order, and nothing is left when a run ends in the middle."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import LONG, Planted, eventually

from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.measure.jobs import BuildJob
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning.builders import Builders
from convtvm.tuning.search import candidate

TASK = Task(ConvWorkload.parse("mb1ic8ih6oc8oh6kh3ph1"), "direct", resolve("native", 1))


class Owner:
    """Asks for one candidate, which does a deed while it is built."""

    def __init__(self, deed: str, path: Path) -> None:
        self.deed, self.path, self.outcomes = deed, str(path), {}
        self.builder = self.search = self
        self.bench = self

    def jobs(self, many: list[Any]) -> list[BuildJob]:
        return [BuildJob(Planted(self.deed, TASK), d, self.path) for d in many]  # type: ignore[arg-type]


def batch(deed: str, path: Path) -> Any:
    return Owner(deed, path), [candidate(TASK.space, TASK.space.default)]


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def helpers() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def test_rounds_come_back_in_order(tmp_path: Path) -> None:
    with Builders(math.inf) as builders:
        rounds = [
            [batch("nothing", tmp_path / f"{i}a.so"), batch("raise", tmp_path / f"{i}b.so")]
            for i in range(3)
        ]
        for each in rounds:
            assert builders.have_room
            builders.start(each)
        assert not builders.have_room
        for each in rounds:
            assert builders.finished() is each
            (good, _), (bad, _) = each
            assert Path(good.path).exists() and good.outcomes[good.path].kind == ""
            assert bad.outcomes[bad.path].kind == "instantiate"
        assert builders.have_room and not builders.waiting


@pytest.mark.parametrize("state", ["starting", "importing", "hanging"])
def test_an_end_in_the_middle_leaves_nothing(state: str, tmp_path: Path) -> None:
    """Whatever the helpers are about."""
    before, started = helpers(), time.monotonic()
    with pytest.raises(KeyboardInterrupt), Builders(math.inf) as builders:
        for i in range(3):
            builders.start([batch("hang", tmp_path / f"{i}.so")])
        if state == "importing":
            time.sleep(0.5)
        elif state == "hanging":  # two helpers, and what builds in each
            assert eventually(lambda: len(helpers() - before) == 4)
        raise KeyboardInterrupt
    assert time.monotonic() - started < LONG
    assert eventually(lambda: not helpers() - before)
