"""The search: what is proposed and in which order, on synthetic times that need no kernel."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stubs import (
    LARGE,
    SMALL,
    TARGET,
    Decisions,
    Point,
    StubBench,
    point,
    stub_measuring,
    synthetic_seconds,
)
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.runner import RunnerResult

from convtvm.errors import ConvtvmError, LogError, WorkloadError
from convtvm.kernels.task import Task, annotate_knobs, carrier_module, decisions_of
from convtvm.logs import records
from convtvm.logs.records import LogWriter, TuningRecord
from convtvm.machine.targets import resolve
from convtvm.measure.workbench import Trial
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning import budget, search
from convtvm.tuning.progress import TaskProgress, TuningSummary
from convtvm.tuning.search import TaskSearch, candidate, make_context
from convtvm.tuning.speed import KnobCostModel, SpeedModel, workload_features
from convtvm.tuning.tuner import tune


def large() -> Task:
    return Task(LARGE, "direct", TARGET)


def small() -> Task:
    return Task(SMALL, "direct", TARGET)


def rank(task: Task, decisions: Decisions) -> int:
    """How many points are faster."""
    seconds = synthetic_seconds(task, decisions)
    return sum(synthetic_seconds(task, p) < seconds for p in task.space.points)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> type[StubBench]:
    return stub_measuring(monkeypatch)


def search_of(task: Task, old: Sequence[TuningRecord] = (), seed: int = 0) -> TaskSearch:
    return TaskSearch(task, SpeedModel(), None, old, seed)  # type: ignore[arg-type]


def record(task: Task, decisions: Decisions, secs: float | None = None) -> TuningRecord:
    """A trial of earlier; it failed for seconds of infinity."""
    secs = synthetic_seconds(task, decisions) if secs is None else secs
    failed = math.isinf(secs)
    return TuningRecord(
        *task.key,
        device="a CPU",
        decisions=decisions,
        template=task.template_version,
        run_secs=[] if failed else [secs],
        error={"kind": "crash", "message": "planted"} if failed else {},
    )


def batches(searching: TaskSearch, count: int, size: int = 16) -> list[list[Point]]:
    """The points of `count` batches, or of all until one is empty."""
    found = []
    for _ in range(count):
        found.append([point(decisions) for decisions, _ in searching.batch(size)])
        if not found[-1]:
            break
    return found


def flat(lists: list[list[Point]]) -> list[Point]:
    return [p for points in lists for p in points]


# ---- candidates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["direct", "winograd:2", "winograd:4"])
def test_candidate_carries_decisions(name: str) -> None:
    task = Task(LARGE, name, TARGET)
    for decisions in task.space.points[:: len(task.space.points) // 5]:
        assert decisions_of(candidate(task.space, decisions).sch.mod) == decisions


def test_sampled_candidate_takes_values_of_its_knobs() -> None:
    space = large().space
    schedule = annotate_knobs(Schedule(carrier_module(), seed=3), space)
    decisions = decisions_of(schedule.mod)
    assert list(decisions) == list(space.knobs)
    assert all(decisions[name] in values for name, values in space.knobs.items())


# ---- the cost model ------------------------------------------------------------------------------


def taught(task: Task, count: int, model: SpeedModel | None = None) -> SpeedModel:
    """A model that has seen about `count` points, evenly spread."""
    model = model or SpeedModel()
    points = task.space.points[:: max(1, len(task.space.points) // count)]
    model.learn(task, [(p, synthetic_seconds(task, p)) for p in points])
    return model


def top(model: SpeedModel, task: Task, count: int) -> list[Decisions]:
    scores = model.score(task, task.space.points)
    assert scores.shape == (len(task.space.points),)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [task.space.points[i] for i in order[:count]]


def test_model_learns() -> None:
    task = large()
    best = min(rank(task, p) for p in top(taught(task, 60), task, 16))
    assert best < 0.02 * len(task.space.points)


def test_model_learns_from_another_shape() -> None:
    """One model for all tasks of a template; times are relative to each task's best."""
    task, other = large(), Task(ConvWorkload.parse("mb1ic64ih28oc64oh28kh3ph1"), "direct", TARGET)
    best = min(rank(task, p) for p in top(taught(other, 100), task, 16))
    assert best < 0.1 * len(task.space.points)


