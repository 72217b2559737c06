"""Where a tuning run stands: task by task and in all, for listeners and for the summary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convtvm.kernels.task import Task
from convtvm.logs import records
from convtvm.logs.records import Standing, TuningRecord
from convtvm.problem.workload import ConvWorkload

LATE = "time limit reached"
CALL_SECONDS = 1e-5  # that a plan's call may take beside the kernel


@dataclass
class TaskProgress:
    """Where a task stands: trials wanted and done (earlier runs included), the best of them.
    `ended` says why it got no more trials than it has, empty if it may get some."""

    task: Task
    trials: int
    done: int = 0
    best: TuningRecord | None = None
    ended: str = ""
    seconds: float = 0.0  # spent on it in this run
    measured: int = 0  # in this run
    _raw: dict[tuple[Any, ...], TuningRecord] = field(default_factory=dict)
    _confirmed: dict[tuple[Any, ...], TuningRecord] = field(default_factory=dict)

    def add(self, record: TuningRecord) -> None:
        """Count a trial, or put a confirmed time in the place of the one taken while tuning."""
        (self._confirmed if record.confirmed else self._raw)[record.identity] = record
        self.done = len(self._raw.keys() | self._confirmed.keys())
        self.best = records.best(self.records)

    @property
    def default(self) -> TuningRecord | None:
        """The trial of the default decisions, which are looked for only when somebody asks."""
        if not self._raw:
            return None
        task = self.task
        identity = (*task.key, task.template_version, *sorted(task.space.default.items()))
        return self._raw.get(identity)

    @property
    def is_open(self) -> bool:
        """Whether it may get more trials by their number."""
        return self.done < self.trials

    @property
    def records(self) -> list[TuningRecord]:
        """Of every candidate the time while tuning, and the one confirmed if there is one."""
        return [*self._raw.values(), *self._confirmed.values()]

    def seconds_of(self, record: TuningRecord, confirmed: bool) -> float:
        """The candidate's seconds while tuning, or those confirmed; infinite if there are none."""
        found = (self._confirmed if confirmed else self._raw).get(record.identity)
        return math.inf if found is None else found.seconds

    @property
    def tuned_secs(self) -> float | None:
        """The fastest time while tuning, of whichever candidate."""
        done = [r.seconds for r in self._raw.values() if r.run_secs]
        return min(done, default=None)

    @property
    def drift(self) -> tuple[float, float] | None:
        """The best candidate's seconds while tuning and in the library, if both are known."""
        raw = None if self.best is None else self._raw.get(self.best.identity)
        if self.best is None or not self.best.confirmed or raw is None or not raw.run_secs:
            return None
        return raw.seconds, self.best.seconds

    def unconfirmed(self, within: float) -> list[TuningRecord]:
        """Candidates of up to `within` seconds whose time was never confirmed, fastest first."""
        waiting = [r for r in self._raw.values() if r.identity not in self._confirmed]
        found = [r for r in waiting if r.run_secs and r.seconds <= within]
        return sorted(found, key=lambda r: r.seconds)


@dataclass
class TuningSummary:
    """What a call of `tune` did. `spent` are seconds by what they were spent on."""

    tasks: list[TaskProgress]
    log: Path
    measured: int = 0
    searched: int = 0  # of those measured, the ones of other than default decisions
    reused: int = 0
    confirmed: int = 0
    disturbed: int = 0  # trials without an undisturbed sample
    restored: int = 0  # lines that the log had lost and got again
    time_limit: float | None = None  # seconds
    total_trials: int | None = None
    seconds: float = 0.0
    stopped: str = ""  # why it ended before all trials, empty if it did not
    failures: Counter[str] = field(default_factory=Counter)
    first_failures: dict[str, str] = field(default_factory=dict)
    problems: list[records.Problem] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)

    def note(self, progress: TaskProgress, record: TuningRecord) -> None:
        """Count a new trial or confirmation."""
        if record.confirmed:
            self.confirmed += 1
        else:
            self.measured += 1
            progress.measured += 1
            self.searched += dict(record.decisions) != progress.task.space.default
            self.disturbed += record.disturbed
        if record.error:
            kind = record.error["kind"]
            self.failures[kind] += 1
            self.first_failures.setdefault(kind, record.error["message"])

    @property
    def warnings(self) -> list[str]:
        """What makes the result less trustworthy than it looks."""
        found = []
        if self.restored:
            found.append(
                f"{self.log} was deleted or changed while tuning; what it lacked of this run, "
                f"{self.restored} records, was written again"
            )
        untried = any(not p.done for p in self.tasks)
        if self.stopped == LATE and (untried or (self.measured and not self.searched)):
            found.append(self._spent_on_defaults())
        if self.disturbed > 0.1 * self.measured:
            found.append(
                f"the machine was busy: {self.disturbed} of {self.measured} trials were never "
                "alone on their cores, and their times are too long; tune on a quiet machine"
            )
        drifts = {p.task: p.drift for p in self.tasks if p.drift and _differ(*p.drift)}
        if drifts:
            ratios = {task: after / before for task, (before, after) in drifts.items()}
            worst = max(ratios, key=lambda task: abs(math.log(ratios[task])))
            found.append(
                f"{len(drifts)} of {len(self.tasks)} best times differ by over 15 % in the "
                f"exported library, most {worst.workload} by {worst.algorithm_name}: "
                f"{ratios[worst]:.2f}x; the library's times count"
            )
        return found

    def _spent_on_defaults(self) -> str:
        """What a time limit that ended before any search has left undone."""
        text = "the time limit was spent on default decisions"
        text += " and on what the log suggests" if self.searched else ", nothing was searched"
        missing = sum(not p.done for p in self.tasks)
        if missing:
            text += f"; {missing} of {len(self.tasks)} tasks were never measured"
        empty = sum(math.isinf(secs) for secs in fastest(self.tasks).values())
        if empty:
            text += f", {empty} {'workloads have' if empty > 1 else 'workload has'} no time at all"
        return text + "; the next run resumes"


def _differ(before: float, after: float) -> bool:
    return abs(after - before) > CALL_SECONDS and not 1 / 1.15 <= after / before <= 1.15


Listener = Callable[[TuningSummary, TaskProgress, TuningRecord | None], None]


def winners(tasks: Iterable[TaskProgress]) -> dict[ConvWorkload, tuple[TaskProgress, TuningRecord]]:
    """The fastest candidate of each workload that has any, with its task: of those that raced if
    any did."""
    rivals: dict[ConvWorkload, list[TaskProgress]] = {}
    for p in tasks:
        rivals.setdefault(p.task.workload, []).append(p)
    found = {}
    for workload, members in rivals.items():
        standing = Standing.of(r for p in members for r in p.records)
        best = [(p, records.best(p.records, standing)) for p in members]
        done = [(p, record) for p, record in best if record is not None]
        if done:
            found[workload] = min(done, key=lambda d: standing.seconds(d[1]))
    return found


def fastest(tasks: Iterable[TaskProgress]) -> dict[ConvWorkload, float]:
    """The best seconds of each workload by any of its tasks, infinite before there are any."""
    found: dict[ConvWorkload, float] = {}
    for progress in tasks:
        seconds = progress.best.seconds if progress.best else math.inf
        workload = progress.task.workload
        found[workload] = min(seconds, found.get(workload, math.inf))
    return found
