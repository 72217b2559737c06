"""Tuning without kernels: a workbench of synthetic times, and no helper process."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from tvm.s_tir.meta_schedule.runner import RunnerResult

from convtvm.kernels.task import Task, decisions_of
from convtvm.machine.targets import resolve
from convtvm.measure.workbench import Trial
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning import loop, search, tuner

TARGET = resolve("avx2", 1)
LARGE = ConvWorkload.parse("mb1ic64ih56oc64oh56kh3ph1")
SMALL = ConvWorkload.parse("mb1ic8ih6oc8oh6kh3ph1")

Decisions = Mapping[str, int]
Point = tuple[int, ...]


def point(decisions: Decisions) -> Point:
    return tuple(decisions.values())


def synthetic_seconds(task: Task, decisions: Decisions) -> float:
    """Fastest where every knob is in the middle of its values; the knobs matter by their ratio."""
    middle = {name: values[len(values) // 2] for name, values in task.space.knobs.items()}
    distance = sum(abs(math.log2((decisions[k] + 1) / (middle[k] + 1))) for k in middle)
    return 1e-3 * (1 + distance) * (LARGE.macs / task.workload.macs) ** -0.5


class StubBench:
    """In the place of the Workbench: synthetic times at once, except for what has to fail.

    Each test has a subclass of its own, see stub_measuring.
    """

    measured: list[tuple[tuple[Any, ...], Point]]
    failures: dict[Point, str]
    interrupt_after: float

    def __init__(self, task: Task, zygote: object) -> None:
        self.task = task

    def measure(self, candidates: Sequence[Any]) -> Iterator[tuple[RunnerResult, Trial]]:
        for made in candidates:
            decisions = decisions_of(made.sch.mod)
            if len(self.measured) >= self.interrupt_after:
                raise KeyboardInterrupt
            self.measured.append((self.task.key, point(decisions)))
            trial = self.trial(decisions)
            yield RunnerResult(trial.run_secs or None, trial.kind or None), trial

    def trial(self, decisions: Decisions) -> Trial:
        """What becomes of a candidate; tests may replace it."""
        kind = self.failures.get(point(decisions), "")
        if kind:
            return Trial(kind=kind, message="planted")
        return Trial([synthetic_seconds(self.task, decisions)], 1e-7, 4096)


class _NoHelper(contextlib.nullcontext):
    def start_ahead(self) -> None:
        pass


def stub_measuring(monkeypatch: pytest.MonkeyPatch) -> type[StubBench]:
    """Have `tune` use a stub, a subclass for the one test that asks.

    Only measuring moves its clock, by a second for each candidate: the budget weighs what is saved
    against what trials take, and the microseconds of a stub say nothing on a busy machine.
    """

    class Bench(StubBench):
        measured: list[tuple[tuple[Any, ...], Point]] = []  # noqa: RUF012
        failures: dict[Point, str] = {}  # noqa: RUF012
        interrupt_after = math.inf

    class Time:
        monotonic = staticmethod(lambda: float(len(Bench.measured)))

    for module in (tuner, loop):
        monkeypatch.setattr(module, "time", Time)
    monkeypatch.setattr(search, "Workbench", Bench)
    monkeypatch.setattr(tuner, "Zygote", lambda *_, **__: _NoHelper())
    monkeypatch.setattr(loop, "build_ahead", lambda benches, zygote: None)
    return Bench