def test_model_learns_that_estimates_are_right() -> None:
    """For layers of any size, whose estimates lie elsewhere: relative to the task's least."""
    small_ones = [ConvWorkload.make(ic, oc, 14, kh=1) for ic, oc in ((32, 64), (64, 32), (64, 64))]
    model, target = SpeedModel(), resolve("cuda:sm_90")
    for w in small_ones:
        task = Task(w, "direct", target)
        some = sorted(task.space.points, key=task.space.estimate)[::20]
        model.learn(task, [(p, task.space.estimate(p)) for p in some])
    new = Task(ConvWorkload.make(512, 512, 28, kh=3, padding=1, n=8), "direct", target)
    points = sorted(new.space.points, key=new.space.estimate)[::20]
    places = np.argsort(np.argsort(-model.score(new, points)))
    assert np.corrcoef(places, np.arange(len(points)))[0, 1] > 0.9


def test_model_learns_what_fails() -> None:
    task, model = large(), SpeedModel()
    switch = next(name for name, values in task.space.knobs.items() if values == (0, 1))
    samples = [
        (p, math.inf if p[switch] else synthetic_seconds(task, p)) for p in task.space.points[::7]
    ]
    model.learn(task, samples)
    assert all(p[switch] == 0 for p in top(model, task, 16))


@pytest.mark.parametrize("secs", [[], [1e-3] * 7, [math.inf] * 20])
def test_model_believes_the_template_at_first(secs: list[float]) -> None:
    """With too few trials, or none that succeeded, the template's own estimate ranks."""
    task, model = large(), SpeedModel()
    model.learn(task, list(zip(task.space.points, secs, strict=False)))
    assert top(model, task, 1) == [task.space.default]


def test_model_learns_from_another_variant() -> None:
    """What is known of F(4) ranks the decisions of F(2)."""
    task, other = (Task(LARGE, f"winograd:{m}", TARGET) for m in (2, 4))
    best = min(rank(task, p) for p in top(taught(other, 100), task, 16))
    assert best < 0.1 * len(task.space.points)


def test_model_learns_nothing_from_single_trials() -> None:
    """The only trial of a task is its fastest: of however many tasks, it teaches nothing."""
    task, model = large(), SpeedModel()
    for size in range(8, 30, 2):
        other = Task(ConvWorkload.parse(f"mb1ic64ih{size}oc64oh{size}kh3ph1"), "direct", TARGET)
        model.learn(other, [(other.space.points[-1], 1e-3)])
    assert not model.is_warm
    assert top(model, task, 1) == [task.space.default]


def test_a_task_stands_where_others_saw_its_default() -> None:
    """Its only trial is its default, which was slow for another shape: much is to be gained."""
    model = taught(Task(ConvWorkload.parse("mb1ic64ih28oc64oh28kh3ph1"), "direct", TARGET), 100)
    scores = model.score(large(), large().space.points)
    gains = []
    for at in (int(scores.argmin()), int(scores.argmax())):
        search = TaskSearch(large(), model, None, [], 0)  # type: ignore[arg-type]
        search.known = {point(large().space.points[at]): 1e-3}
        gains.append(search.expected_gain(16, 1e-3))
    assert gains[0] > 1.5 * gains[1]


def test_model_is_reproducible() -> None:
    task = large()
    scores = [taught(task, 40).score(task, task.space.points).tolist() for _ in range(2)]
    assert scores[0] == scores[1]


def test_features_tell_shapes_apart() -> None:
    texts = ["mb1ic8ih6oc8kh3", "mb2ic8ih6oc8kh3", "g2mb1ic8ih6oc8kh3", "mb1ic8ih6oc8kh3ph1"]
    features = [tuple(workload_features(ConvWorkload.parse(t))) for t in texts]
    assert len(set(features)) == 4 and all(math.isfinite(f) for fs in features for f in fs)


def test_cost_model_of_metaschedule() -> None:
    task, speed = large(), SpeedModel()
    model = KnobCostModel(task, speed)
    points = task.space.points[:40]
    candidates = [candidate(task.space, p) for p in points]
    results = [RunnerResult([synthetic_seconds(task, p)], None) for p in points]
    context = make_context(task, speed, set(), 0)
    model.update(context, candidates, results)
    assert model.predict(context, candidates).tolist() == speed.score(task, points).tolist()
    for unsupported in (model.load, model.save):
        with pytest.raises(RuntimeError, match="tuning log"):
            unsupported("x")


