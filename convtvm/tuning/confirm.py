"""The last word on the best candidates: measured in one exported library, through plans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from convtvm import build
from convtvm.choices import Choice
from convtvm.measure.client import RUN_SECONDS, Zygote
from convtvm.measure.jobs import Limits, RunJob
from convtvm.measure.workbench import Trial, trial_of, write_problem
from convtvm.records import TuningRecord
from convtvm.task import Task
from convtvm.tuning.progress import CALL_SECONDS, TaskProgress
from convtvm.workload import ConvWorkload

CLOSE = 1.1  # times the workload's best: candidates that may turn out to be faster
_DISAPPOINTING = 1.25  # times its time while tuning, without the call: others may be faster
_EACH = 2  # of a task at once
_ROUNDS = 3

Doubtful = tuple[TaskProgress, TuningRecord]


def doubtful(tasks: Sequence[TaskProgress]) -> list[Doubtful]:
    """The fastest candidates of each workload whose times were not confirmed yet; empty once every
    workload's best is, and no other could be faster than it turned out to be."""
    leaders: dict[ConvWorkload, TaskProgress] = {}
    for p in tasks:
        other = leaders.get(p.task.workload)
        if p.best and (other is None or other.best is None or p.best.seconds < other.best.seconds):
            leaders[p.task.workload] = p
    limits = {workload: _limit(leader) for workload, leader in leaders.items()}
    return [
        (p, record)
        for p in tasks
        for rank, record in enumerate(p.unconfirmed(limits.get(p.task.workload, 0.0)))
        if rank < _EACH or record == p.default  # never slower than untuned
    ]


def _limit(leader: TaskProgress) -> float:
    """Seconds, as taken while tuning, of the candidates that might be the fastest; 0 for none."""
    assert leader.best is not None
    if not leader.best.confirmed:
        return CLOSE * leader.best.seconds
    seconds = (leader.best.seconds - CALL_SECONDS) / _DISAPPOINTING
    return seconds if leader.drift and seconds > leader.drift[0] else 0.0


def confirm(tasks: Sequence[TaskProgress], zygote: Zygote) -> Iterator[tuple[Doubtful, Trial]]:
    """Measure doubtful candidates until none is left, a few times at most.

    The caller adds each trial to its task. On a GPU there are none: trials there are timed by the
    device's own clock, which a plan does not change. Raises BuildError if the library cannot be
    made.
    """
    tasks = [p for p in tasks if p.task.target.kind == "cpu"]
    for _ in range(_ROUNDS):
        found = doubtful(tasks)
        if not found:
            return
        yield from _measure(found, zygote)


def _measure(found: Sequence[Doubtful], zygote: Zygote) -> Iterator[tuple[Doubtful, Trial]]:
    choices = [Choice(p.task, record) for p, record in found]
    names = {p.task.workload: "" for p, _ in found}
    content, _ = build.assemble(choices, names, zygote)
    path = zygote.fresh_path("-exported.so")
    path.write_bytes(content)
    jobs = [_job(path, index, choice.task, zygote) for index, choice in enumerate(choices)]
    limits = Limits(
        threads=choices[0].task.target.threads, timeout=RUN_SECONDS, samples=9, patience=1.0
    )
    for index, outcome in zygote.call("run", jobs, limits):
        yield found[index], trial_of(outcome, found[index][1].workspace_bytes)
    path.unlink(missing_ok=True)


def _job(path: Path, index: int, task: Task, zygote: Zygote) -> RunJob:
    inputs = str(write_problem(task.workload, task.layout, zygote))
    function = build.function_name(index, task)
    return RunJob(str(path), "", (), inputs, task.tolerance, function)
