"""What a tuning run says while it goes on and when it ends, and why it ends, on synthetic times."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from stubs import LARGE, SMALL, TARGET, Decisions, StubBench, stub_measuring
from support import record_of

from convtvm.cli import main
from convtvm.cli.events import Events
from convtvm.cli.monitor import Monitor
from convtvm.kernels.task import Task
from convtvm.logs import records
from convtvm.measure.workbench import Trial
from convtvm.tuning import tuner
from convtvm.tuning.progress import LATE, TaskProgress, TuningSummary
from convtvm.tuning.tuner import tune

Timer = Callable[[str, Decisions], float]
SHORT = SMALL.key


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[StubBench]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(records, "shipped_logs", list)
    return stub_measuring(monkeypatch)


def timed_by(bench: type[StubBench], monkeypatch: pytest.MonkeyPatch, seconds: Timer) -> None:
    """Give every candidate these seconds by its algorithm and decisions."""

    def made(self: StubBench, decisions: Decisions) -> Trial:
        return Trial([seconds(self.task.algorithm_name, decisions)], 1e-7, 4096)

    monkeypatch.setattr(bench, "trial", made)


def cli(*args: str) -> int:
    return main(["tune", SHORT, "--target", "native", "--threads", "1", *args])


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf8").splitlines()]


# ---- events --------------------------------------------------------------------------------------


def test_events_are_strict_json(tmp_path: Path) -> None:
    told = Events(tmp_path / "e.jsonl")
    told.summary({"tasks": [{"secs": math.inf, "spent": {"race": math.nan}}], "seconds": 1.5})
    told.close()

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    found = json.loads((tmp_path / "e.jsonl").read_text("utf8"), parse_constant=refused)
    assert found["tasks"] == [{"secs": None, "spent": {"race": None}}] and found["seconds"] == 1.5


OF_ALL = {"event", "time"}
OF_TASK = OF_ALL | {"workload", "name", "algorithm", "trials"}
OF_TRIAL = OF_TASK | {
    *("decisions", "secs", "error", "best_secs", "default_secs", "done", "wanted", "eta_secs")
}


def confirmed_by_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Confirmed times are twice those while tuning."""

    def measure(found: Any, *_: object) -> Any:
        for doubtful in found:
            yield doubtful, Trial([2 * doubtful[1].seconds], 1e-7, 4096)

    monkeypatch.setattr(tuner.confirm, "_measure", measure)