# ---- enumeration ---------------------------------------------------------------------------------


def started_context(task: Task, known: set[Point], trials: int, batch: int) -> Any:
    context = make_context(task, SpeedModel(), known, 0)
    database = ms.database.MemoryDatabase()
    context.pre_tuning(trials, batch, None, database, KnobCostModel(task, SpeedModel()))
    return context


def proposals(context: Any) -> Iterator[list[Point]]:
    while (made := context.generate_measure_candidates()) is not None:
        points = [point(decisions_of(c.sch.mod)) for c in made]
        context.notify_runner_results(made, [RunnerResult([1e-3], None)] * len(made))
        yield points


def test_every_point_is_proposed_once() -> None:
    task = small()
    every = [point(p) for p in task.space.points]
    context = started_context(task, set(every[:10]), 1000, 16)
    found = list(proposals(context))
    assert sorted(flat(found)) == sorted(every[10:])
    assert {len(points) for points in found[:-1]} == {16}
    assert context.generate_measure_candidates() is None


def test_proposals_stop_at_the_trials() -> None:
    found = list(proposals(started_context(small(), set(), 40, 16)))
    assert [len(points) for points in found] == [16, 16, 8]


def test_search_starts_with_the_default_and_ends(bench: type[StubBench]) -> None:
    task = small()
    found = batches(search_of(task), 100)
    assert found[0] == [point(task.space.default)] and found[-1] == []
    assert sorted(flat(found)) == sorted(point(p) for p in task.space.points)


def test_search_finds_the_fastest_soon(bench: type[StubBench]) -> None:
    task = large()
    fastest = min(synthetic_seconds(task, p) for p in task.space.points)
    found = flat(batches(search_of(task), 8))
    names = list(task.space.knobs)
    seconds = [synthetic_seconds(task, dict(zip(names, p, strict=True))) for p in found]
    assert min(seconds) == fastest and len(found) < 0.2 * len(task.space.points)


def test_same_seed_same_search(bench: type[StubBench]) -> None:
    runs = [batches(search_of(large(), seed=seed), 4) for seed in (7, 7, 8)]
    assert runs[0] == runs[1] != runs[2]


def test_search_resumes(bench: type[StubBench]) -> None:
    task = small()
    old = [record(task, p) for p in task.space.points[:30]]
    old[3] = record(task, old[3].decisions, math.inf)
    found = flat(batches(search_of(task, old), 100))
    assert sorted(found) == sorted(point(p) for p in task.space.points[30:])
    assert batches(search_of(task, [record(task, p) for p in task.space.points]), 1) == [[]]


# ---- evolution -----------------------------------------------------------------------------------


@pytest.fixture
def evolving(bench: type[StubBench], monkeypatch: pytest.MonkeyPatch) -> type[StubBench]:
    """As for a space that is too large to enumerate."""
    monkeypatch.setattr(search, "ENUMERATE_UP_TO", 0)
    return bench


def test_evolution_proposes_valid_decisions_once(evolving: type[StubBench]) -> None:
    task = large()
    found = flat(batches(search_of(task), 6))
    assert found[0] == point(task.space.default)
    assert len(set(found)) == len(found) >= 60
    names = list(task.space.knobs)
    assert all(task.space.contains(dict(zip(names, p, strict=True))) for p in found)


def test_evolution_finds_the_fastest_soon(evolving: type[StubBench]) -> None:
    task = large()
    fastest = min(synthetic_seconds(task, p) for p in task.space.points)
    names = list(task.space.knobs)
    found = flat(batches(search_of(task), 9))
    seconds = [synthetic_seconds(task, dict(zip(names, p, strict=True))) for p in found]
    assert min(seconds) <= fastest and len(found) < 0.25 * len(task.space.points)


def test_evolution_of_a_small_space_ends(evolving: type[StubBench]) -> None:
    found = batches(search_of(Task(SMALL, "winograd:2", TARGET)), 20)
    assert found[-1] == [] and len(set(flat(found))) == len(flat(found))


