"""The last word on the best: who has to race again, and the race itself in an exported library."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from emulator import environment
from stubs import SMALL, TARGET
from support import record_of

from convtvm.kernels.task import Task
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import resolve
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import STOPPED, Limits, Outcome, RaceJob
from convtvm.measure.workbench import Trial
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning import confirm
from convtvm.tuning.progress import TaskProgress, winners

DIRECT, IM2COL = (Task(SMALL, name, TARGET) for name in ("direct", "im2col"))


def progress_of(task: Task, *seconds: float) -> TaskProgress:
    """A task whose first points took these seconds while tuning."""
    progress = TaskProgress(task, 64)
    for point, secs in zip(task.space.points, seconds, strict=False):
        progress.add(record_of(task, secs, decisions=point))
    return progress


def confirmed(record: TuningRecord, seconds: float, time: str = "1") -> TuningRecord:
    return replace(record, run_secs=[seconds], confirmed=True, time=time)


def doubted(*tasks: TaskProgress) -> set[tuple[str, float]]:
    """Algorithm and seconds of the candidates in doubt."""
    found = flat(confirm.doubtful(tasks))
    return {(p.task.algorithm_name, r.seconds) for p, r in found}


def flat(races: Sequence[confirm.Race]) -> list[confirm.Doubtful]:
    return [doubt for race in races for doubt in race.all]


# ---- who races -----------------------------------------------------------------------------------


def test_the_close_ones_of_all_algorithms_race() -> None:
    """Two of each task at most; the default besides."""
    direct, im2col = progress_of(DIRECT, 1.05, 1.0, 1.1, 1.5), progress_of(IM2COL, 1.15, 1.3)
    assert doubted(direct, im2col) == {("direct", 1.0), ("direct", 1.05), ("im2col", 1.15)}
    direct.add(record_of(DIRECT, 1.19))
    assert ("direct", 1.19) in doubted(direct, im2col)


def test_workloads_race_apart() -> None:
    other = Task(ConvWorkload.parse("mb1ic8ih7oc8oh7kh3ph1"), "direct", TARGET)
    fast, slow = progress_of(DIRECT, 1.0), progress_of(other, 5.0)
    assert doubted(fast, slow) == {("direct", 1.0), ("direct", 5.0)}


def test_no_doubt_is_left_after_a_race() -> None:
    direct, im2col = progress_of(DIRECT, 1.0, 1.3), progress_of(IM2COL, 1.1)
    for progress, record in flat(confirm.doubtful([direct, im2col])):
        progress.add(confirmed(record, record.seconds * 1.1))
    assert doubted(direct, im2col) == set()


def test_a_disappointing_winner_brings_the_next_into_the_race() -> None:
    """It took 1.0 while tuning and 1.5 in the library: whoever took 1.1 may be faster, and whoever
    took 1.4 may not. The winner runs again, beside its rival."""
    direct, im2col = progress_of(DIRECT, 1.0), progress_of(IM2COL, 1.4, 1.1)
    direct.add(confirmed(direct.best, 1.5))  # type: ignore[arg-type]
    assert doubted(direct, im2col) == {("im2col", 1.1), ("direct", 1.5)}


def test_a_new_favourite_races_with_the_confirmed() -> None:
    """Times of different days do not compare."""
    direct, im2col = progress_of(DIRECT, 1.0), progress_of(IM2COL, 1.3)
    direct.add(confirmed(direct.best, 1.02))  # type: ignore[arg-type]
    assert doubted(direct, im2col) == set()
    im2col.add(record_of(IM2COL, 0.9, decisions=IM2COL.space.points[-1]))
    assert doubted(direct, im2col) == {("im2col", 0.9), ("direct", 1.02)}


def test_failures_do_not_race() -> None:
    direct = progress_of(DIRECT, 1.0)
    direct.add(record_of(DIRECT, None, decisions=DIRECT.space.points[-1]))
    assert doubted(direct) == {("direct", 1.0)}
    assert confirm.doubtful([TaskProgress(IM2COL, 64)]) == []


def test_who_was_left_out_races_if_it_promised_more() -> None:
    """Time ended before it could; it is no favourite if the winner was faster while tuning."""
    direct, im2col = progress_of(DIRECT, 1.0), progress_of(IM2COL, 0.9)
    direct.add(confirmed(direct.best, 1.3))  # type: ignore[arg-type]
    assert ("im2col", 0.9) in doubted(direct, im2col)
    direct, im2col = progress_of(DIRECT, 1.0), progress_of(IM2COL, 1.05)
    direct.add(confirmed(direct.best, 1.1))  # type: ignore[arg-type]
    assert doubted(direct, im2col) == set()


# ---- who wins ------------------------------------------------------------------------------------


def won(*tasks: TaskProgress) -> tuple[str, float]:
    ((progress, record),) = winners(tasks).values()
    return progress.task.algorithm_name, record.seconds


def test_nobody_wins_without_a_race_if_there_was_one() -> None:
    """The case that was measured: a trial of 2.13 ms beside a race of 2.25, in which the others
    took 1.3 times as long as in their trials."""
    direct, im2col = progress_of(DIRECT, 1.74e-3), progress_of(IM2COL, 2.13e-3)
    assert won(direct, im2col) == ("direct", 1.74e-3)
    direct.add(confirmed(direct.best, 2.25e-3))  # type: ignore[arg-type]
    assert won(direct, im2col) == ("direct", 2.25e-3)
    im2col.add(record_of(IM2COL, 1.5e-3, decisions=IM2COL.space.points[-1]))
    assert won(direct, im2col) == ("direct", 2.25e-3)
    im2col.add(confirmed(im2col.best, 2.2e-3))  # type: ignore[arg-type]
    assert won(direct, im2col) == ("im2col", 2.2e-3)


def test_a_race_that_everybody_failed_is_none() -> None:
    direct, im2col = progress_of(DIRECT, 1.0), progress_of(IM2COL, 1.1)
    failed = replace(direct.best, run_secs=[], error={"kind": "crash"}, confirmed=True)  # type: ignore[type-var]
    direct.add(failed)
    assert won(direct, im2col) == ("im2col", 1.1)


# ---- how much time there is ----------------------------------------------------------------------

NETWORK = [ConvWorkload.parse(f'mb1ic8ih{n}oc8oh{n}kh3ph1n"*{n}"') for n in range(5, 13)]


class Hall:
    """A clock, and races that take time by it: `build` seconds a library, `each` a candidate.

    Raced times are 1.2 times those of trials.
    """

    def __init__(self, seconds: float, build: float = 0.5, each: float = 0.3) -> None:
        self.now, self.deadline, self.build, self.each = 100.0, 100.0 + seconds, build, each
        self.raced: list[list[tuple[ConvWorkload, float]]] = []

    def measure(
        self, found: Sequence[confirm.Doubtful], zygote: object, patience: float = 9.0
    ) -> Iterator[tuple[confirm.Doubtful, Trial]]:
        self.now += self.build
        self.raced.append([])
        races: dict[ConvWorkload, list[confirm.Doubtful]] = {}
        for p, record in found:
            races.setdefault(p.task.workload, []).append((p, record))
        for workload, race in races.items():
            self.now += min(self.each, patience) * len(race)
            for p, record in race:
                late = self.now > self.deadline
                if not late:
                    self.raced[-1].append((workload, record.seconds))
                secs = p.seconds_of(record, confirmed=False)
                yield (p, record), Trial(kind=STOPPED) if late else Trial([1.2 * secs], 1e-7, 0)


@pytest.fixture
def hall(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Hall, list[TaskProgress]]]:
    def hold(seconds: float, **costs: float) -> tuple[Hall, list[TaskProgress]]:
        made = Hall(seconds, **costs)
        monkeypatch.setattr(confirm, "_measure", made.measure)
        monkeypatch.setattr(confirm.time, "monotonic", lambda: made.now)
        tasks = [
            progress_of(Task(w, name, TARGET), *(w.ih * secs for secs in times))
            for w in NETWORK
            for name, times in (("direct", (1.0, 1.1, 1.18)), ("im2col", (1.05, 1.15)))
        ]
        for (p, record), trial in confirm.confirm(tasks, made):  # type: ignore[arg-type]
            if trial.kind != STOPPED:
                p.add(confirmed(record, trial.run_secs[0]))
        return made, tasks

    return hold


def test_with_time_everyone_races_once_in_one_library(hall: Any) -> None:
    made, tasks = hall(math.inf)
    assert [len(race) for race in made.raced] == [4 * len(NETWORK)]
    assert confirm.doubtful(tasks) == []


@pytest.mark.parametrize("seconds", [8.0, 10.0, 14.0, 20.0, 40.0])
def test_every_workload_races_before_any_does_twice(hall: Any, seconds: float) -> None:
    made, tasks = hall(seconds)
    in_order = [entry for race in made.raced for entry in race]
    first = [in_order.index(next(e for e in in_order if e[0] == w)) for w in NETWORK]
    seen: set[tuple[ConvWorkload, float]] = set()
    for place, entry in enumerate(in_order):
        raced_before = any(w == entry[0] and 1.2 * secs == entry[1] for w, secs in seen)
        assert not raced_before or place > max(first)
        seen.add(entry)
    for w in NETWORK:  # the two likeliest, whichever the algorithm
        assert {(w, w.ih * 1.0), (w, w.ih * 1.05)} <= seen
    assert made.now < 100 + seconds + 1
    for p, record in winners(tasks).values():
        assert record.confirmed and record.seconds == 1.2 * p.task.workload.ih


def test_the_heaviest_race_first_where_time_ends(hall: Any) -> None:
    """A workload that could not race has a winner by its trials; the others by their races."""
    made, tasks = hall(2.5, each=0.6)
    raced = {w for race in made.raced for w, _ in race}
    assert raced and raced == set(sorted(NETWORK, key=lambda w: -w.ih)[: len(raced)])
    assert len(raced) < len(NETWORK)
    for w, (_, record) in winners(tasks).items():
        assert record.confirmed == (w in raced)


# ---- the race ------------------------------------------------------------------------------------


class Sabotage(Zygote):
    """Its race jobs are changed on their way; `told` keeps how many took part in each."""

    tolerance: float | None = None
    crash_from = 99  # as many contestants together crash

    def __init__(self) -> None:
        super().__init__()
        self.told: list[int] = []

    def call(self, kind: str, jobs: Sequence[Any], limits: Limits) -> Iterator[tuple[int, Outcome]]:
        if kind == "run":
            self.told += [len(job.tolerances) for job in jobs]
            jobs = [self._changed(job) for job in jobs]
        for index, outcome in super().call(kind, jobs, limits):
            crashes = kind == "run" and len(jobs[index].tolerances) >= self.crash_from
            yield index, Outcome(None, "crash", "planted") if crashes else outcome

    def _changed(self, job: RaceJob) -> RaceJob:
        if self.tolerance is None:
            return job
        first = next(iter(job.tolerances))
        return replace(job, tolerances={**job.tolerances, first: self.tolerance})


@pytest.fixture(scope="module")
def one() -> Iterator[Sabotage]:
    with Sabotage() as made:
        yield made


@pytest.fixture
def zygote(one: Sabotage) -> Sabotage:
    """One helper for all, who has not been told anything yet."""
    one.told, one.tolerance, one.crash_from = [], Sabotage.tolerance, Sabotage.crash_from
    return one


def raced(zygote: Zygote) -> dict[str, Any]:
    """The trials of three candidates by two algorithms, by algorithm and seconds while tuning."""
    tasks = [progress_of(DIRECT, 1.0, 1.1), progress_of(IM2COL, 1.05)]
    found = confirm._measure(flat(confirm.doubtful(tasks)), zygote)
    return {f"{p.task.algorithm_name} {r.seconds}": trial for (p, r), trial in found}


def test_a_race_times_everyone(zygote: Sabotage) -> None:
    trials = raced(zygote)
    assert set(trials) == {"direct 1.0", "direct 1.1", "im2col 1.05"} and zygote.told == [3]
    for trial in trials.values():
        assert trial.kind == "" and 0 < trial.max_error < 1e-5
        assert len(trial.run_secs) >= 4 and all(0 < secs < 1 for secs in trial.run_secs)
    assert not list(zygote.folder.glob("*-exported.so"))


def test_a_wrong_answer_leaves_the_race_to_the_others(zygote: Sabotage) -> None:
    zygote.tolerance = 0.0
    trials = raced(zygote)
    assert trials["direct 1.0"].kind == "wrong_answer" and not trials["direct 1.0"].run_secs
    assert trials["direct 1.1"].run_secs and trials["im2col 1.05"].run_secs


def test_after_a_crash_everyone_runs_alone(zygote: Sabotage) -> None:
    """Whoever crashes then has crashed by itself."""
    zygote.crash_from = 2
    trials = raced(zygote)
    assert zygote.told == [3, 1, 1, 1]
    assert {trial.kind for trial in trials.values()} == {""} and len(trials) == 3
    zygote.crash_from = 1
    assert {trial.kind for trial in raced(zygote).values()} == {"crash"}


@pytest.mark.emulated
def test_a_race_on_a_gpu() -> None:
    """By the device's clock, in the exported library, float16 too; who errs leaves it to the
    others."""
    gpu, half = resolve("cuda:sm_90"), replace(SMALL, dtype="float16")
    tasks = [
        progress_of(Task(SMALL, "direct", gpu), 1.0, 1.1),
        progress_of(Task(SMALL, "im2col", gpu), 1.05),
        progress_of(Task(half, "direct", gpu), 1.0),
    ]
    doubts = flat(confirm.doubtful(tasks))
    with patch.dict(os.environ, environment()), Sabotage() as zygote:
        right = list(confirm._measure(doubts, zygote))
        zygote.tolerance = 0.0
        wrong = list(confirm._measure(doubts[:3], zygote))
    assert zygote.told == [3, 1, 3] and len(right) == 4
    for (p, _), trial in right:
        assert trial.kind == "" and not trial.disturbed and len(trial.run_secs) == confirm._SAMPLES
        assert 0 < trial.max_error < (1e-5 if p.task.workload == SMALL else 1e-3)
    assert [trial.kind for _, trial in wrong] == ["wrong_answer", "", ""]


def test_gpus_race_too() -> None:
    """What a call takes on the host is not in their times: an error of 10 us would hide all."""
    gpu = resolve("cuda:sm_90")
    direct = progress_of(Task(SMALL, "direct", gpu), 7e-6)
    im2col = progress_of(Task(SMALL, "im2col", gpu), 8.8e-6)
    assert doubted(direct, im2col) == {("direct", 7e-6)}
    direct.add(confirmed(direct.best, 1.2e-5))  # type: ignore[arg-type]
    assert doubted(direct, im2col) == {("im2col", 8.8e-6), ("direct", 1.2e-5)}