def test_events(
    bench: type[StubBench], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    confirmed_by_stub(monkeypatch)
    task = Task(SMALL, "direct", tuner.resolve("native", 1))
    bench.failures = {tuple(p.values()): "crash" for p in task.space.points[:40:2]}
    options = ("--algorithms", "direct,winograd:2", "--trials", "20", "--events", "e.jsonl")
    assert cli(*options, "--quiet", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    events = lines("e.jsonl")
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_kind.setdefault(event["event"], []).append(event)
    assert set(by_kind) == {"trial", "confirmed", "ended", "summary"}
    trials = by_kind["trial"]
    assert {frozenset(e) for e in trials + by_kind["confirmed"]} == {frozenset(OF_TRIAL)}
    assert {frozenset(e) for e in by_kind["ended"]} == {frozenset(OF_TASK | {"reason"})}
    made, _ = records.load(["convtvm.jsonl"])
    told = trials + by_kind["confirmed"]
    assert [(e["algorithm"], e["decisions"]) for e in told] == [
        (r.algorithm, r.decisions) for r in made
    ]
    assert [e["secs"] for e in told] == [r.seconds if r.run_secs else None for r in made]
    assert [e["error"] for e in told] == [r.error for r in made]
    assert any(e["error"] == {"kind": "crash", "message": "planted"} for e in trials)
    assert [e["done"] for e in trials] == list(range(1, len(trials) + 1))
    assert all(e["wanted"] >= e["done"] for e in trials) and trials[-1]["eta_secs"] >= 0
    assert all(e["best_secs"] is None or e["best_secs"] > 0 for e in trials)
    assert {e["reason"] for e in by_kind["ended"]} == {"all its trials", "its whole space"}
    (last,) = by_kind["summary"]
    assert events[-1] == last and {k: v for k, v in last.items() if k not in OF_ALL} == document
    stamps = [e["time"] for e in events]
    assert stamps == sorted(stamps)


def test_documented_events_are_the_written_ones() -> None:
    page = (Path(__file__).parents[1] / "docs" / "events.md").read_text("utf8")
    missing = {
        name for name in OF_TRIAL | {"reason", "summary", "ended"} if f"`{name}`" not in page
    }
    assert not missing


def test_events_that_cannot_be_written_are_refused(
    bench: type[StubBench], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("--events", "nowhere/e.jsonl") == 2
    assert "cannot write events to nowhere/e.jsonl" in capsys.readouterr().err
    assert bench.measured == []


# ---- early ends ----------------------------------------------------------------------------------


def ends(summary: TuningSummary) -> dict[str, tuple[int, str]]:
    return {p.task.algorithm_name: (p.done, p.ended) for p in summary.tasks}


def test_min_gain_ends_what_promises_nothing(
    bench: type[StubBench], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the default is twice as fast as all others, the model soon expects no gain; without the
    option all trials are spent."""
    default = Task(SMALL, "direct", TARGET).space.default
    timed_by(bench, monkeypatch, lambda _, d: 1e-3 if d == default else 2e-3)
    found = {}
    for gain in (0.0, 5.0):
        options = {"algorithms": ["direct"], "trials": 60, "confirm": False, "min_gain": gain}
        summary = tune([SMALL], TARGET, log=tmp_path / f"{gain}.jsonl", **options)  # type: ignore[arg-type]
        found[gain] = ends(summary)["direct"]
        assert summary.stopped == ""
    assert found[0.0] == (60, "all its trials")
    done, why = found[5.0]
    assert 24 <= done < 60 and why.startswith("the model expects ") and why.endswith(" % more")


def test_hopeless_algorithms_are_dropped_and_named(
    bench: type[StubBench], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed_by(bench, monkeypatch, lambda name, _: 1e-2 if name == "direct" else 1e-3)
    options = ("--algorithms", "direct,im2col", "--trials", "50", "--no-confirm")
    assert cli(*options, "--events", "e.jsonl", "--json") == 0
    out, err = capsys.readouterr()
    tasks = {t["algorithm"]: t for t in json.loads(out)["tasks"]}
    done, reason = tasks["direct"]["trials"], "dropped: 10.00x the best, no hope to win"
    assert tasks["direct"]["ended"] == reason and 24 <= done < 50
    assert f"direct ends after {done} trials: {reason}" in err
    told = {e["algorithm"]: e["reason"] for e in lines("e.jsonl") if e["event"] == "ended"}
    assert told["direct"] == reason and told["im2col"] in ("all its trials", "its whole space")
    assert "im2col ends after" not in err  # it got what it wanted


# ---- a busy machine ------------------------------------------------------------------------------


def test_a_busy_machine_is_named(
    bench: type[StubBench], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def disturbed(self: StubBench, _: Decisions) -> Trial:
        return Trial([1e-3], 1e-7, 0, disturbed=len(bench.measured) <= 2)

    monkeypatch.setattr(bench, "trial", disturbed)
    assert cli("--algorithms", "direct", "--trials", "10", "--no-confirm", "--json") == 0
    out, err = capsys.readouterr()
    warning = "the machine was busy: 2 of 10 trials were never alone on their cores"
    assert json.loads(out)["disturbed"] == 2 and warning in err
    assert sum(r.disturbed for r in records.load(["convtvm.jsonl"])[0]) == 2


# ---- monitor and summary -------------------------------------------------------------------------


def watched(
    monkeypatch: pytest.MonkeyPatch, **limits: Any
) -> tuple[Monitor, TuningSummary, Callable[[float], str]]:
    """A monitor of two tasks of 8 trials; a function that adds a trial at a time of the clock and
    returns where the run stands."""
    tasks = [TaskProgress(Task(SMALL, name, TARGET), 8) for name in ("direct", "im2col")]
    summary = TuningSummary(tasks, Path("x.jsonl"), **limits)
    clock = {"now": 100.0}
    monkeypatch.setattr("convtvm.cli.monitor.time.monotonic", lambda: clock["now"])
    shown = Monitor({SMALL: "conv"})

    def add(seconds: float) -> str:
        clock["now"] = 100.0 + seconds
        progress = next((p for p in tasks if p.default is None), tasks[0])
        point = progress.task.space.points[progress.done]
        point = progress.task.space.default if progress.default is None else point
        record = record_of(progress.task, 1e-3, decisions=point)
        progress.add(record)
        summary.note(progress, record)
        shown(summary, progress, record)
        return shown.stand(summary)

    return shown, summary, add


def test_stand_counts_defaults_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, summary, add = watched(monkeypatch)
    assert add(10.0) == "defaults 1/2, 1/16, 2:30 left"
    assert add(20.0) == "2/16, 2:20 left"
    assert shown.eta(summary) == pytest.approx(140.0)
    summary.tasks[1].ended = "dropped: planted"  # its 7 trials are not wanted any more
    assert add(30.0).startswith("3/9, 1:00 left")


@pytest.mark.parametrize(
    ("limits", "left"), [({"time_limit": 25.0}, 15.0), ({"total_trials": 3}, 20.0)]
)
def test_limits_shorten_the_time_left(
    monkeypatch: pytest.MonkeyPatch, limits: Mapping[str, Any], left: float
) -> None:
    shown, summary, add = watched(monkeypatch, **limits)
    assert shown.eta(summary) is None if summary.tasks[0].done else True
    add(10.0)
    assert shown.eta(summary) == pytest.approx(left)


def test_closing_summary(
    bench: type[StubBench], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    confirmed_by_stub(monkeypatch)
    task = Task(SMALL, "direct", tuner.resolve("native", 1))
    others = [p for p in task.space.points if p != task.space.default]
    bench.failures = {tuple(p.values()): "crash" for p in others[::2]}
    assert cli("--algorithms", "direct", "--trials", "12") == 0
    out, err = capsys.readouterr()
    made, _ = records.load(["convtvm.jsonl"])
    failed = sum(bool(r.error) for r in made)
    confirmed = sum(r.confirmed for r in made)
    assert failed and f"{failed} failed by crash: planted\n" in out
    assert f"12 trials measured, {confirmed} confirmed, 0 reused, " in out
    assert "log: convtvm.jsonl" in out and "\ntime: start " in out and ", search " in out
    assert "x the best default" in out and "mb1ic8ih6oc8kh3ph1: direct " in out
    assert "12/12: best " in err and f"{failed} failed" in err
    assert "differ by over 15 % in the exported library" in err  # by the stub's factor of 2


# ---- a short time limit --------------------------------------------------------------------------


def limited(log: Path, seconds: float | None = None) -> TuningSummary:
    workloads = [SMALL, LARGE]
    return tune(workloads, TARGET, trials=3, time_limit=seconds, log=log, confirm=False)


def test_a_limit_within_the_defaults_says_so(bench: type[StubBench], tmp_path: Path) -> None:
    """All the more, the less there is to show for it."""
    summary = limited(tmp_path / "x.jsonl", 0)
    count = len(summary.tasks)
    assert summary.stopped == LATE and summary.warnings == [
        "the time limit was spent on default decisions, nothing was searched; "
        f"{count} of {count} tasks were never measured, 2 workloads have no time at all; "
        "the next run resumes"
    ]


def test_no_warning_once_defaults_are_done(bench: type[StubBench], tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    assert limited(log).warnings == []
    assert limited(log, 0).warnings == []
