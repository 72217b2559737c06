"""Leave one machine out: whose decisions are taken, which of them were timed, what they lose."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import log_of, record_of

from convtvm.kernels.task import Task
from convtvm.logs.records import TuningRecord
from convtvm.machine import cpu
from convtvm.machine.targets import resolve
from convtvm.problem.workload import ConvWorkload

FOLDER = Path(__file__).resolve().parents[1] / "scripts" / "figures"
AVX2, NATIVE = resolve("avx2", 1), resolve("native", 1)
W = ConvWorkload.parse("mb1ic8ih6oc8oh6kh3ph1")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("leave_one_machine_out")


def made(task: Task, device: str, seconds: float, point: int) -> TuningRecord:
    decisions = task.space.points[point]
    return replace(record_of(task, seconds, decisions=decisions), device=device)


def test_decisions_of_others_by_the_machines_own_times(script: ModuleType) -> None:
    """The other machine prefers a point that this one found half as fast as its best."""
    direct, winograd = Task(W, "direct", AVX2), Task(W, "winograd:2", AVX2)
    ours = [
        made(direct, "A", 1.0, 0),
        made(direct, "A", 2.0, 1),
        made(winograd, "A", 3.0, 0),
    ]
    theirs = [made(direct, "B", 5.0, 1), made(winograd, "B", 4.0, 2)]
    table = script.left_out([*ours, *theirs], script.Setting.of(ours[0]))
    assert list(table) == ["direct", "winograd:2", "choice"]
    assert table["direct"] == script.Line(tasks=1, decided=1, ratios=[2.0])
    assert table["winograd:2"] == script.Line(tasks=1, decided=1, ratios=[])  # never timed here
    assert table["choice"] == script.Line(tasks=1, decided=1, ratios=[3.0])
    assert table["direct"].summary()["loss"] == pytest.approx(1.0)
    other_way = script.left_out([*ours, *theirs], script.Setting.of(theirs[0]))
    assert other_way["direct"] == script.Line(tasks=1, decided=1, ratios=[])
    assert other_way["choice"].ratios == [5.0 / 4.0]
    alone = script.left_out([*ours, *theirs], script.Setting.of(ours[0]), alone=True)
    assert [line.decided for line in alone.values()] == [0, 0, 0]


def test_a_machine_never_helps_itself(script: ModuleType) -> None:
    """Records of its other numbers of threads stay out too; then defaults are all there is."""
    two = Task(W, "direct", resolve("avx2", 2))
    ours = [made(Task(W, "direct", AVX2), "A", 1.0, 3), made(two, "A", 1.0, 3)]
    table = script.left_out(ours, script.Setting.of(ours[0]))
    assert table["direct"].tasks == 1 and table["direct"].decided == 0


def test_measured_on_this_machine(script: ModuleType, tmp_path: Path, capsys: Any) -> None:
    """Tuned decisions beside those of another machine; the same kernel loses exactly nothing."""
    here = cpu.device_name()
    direct, winograd = Task(W, "direct", NATIVE), Task(W, "winograd:2", NATIVE)
    log = log_of(
        tmp_path / "x.jsonl",
        made(direct, here, 1e-6, 0),
        made(winograd, here, 2e-6, 0),
        made(direct, "B", 1e-6, 0),
        made(winograd, "B", 2e-6, -1),
    )
    sheet = script.Sheet()
    script.figures(script.arguments().parse_args([str(log), "--measure", "--threads", "1"]), sheet)
    assert f"{here}, " in capsys.readouterr().out
    (transferred, default) = sheet.found["settings"]
    assert (transferred["rule"], default["rule"]) == ("transferred", "default")
    lines = transferred["lines"]
    assert lines["direct"]["ratios"] == lines["choice"]["ratios"] == [1.0]
    assert lines["direct"]["decided"] == lines["winograd:2"]["decided"] == 1
    assert default["lines"]["direct"]["decided"] == 0
    assert all(ratio > 0 for ratio in lines["winograd:2"]["ratios"])


def test_no_time_measures_nothing(script: ModuleType) -> None:
    record = made(Task(W, "direct", NATIVE), cpu.device_name(), 1e-6, 0)
    tables = script.measured([record], script.Setting.of(record), 0.0, 0, script.Sheet())
    assert tables == {"transferred": {}, "default": {}}
