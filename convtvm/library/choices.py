"""What goes into a library: for every task the best record, else what the log says of its like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convtvm.errors import LogError
from convtvm.kernels.task import Task
from convtvm.logs import records
from convtvm.logs.prediction import Hints, untuned_cost
from convtvm.logs.records import Standing, TuningRecord
from convtvm.machine.targets import CompileTarget, is_near
from convtvm.problem.workload import ConvWorkload

KEEP = ("best", "pareto", "all")


@dataclass(frozen=True)
class Choice:
    """A task with the record to build it from, its time comparable with others' of its workload;
    without one, with the record of another task whose
    decisions it takes, if there is one, these as `borrowed`, and the seconds to expect."""

    task: Task
    record: TuningRecord | None
    source: TuningRecord | None = None
    borrowed: Mapping[str, int] | None = None
    predicted_secs: float | None = None

    @property
    def decisions(self) -> dict[str, int]:
        made = self.record.decisions if self.record else self.borrowed
        return dict(made or self.task.space.default)

    @property
    def origin(self) -> str:
        return "tuned" if self.record else "transferred" if self.source else "default"

    @property
    def transferred_from(self) -> str:
        """In what the source of the decisions differs from the task; empty without a source."""
        if self.record or self.source is None:
            return ""
        source, target = self.source, self.task.target
        parts = [
            (source.workload != self.task.workload.key, source.workload),
            (source.target != target.name, source.target),
            (
                source.threads != target.threads,
                f"{source.threads} thread{'s' * (source.threads > 1)}",
            ),
        ]
        return ", ".join(text for differs, text in parts if differs)

    @property
    def twin(self) -> TuningRecord | None:
        """The source if it is of the same workload, with other threads or for a near target."""
        same = self.source is not None and self.source.workload == self.task.workload.key
        return self.source if same else None

    @property
    def max_error(self) -> float | None:
        """The measured error. Rounding follows from workload, decisions and the width of vectors,
        so it is the same where these are."""
        made = self.record or self.twin
        return made.max_error if made else None

    def rank(self, workspace: int = 0) -> tuple[int, float, float]:
        """Sort key: time measured, else time measured of the twin, else predicted by a model, and
        workspace; those without any follow by a rough cost."""
        if self.record:
            return 0, self.record.seconds, workspace
        if self.predicted_secs is not None:
            return 1 if self.twin else 2, self.predicted_secs, workspace
        return 3, untuned_cost(self.task), workspace


def choose(tasks: Sequence[Task], history: Sequence[TuningRecord]) -> list[Choice]:
    """A choice for every task, all of one target and layout; defaults that are known to fail stay
    out if others serve their workload."""
    hints: Hints | None = None
    choices: list[Choice] = []
    doubtful: list[Choice] = []
    made_for = records.grouped(history, "task_key")
    known = {task: records.usable(made_for.get(task.key, ()), task) for task in tasks}
    standings = records.standings(r for made in known.values() for r in made)
    for task, made in known.items():
        choice = Choice(task, _best(made, standings))
        failed = [dict(r.decisions) for r in made if r.error]
        if choice.record is None:
            hints = hints or Hints(history, task.target, task.layout)
            hint = hints.of(task, failed)
            choice = Choice(task, None, hint.source, hint.decisions, hint.seconds)
        fails = bool(failed) and choice.record is None and choice.decisions in failed
        (doubtful if fails else choices).append(choice)
    served = {c.task.workload for c in choices}
    return choices + [c for c in doubtful if c.task.workload not in served]


def _best(
    made: Sequence[TuningRecord], standings: Mapping[tuple[object, ...], Standing]
) -> TuningRecord | None:
    """The best record of a task, with its time as it compares with those of other algorithms."""
    if not made:
        return None
    standing = standings[made[0].rivalry]
    found = records.best(made, standing)
    return None if found is None else standing.compared(found)


def keep_some(choices: Sequence[Choice], keep: str) -> list[Choice]:
    """Those choices that `keep`, one of KEEP, wants in the library."""
    if keep == "best":
        return _fastest(choices)
    if keep == "pareto":
        return [c for c in choices if not any(_dominates(other, c) for other in choices)]
    return list(choices)


def _fastest(choices: Sequence[Choice]) -> list[Choice]:
    """The fastest for a workload, and the fastest of those that callers have to permit."""
    best: dict[tuple[ConvWorkload, bool], Choice] = {}
    for choice in choices:
        key = (choice.task.workload, choice.task.algorithm.opt_in)
        if key not in best or choice.rank() < best[key].rank():
            best[key] = choice
    return list(best.values())


def _dominates(a: Choice, b: Choice) -> bool:
    """Whether no limit on workspace or error could make `b` the choice while `a` is there.

    A candidate of which something is unknown neither dominates nor is dominated, and an expected
    time does not dominate a measured one.
    """
    if a is b or a.task.workload != b.task.workload or (b.record and not a.record):
        return False
    left, right = _facts(a), _facts(b)
    if None in left or None in right:
        return False
    return left != right and all(x <= y for x, y in zip(left, right, strict=True))  # type: ignore[operator]


def _facts(choice: Choice) -> tuple[float | None, int | None, float | None]:
    """Seconds, workspace and error, as far as they were measured, here or where it comes from."""
    if choice.record:
        return choice.record.seconds, choice.record.workspace_bytes, choice.max_error
    source = choice.source
    same = source is not None and source.threads == choice.task.target.threads
    workspace = source.workspace_bytes if source and same else None
    return choice.predicted_secs, workspace, choice.max_error


def check_targets(
    history: Sequence[TuningRecord], target: CompileTarget, layout: str, paths: Sequence[Path]
) -> str:
    """What is worth a warning about logs without records for this target, threads and layout.

    Raises LogError if none is for a near target either: a log that is about something else entirely
    is a mistake worth stopping for.
    """
    found = {(r.target, r.threads, r.layout) for r in history}
    if not found or (target.name, target.threads, layout) in found:
        return ""
    near = {f for f in found if f[2] == layout and is_near(f[0], target)}
    listed = "; ".join(f"{t} with {n} threads, {lay}" for t, n, lay in sorted(near or found))
    missing = f"no record for {target.name} with {target.threads} threads, {layout}"
    if not near:
        raise LogError(f"{', '.join(map(str, paths))}: {missing}; the records are for {listed}")
    return f"{missing}; taking decisions that were tuned for {listed}"


def stale(history: Sequence[TuningRecord], choices: Sequence[Choice]) -> list[str]:
    """Warnings about records that today's templates no longer accept."""
    warnings = []
    for choice in choices:
        task, accepted = choice.task, choice.task.template_version
        made = [r for r in history if _is_about(r, choice)]
        unused = sum(r.template != accepted or not task.space.contains(r.decisions) for r in made)
        if unused:
            warnings.append(
                f"{unused} records of {task.workload} by {task.algorithm_name} were made by "
                f"another version of its template (now {accepted}); "
                "not used, tune again"
            )
    return warnings


def _is_about(record: TuningRecord, choice: Choice) -> bool:
    """Whether it is of the choice's task; for default decisions, of the same one on a near target
    too."""
    task = choice.task
    if record.task_key == task.key:
        return True
    problem = (record.workload, record.algorithm, record.layout)
    return (
        choice.origin == "default"
        and problem == (task.workload.key, task.algorithm_name, task.layout)
        and is_near(record.target, task.target)
    )