def test_evolution_resumes(evolving: type[StubBench]) -> None:
    task = large()
    names = list(task.space.knobs)
    earlier = flat(batches(search_of(task), 11))
    old = [record(task, dict(zip(names, p, strict=True))) for p in earlier]
    later = batches(search_of(task, old), 3)
    assert all(len(points) >= 8 for points in later)
    assert not set(flat(later)) & set(earlier)


# ---- tune ----------------------------------------------------------------------------------------


def tune_stub(log: Path, *workloads: ConvWorkload, **options: Any) -> TuningSummary:
    options = {"algorithms": ["direct"], "confirm": False, **options}
    return tune(workloads or [SMALL], TARGET, log=log, **options)


def in_log(log: Path) -> list[TuningRecord]:
    found, problems = records.load([log])
    assert problems == []
    return found


def test_tune_measures_the_default_first(bench: type[StubBench], tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    summary = tune_stub(log, SMALL, LARGE, trials=3, algorithms=["direct", "winograd:2"])
    # The larger workload has `direct:inplace` too.
    assert summary.measured == 15 and summary.reused == 0 and summary.stopped == ""
    firsts: dict[tuple[Any, ...], Decisions] = {}
    for made in in_log(log):
        firsts.setdefault(made.task_key, made.decisions)
    assert firsts == {p.task.key: p.task.space.default for p in summary.tasks}
    for progress in summary.tasks:
        assert progress.default and progress.best and progress.done == progress.trials == 3
        assert progress.best.seconds <= progress.default.seconds


def test_tune_resumes(bench: type[StubBench], tmp_path: Path) -> None:
    log, every = tmp_path / "x.jsonl", len(small().space.points)
    for trials, new in ((5, 5), (5, 0), (4, 0), (30, 25), (1000, every - 30), (1000, 0)):
        before = log.read_bytes() if log.exists() else b""
        summary = tune_stub(log, trials=trials)
        assert (summary.measured, summary.reused) == (new, before.count(b"\n"))
        assert log.read_bytes().startswith(before)
        assert len(in_log(log)) == summary.measured + summary.reused
        assert summary.tasks[0].best and summary.tasks[0].default
    assert Counter(bench.measured).most_common(1)[0][1] == 1
    assert len(bench.measured) == every


def test_failures_are_kept_and_not_tried_again(bench: type[StubBench], tmp_path: Path) -> None:
    log, task = tmp_path / "x.jsonl", small()
    default = point(task.space.default)
    others = [point(p) for p in task.space.points if point(p) != default][:20]
    bench.failures = {default: "wrong_answer", **dict.fromkeys(others, "crash")}
    summary = tune_stub(log, trials=1000)
    assert summary.failures == {"wrong_answer": 1, "crash": 20}
    assert summary.first_failures == {"wrong_answer": "planted", "crash": "planted"}
    failed = {point(r.decisions): r.error for r in in_log(log) if not r.run_secs}
    assert set(failed) == {default, *others}
    assert failed[default] == {"kind": "wrong_answer", "message": "planted"}
    (progress,) = summary.tasks
    assert progress.default and not progress.default.run_secs
    assert progress.best and progress.best.run_secs
    again = tune_stub(log, trials=1000)
    assert (again.measured, again.reused, again.failures) == (0, len(task.space.points), {})


def test_all_trials_fail(bench: type[StubBench], tmp_path: Path) -> None:
    bench.failures = {point(p): "crash" for p in small().space.points}
    summary = tune_stub(tmp_path / "x.jsonl", trials=1000)
    assert summary.measured == sum(summary.failures.values()) == len(small().space.points)
    assert summary.tasks[0].best is None


@pytest.mark.parametrize("after", [0, 1, 20])
def test_ctrl_c_keeps_what_is_finished(bench: type[StubBench], tmp_path: Path, after: int) -> None:
    bench.interrupt_after = after
    log = tmp_path / "x.jsonl"
    summary = tune_stub(log, trials=40)
    assert summary.stopped == "interrupted" and summary.measured == after == len(in_log(log))
    bench.interrupt_after = math.inf
    assert tune_stub(log, trials=40).measured == 40 - after


def test_foreign_and_stale_records_do_not_count(bench: type[StubBench], tmp_path: Path) -> None:
    log, task = tmp_path / "x.jsonl", small()
    foreign = json.loads(record(task, task.space.default).to_line())
    changes: list[dict[str, Any]] = [
        {"template": task.template_version + 1},
        {"threads": 2},
        {"layout": "NHWC"},
        {"target": "another"},
        {"decisions": {"tile_ow": 1}},
    ]
    lines = [json.dumps(foreign | change) for change in changes] + ["{torn"]
    log.write_text("\n".join(lines), encoding="utf8")
    summary = tune_stub(log, trials=2)
    assert (summary.measured, summary.reused) == (2, 0)
    assert [p.line for p in summary.problems] == [6]
    assert log.read_text("utf8").splitlines()[:6] == lines


def test_repeated_records_count_once(bench: type[StubBench], tmp_path: Path) -> None:
    """As after `cat` of logs with a common beginning."""
    log, task = tmp_path / "x.jsonl", small()
    writer = LogWriter(log)
    for _ in range(5):
        writer.append(record(task, task.space.default))
    writer.close()
    summary = tune_stub(log, trials=3)
    assert (summary.measured, summary.reused) == (2, 1)


def test_repeated_workloads_count_once(bench: type[StubBench], tmp_path: Path) -> None:
    named = ConvWorkload.parse(f'{SMALL.key}n"again*3"')
    summary = tune_stub(tmp_path / "x.jsonl", SMALL, named, trials=2)
    assert summary.measured == 2 and len(summary.tasks) == 1


def test_listener_sees_every_trial(bench: type[StubBench], tmp_path: Path) -> None:
    seen: list[tuple[int, int, TuningRecord | None]] = []

    def listener(summary: TuningSummary, progress: TaskProgress, made: TuningRecord | None) -> None:
        seen.append((summary.measured, progress.done, made))

    log = tmp_path / "x.jsonl"
    tune_stub(log, trials=20, listener=listener)
    assert [s[:2] for s in seen] == [(i, i) for i in range(1, 21)]
    assert [s[2] for s in seen] == in_log(log)


def test_time_limit(bench: type[StubBench], tmp_path: Path) -> None:
    summary = tune_stub(tmp_path / "x.jsonl", trials=1000, time_limit=0)
    assert summary.stopped == "time limit reached" and summary.measured == 0
    summary = tune_stub(tmp_path / "x.jsonl", trials=1000, time_limit=1e6)
    assert summary.stopped == "" and summary.measured == len(small().space.points)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_cheap_workloads_are_not_left_out(
    bench: type[StubBench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Nothing is to be saved on the second: only its floor brings it more than its defaults."""
    monkeypatch.setattr(budget, "_FLOOR", share)
    workloads = [replace(LARGE, multiplicity=1000), SMALL]
    names = ["direct", "im2col"]
    log = tmp_path / "x.jsonl"
    tune(workloads, TARGET, 1, names, trials=500, total_trials=80, log=log, confirm=False)
    done = Counter((workload, name) for (workload, name, *_), _ in bench.measured)
    most = max(count for (workload, _), count in done.items() if workload == SMALL.key)
    assert most >= share * 80 / 2 if share else most == 1


def test_hopeless_tasks_wait(
    bench: type[StubBench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An algorithm far behind the workload's best is tuned after the others."""
    task = Task(SMALL, "winograd:2", TARGET)

    def slow(self: StubBench, _: Decisions) -> Trial:
        return Trial([1.0 if self.task.key == task.key else 1e-3], 1e-7, 0)

    monkeypatch.setattr(bench, "trial", slow)
    log = tmp_path / "x.jsonl"
    tune_stub(log, trials=30, algorithms=["direct", "winograd:2"])
    rest = len(task.space.points) - 1
    # Each one's default, the one of the least cost first; then all of the fast one, then the
    # rest of the slow one.
    order = ["winograd:2", "direct"] + ["direct"] * 29 + ["winograd:2"] * rest
    assert [r.algorithm for r in in_log(log)] == order


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"trials": 0}, ConvtvmError, "trials is 0, expected a whole number of 1 or more"),
        ({"algorithms": ["dierct"]}, WorkloadError, "unknown algorithm 'dierct'"),
        ({"log": "nowhere/x.jsonl"}, LogError, "cannot write log"),
        ({"log": "."}, LogError, "cannot write log"),
    ],
)
def test_tune_refuses(
    bench: type[StubBench],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        tune([SMALL], TARGET, **{"log": "x.jsonl", **options})
    assert bench.measured == []
