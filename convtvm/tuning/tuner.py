"""The tuner: propose, build, check, time and record, until the budget is spent or nothing is left
to gain; then the last word on the best."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from convtvm import __version__
from convtvm.errors import (
    BuildError,
    ConvtvmError,
    EnvironmentProblem,
    LogError,
    TargetError,
    WorkloadError,
    check_number,
)
from convtvm.kernels.task import Task, tasks_of
from convtvm.library.choices import Choice, choose
from convtvm.logs import records
from convtvm.logs.records import LogWriter, TuningRecord
from convtvm.machine.targets import CompileTarget, resolve
from convtvm.measure import remote
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import ENVIRONMENT, STOPPED
from convtvm.measure.places import ROOM
from convtvm.measure.problems import problem_bytes
from convtvm.measure.remote import Farm
from convtvm.measure.workbench import Trial, build_ahead
from convtvm.problem.sources import Workloads, as_names, as_workloads
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning import confirm
from convtvm.tuning.budget import Budget, Contender
from convtvm.tuning.builders import Builders, next_round
from convtvm.tuning.interrupts import until_interrupted
from convtvm.tuning.progress import LATE, Listener, TaskProgress, TuningSummary
from convtvm.tuning.search import TaskSearch
from convtvm.tuning.speed import SpeedModel
from convtvm.tuning.transfer import Neighbours

_PATIENCE = 3  # batches in a row for which the machine may lack something
_BUILT_AHEAD = 16  # tasks whose first candidates are built together
_LAST = (4, 0.0, 0.0)  # the rank of what is known to fail


def tune(
    workloads: Workloads,
    target: str | CompileTarget = "native",
    threads: int | None = None,
    algorithms: str | Iterable[str] | None = None,
    trials: int = 64,
    time_limit: float | None = None,
    log: str | Path = "convtvm.jsonl",
    layout: str = "NCHW",
    seed: int = 0,
    listener: Listener | None = None,
    total_trials: int | None = None,
    min_gain: float = 0.0,
    confirm: bool = True,
    tracker: str | None = None,
    key: str | None = None,
) -> TuningSummary:
    """Search the schedule of every workload by every applicable algorithm; append trials to `log`.

    `workloads` are one or several, each a ConvWorkload, or text or a path as a SOURCE of the
    command line. `trials` is the most for a task (workload x algorithm) and includes those already
    in the log, so a second call resumes; a task that cannot become its workload's best any more
    gets fewer. The default decisions are always measured first, of each workload's most promising
    algorithms before those of others. `total_trials` (of this call) and `time_limit` (seconds) are
    shared by all tasks: what comes next is what is expected to save the most time. A workload is
    done when the model expects less than `min_gain` per cent from more trials. With
    `confirm`, the best candidates are measured again in an exported library, and that time counts;
    not on devices of a `tracker` (HOST:PORT of TVM's RPC tracker), which measures candidates on all
    its free devices under `key`.

    `listener(summary, progress, record)` is called after every trial. Ctrl-C keeps every finished
    trial and returns. Raises TargetError, WorkloadError or LogError for bad arguments.
    """
    _check_limits(trials, total_trials, time_limit, min_gain, seed)
    workloads, algorithms = as_workloads(workloads), as_names(algorithms, "algorithms")
    path = _log_path(log)
    resolved = target if isinstance(target, CompileTarget) else resolve(target, threads)
    tasks = tasks_of(list(dict.fromkeys(workloads)), resolved, layout, algorithms)
    if not tasks:
        raise WorkloadError(
            f"nothing to tune: none of {', '.join(algorithms or ['no algorithm'])} can compute "
            f"{', '.join(map(str, workloads)) or 'no workload'}"
        )
    started = time.monotonic()
    farm = _farm(tracker, key, resolved, time_limit)
    old, problems = records.load([path]) if os.path.isfile(path) else ([], [])
    summary = TuningSummary([TaskProgress(t, trials) for t in tasks], path, problems=problems)
    summary.time_limit, summary.total_trials = time_limit, total_trials
    budget = Budget(started, time_limit, total_trials, min_gain / 100)
    with contextlib.closing(LogWriter(path)) as writer, until_interrupted(summary):
        session = _Session(summary, writer, old, seed, budget, listener, farm)
        session.run(confirm and farm is None)
    summary.restored = writer.restored
    summary.seconds = time.monotonic() - started
    return summary


def _check_limits(
    trials: int,
    total_trials: int | None,
    time_limit: float | None,
    min_gain: float,
    seed: int,
) -> None:
    check_number("trials", trials, least=1, whole=True)
    check_number("seed", seed, least=0, whole=True)
    if total_trials is not None:
        check_number("total_trials", total_trials, least=1, whole=True)
    if time_limit is not None:
        check_number("time_limit", time_limit, least=0)
    if not check_number("min_gain", min_gain, least=0) < 100:
        raise ConvtvmError(f"min_gain is {min_gain:g}, expected per cent from 0 to below 100")


def _log_path(log: object) -> Path:
    if isinstance(log, (str, os.PathLike)):
        return Path(log)
    raise LogError(f"log is {log!r}, expected the path of one tuning log")


def _farm(
    tracker: str | None, key: str | None, target: CompileTarget, time_limit: float | None
) -> Farm | None:
    """The devices to measure on, None for this machine."""
    if (tracker is None) != (key is None):
        raise ConvtvmError("tracker and key belong together, expected both or neither")
    if tracker is None or key is None:
        return None
    if target.kind != "cpu":
        raise TargetError(
            f"target {target.name!r}: through a tracker only CPUs are tuned; tune a GPU on its "
            "own machine"
        )
    return remote.find(tracker, key, math.inf if time_limit is None else time_limit)


class _Session:
    """One call of `tune`: its tasks' searches, and what every record of it has in common."""

    def __init__(
        self,
        summary: TuningSummary,
        writer: LogWriter,
        old: Sequence[TuningRecord],
        seed: int,
        budget: Budget,
        listener: Listener | None,
        farm: Farm | None,
    ) -> None:
        self.farm = farm
        self.summary, self.writer, self.listener = summary, writer, listener
        self.budget, self._troubles = budget, 0
        self.device = summary.tasks[0].task.target.device_name() if summary.tasks else ""
        self.versions = {"convtvm": __version__, "tvm": metadata.version("apache-tvm")}
        history = [*old, *records.load(records.shipped_logs())[0]]
        self.neighbours = Neighbours(history)
        models: dict[tuple[Any, ...], SpeedModel] = {}
        taught: set[str] = set()
        self.contenders = []
        for progress in summary.tasks:
            task = progress.task
            known = records.usable(old, task)
            for record in known:
                progress.add(record)
            summary.reused += progress.done
            # Variants of an algorithm have the same knobs, and what is good for one tends to be for
            # the others.
            knobs = task.algorithm.template, *task.space.knobs
            model = models.setdefault(knobs, SpeedModel(seed=seed))
            if task.algorithm_name not in taught:
                taught.add(task.algorithm_name)
                self._teach(model, task)
            search = TaskSearch(task, model, None, records.judged(known), seed)
            self.contenders.append(Contender(progress, search))
        self._rank(choose([c.search.task for c in self.contenders], history))

    def _rank(self, choices: Sequence[Choice]) -> None:
        """Order the tasks: every workload's likely winner, then every second, as far as the log or
        else the number of multiplications tells; the most expensive first.

        The likely winners, and whatever was tuned elsewhere, get the decisions that the log
        suggests as favourites.
        """
        ranks = {c.task: c.rank() for c in choices}
        rivals: dict[ConvWorkload, list[Task]] = {}
        for task in (c.search.task for c in self.contenders):
            rivals.setdefault(task.workload, []).append(task)

        def likely(task: Task) -> tuple[Any, ...]:
            names = {rival.algorithm_name for rival in rivals[task.workload]}
            family, _, variant = task.algorithm_name.partition(":")
            # Of equals, a variant made for such shapes comes before its family's general one.
            return ranks.get(task, _LAST), not (variant and family in names)

        ordered = (sorted(tasks, key=likely) for tasks in rivals.values())
        places = {task: place for tasks in ordered for place, task in enumerate(tasks)}

        def order(contender: Contender) -> tuple[int, float]:
            task = contender.search.task
            return places[task], -task.workload.multiplicity * task.workload.flops

        self.contenders.sort(key=order)
        searches = {c.search.task: c.search for c in self.contenders}
        # What was tuned for the same workload, with other threads or for a near target, is worth a
        # trial of any algorithm; what was tuned for another, of the likely winner only.
        for choice in choices:
            if choice.source and (choice.twin or places[choice.task] == 0):
                searches[choice.task].favourite = choice.decisions

    def _teach(self, model: SpeedModel, task: Task) -> None:
        """Have a model learn what the log holds of other shapes by the algorithm of `task`."""
        own = {p.task.workload for p in self.summary.tasks}
        for other, samples in self.neighbours.samples(task, without=own):
            model.learn(other, samples)

    def run(self, confirmed: bool) -> None:
        """Tune, then confirm; without a helper process if nothing is left to do."""
        idle = self.budget.choose(self.contenders) is None
        if idle and not (confirmed and confirm.doubtful(self.summary.tasks)):
            return
        with self._timed("start"):
            room = ROOM + problem_bytes({p.task.workload for p in self.summary.tasks})
            zygote = Zygote(self.budget.deadline, self.farm, room=room)
        with zygote:
            if self.farm is not None:
                with self._timed("preflight"):
                    self._preflight(zygote)
            for contender in self.contenders:
                contender.search.zygote = zygote
            workloads = len({p.task.workload for p in self.summary.tasks})
            zygote.deadline = self.budget.tuning_deadline(workloads, confirmed)
            self._tune(zygote)
            zygote.deadline = self.budget.deadline
            if confirmed:
                with self._timed("confirm"):
                    self._confirm(zygote)

    def _preflight(self, zygote: Zygote) -> None:
        """Ask every device what it is. Raises TargetError if one lacks what the target needs."""
        target = self.summary.tasks[0].task.target
        cpus = zygote.probe()
        self.device = f"{zygote.farm.key if zygote.farm else ''}: {', '.join(sorted(set(cpus)))}"
        for cpu in set(cpus):
            missing = remote.missing_features(cpu, target)
            if missing:
                raise TargetError(
                    f"target {target.name!r}: a device is {cpu}, which lacks {', '.join(missing)}; "
                    f"name it with --target 'llvm -mcpu={cpu}'"
                )

    def _tune(self, zygote: Zygote) -> None:
        """The defaults of all tasks, then whatever promises the most."""
        if self.farm is None and self.summary.tasks[0].task.target.kind == "cuda":
            with self._timed("search"):
                self._tune_overlapped(zygote)
        else:
            with self._timed("defaults"):
                going = self._defaults(zygote)
            with self._timed("search"):
                while going and (chosen := self.budget.choose(self.contenders)) is not None:
                    going = self._has_time(zygote) and self._batch(chosen, zygote.deadline)
        if self.budget.is_spent:
            self.summary.stopped = "all trials of the budget done"

    def _tune_overlapped(self, zygote: Zygote) -> None:
        """While the GPU measures a round, the next ones are built."""
        found = self.contenders, self.budget, self.neighbours
        with Builders(zygote.deadline) as builders:
            while self._has_time(zygote):
                while builders.have_room and (batches := next_round(*found)):
                    builders.start(batches)
                if not builders.waiting:
                    return
                built = builders.finished()
                if not all(self._measure(*batch, zygote.deadline) for batch in built):
                    return

    def _defaults(self, zygote: Zygote) -> bool:
        """Measure what was never measured; False if there is nothing more to measure with."""
        waiting = [c for c in self.contenders if c.search.lacks_default and c.progress.is_open]
        while waiting:
            some, waiting = waiting[:_BUILT_AHEAD], waiting[_BUILT_AHEAD:]
            if not self._has_time(zygote):
                return False
            build_ahead([(c.search.bench, c.search.opening) for c in some], zygote)
            for contender in some:
                if self.budget.is_spent:
                    return True
                if not self._has_time(zygote) or not self._batch(contender, zygote.deadline):
                    return False
        return True

    def _has_time(self, zygote: Zygote) -> bool:
        if time.monotonic() >= zygote.deadline:
            self.summary.stopped = LATE
        return not self.summary.stopped

    def _batch(self, contender: Contender, deadline: float) -> bool:
        """One batch of a task; False if no device is left to measure on."""
        search = contender.search
        seeds = self.neighbours.seeds(search.task)
        return self._measure(
            contender, search.propose(self.budget.batch(contender), seeds), deadline
        )

    def _measure(self, contender: Contender, proposed: list[Any], deadline: float) -> bool:
        """As `_batch`, of candidates that were proposed."""
        progress, search = contender.progress, contender.search
        started = time.monotonic()
        for decisions, trial in search.measure(proposed):
            self._record(progress, decisions, trial)
            self.budget.spend()
            if time.monotonic() >= deadline:
                break
        progress.seconds += time.monotonic() - started
        self._note_trouble(search.trouble)
        if progress.best:
            self.neighbours.note(progress.best)
        if search.given_up and time.monotonic() < deadline:
            self.summary.stopped = search.given_up
        return not self.summary.stopped

    def _note_trouble(self, message: str) -> None:
        """Count batches in a row for which the machine lacked something: what was not measured for
        that may be tried again. Raises EnvironmentProblem when it does not get better."""
        self._troubles = self._troubles + 1 if message else 0
        if message:
            self.summary.failures[ENVIRONMENT] += 1
            self.summary.first_failures.setdefault(ENVIRONMENT, message)
        if self._troubles >= _PATIENCE:
            raise EnvironmentProblem(
                f"candidates cannot be built or run on this machine now: {message}; what was "
                f"measured before is in {self.summary.log}"
            )

    def _confirm(self, zygote: Zygote) -> None:
        """Measure the best again in a library, as far as there is time."""
        try:
            for (progress, record), trial in confirm.confirm(self.summary.tasks, zygote):
                if trial.kind == ENVIRONMENT:
                    self._note_trouble(trial.message)
                elif trial.kind != STOPPED:
                    self._record(progress, record.decisions, trial, confirmed=True)
        except (BuildError, EnvironmentProblem) as error:
            if time.monotonic() < zygote.deadline:
                self.summary.failures["confirm"] += 1
                self.summary.first_failures.setdefault("confirm", str(error))

    def _record(
        self,
        progress: TaskProgress,
        decisions: Mapping[str, int],
        trial: Trial,
        confirmed: bool = False,
    ) -> None:
        task = progress.task
        record = TuningRecord(
            workload=task.workload.key,
            algorithm=task.algorithm_name,
            target=task.target.name,
            threads=task.target.threads,
            layout=task.layout,
            device=self.device,
            decisions=decisions,
            template=task.template_version,
            run_secs=trial.run_secs,
            error={"kind": trial.kind, "message": trial.message} if trial.kind else {},
            max_error=trial.max_error,
            workspace_bytes=trial.workspace_bytes,
            versions=self.versions,
            time=records.now(),
            disturbed=trial.disturbed,
            confirmed=confirmed,
        )
        self.writer.append(record)
        progress.add(record)
        self.summary.note(progress, record)
        if self.listener:
            self.listener(self.summary, progress, record)

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        """Count the time spent inside as spent on `what`."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self.summary.spent[what] = self.summary.spent.get(what, 0.0) + spent
