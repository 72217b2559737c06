"""Which tasks come first: every workload's likely winner, before the second of any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from stubs import TARGET, StubBench, stub_measuring
from support import log_of, record_of

from convtvm.kernels.task import Task
from convtvm.logs import records
from convtvm.logs.prediction import untuned_cost
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import resolve
from convtvm.problem.sources import read_source
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning.progress import LATE, TuningSummary
from convtvm.tuning.tuner import tune

# Of MobileNetV2: the 3x3 stem, then a depthwise and two pointwise layers.
NETWORK = read_source("mobilenet_v2")
WORKLOADS = NETWORK[:4]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> type[StubBench]:
    monkeypatch.setattr(records, "shipped_logs", list)
    return stub_measuring(monkeypatch)


def run(log: Path, seconds: float, workloads: Sequence[ConvWorkload] = WORKLOADS) -> TuningSummary:
    return tune(workloads, TARGET, trials=2, time_limit=seconds, log=log, confirm=False)


def firsts(log: Path) -> list[tuple[str, str]]:
    """(workload, algorithm) in the order of their first trials."""
    return list(dict.fromkeys((r.workload, r.algorithm) for r in records.load([log])[0]))


def cheapest(workload: ConvWorkload, summary: TuningSummary) -> str:
    """The algorithm of the least cost."""
    rivals = [p.task for p in summary.tasks if p.task.workload == workload]
    return min(rivals, key=untuned_cost).algorithm_name


def cost(summary: TuningSummary, key: tuple[str, str]) -> float:
    task = next(
        p.task for p in summary.tasks if (p.task.workload.key, p.task.algorithm_name) == key
    )
    return untuned_cost(task)


def test_every_likely_winner_before_any_second(bench: type[StubBench], tmp_path: Path) -> None:
    """Without any log, the algorithm of the least cost is the likely one."""
    log = tmp_path / "x.jsonl"
    summary = run(log, 1e9)
    order, count = firsts(log), len(WORKLOADS)
    assert {key for key, _ in order[:count]} == {w.key for w in WORKLOADS}
    expected = {w.key: cheapest(w, summary) for w in WORKLOADS}
    for key, name in order[:count]:
        found, least = (cost(summary, (key, n)) for n in (name, expected[key]))
        assert found == least
    for workload in WORKLOADS:  # and so on, second by second
        own = [cost(summary, k) for k in order if k[0] == workload.key]
        assert own == sorted(own)


def test_expensive_layers_come_first(bench: type[StubBench], tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    run(log, 1e9)
    costs = {w.key: w.multiplicity * w.flops for w in WORKLOADS}
    started = [costs[key] for key, _ in firsts(log)[: len(WORKLOADS)]]
    assert started == sorted(started, reverse=True)


def test_a_short_limit_serves_every_workload(bench: type[StubBench], tmp_path: Path) -> None:
    """One candidate each is enough for a time of every workload, and the warning counts what it was
    not enough for."""
    summary = run(tmp_path / "x.jsonl", len(WORKLOADS))
    assert summary.stopped == LATE and summary.measured == len(WORKLOADS)
    assert {p.task.workload for p in summary.tasks if p.best} == set(WORKLOADS)
    (warning,) = summary.warnings
    missing = len(summary.tasks) - len(WORKLOADS)
    assert f"{missing} of {len(summary.tasks)} tasks were never measured; the next" in warning


def test_a_shorter_one_says_who_got_nothing(bench: type[StubBench], tmp_path: Path) -> None:
    summary = run(tmp_path / "x.jsonl", len(WORKLOADS) - 1)
    (warning,) = summary.warnings
    assert warning.startswith("the time limit was spent on default decisions, nothing was searched")
    assert "1 workload has no time at all" in warning


def known(task: Task, seconds: float) -> TuningRecord:
    """The last point of its space, measured with two threads."""
    near = Task(task.workload, task.algorithm_name, resolve("avx2", 2), task.layout)
    return record_of(near, seconds, decisions=near.space.points[-1])


def test_the_log_names_the_likely_winner(bench: type[StubBench], tmp_path: Path) -> None:
    """What won with another number of threads is tried first, its decisions after the default; and
    a limit that only sufficed for these says so."""
    workload = ConvWorkload.parse("mb1ic16ih14oc16oh14kh3ph1")
    names = ("im2col", "direct", "winograd:2", "winograd:4")
    tasks = {name: Task(workload, name, TARGET) for name in names}
    made = [known(task, 1e-3 * (1 + i)) for i, task in enumerate(tasks.values())]
    log = log_of(tmp_path / "x.jsonl", *made)
    summary = run(log, 2, [workload])
    new = records.load([log])[0][len(made) :]
    assert [r.algorithm for r in new] == ["im2col", "im2col"]
    assert [r.decisions for r in new] == [
        tasks["im2col"].space.default,
        tasks["im2col"].space.points[-1],
    ]
    (warning,) = summary.warnings
    assert "spent on default decisions and on what the log suggests; " in warning
    assert " tasks were never measured" in warning
    run(log, 1e9, [workload])
    order = dict.fromkeys(r.algorithm for r in records.load([log])[0][len(made) :])
    assert [name for name in order if name in names] == list(names)


def test_known_failures_come_last(bench: type[StubBench], tmp_path: Path) -> None:
    """A default that failed with another number of threads is not the likely winner."""
    workload = ConvWorkload.parse("mb1ic16ih14oc16oh14kh3ph1")
    favourite = cheapest(workload, run(tmp_path / "none.jsonl", 0, [workload]))
    task = Task(workload, favourite, TARGET)
    log = log_of(tmp_path / "x.jsonl", record_of(task, None))
    run(log, 1e9, [workload])
    assert firsts(log)[1][1] != favourite  # the first line is the old failure
