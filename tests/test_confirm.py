"""The last word on the best: who has to race again, and the race itself in an exported library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from stubs import SMALL, TARGET
from support import record_of

from convtvm.kernels.task import Task
from convtvm.logs.records import TuningRecord
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import Limits, Outcome, RaceJob
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning import confirm
from convtvm.tuning.progress import TaskProgress

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
    return {(p.task.algorithm_name, r.seconds) for p, r in confirm.doubtful(tasks)}


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
    for progress, record in confirm.doubtful([direct, im2col]):
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


@pytest.fixture
def zygote() -> Iterator[Sabotage]:
    with Sabotage() as made:
        yield made


def raced(zygote: Zygote) -> dict[str, Any]:
    """The trials of three candidates by two algorithms, by algorithm and seconds while tuning."""
    tasks = [progress_of(DIRECT, 1.0, 1.1), progress_of(IM2COL, 1.05)]
    found = confirm._measure(confirm.doubtful(tasks), zygote)
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
