"""The tuner: what to tune, what the log knows of it, in which order; the loop does the rest."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from convtvm.errors import (
    ConvtvmError,
    LogError,
    TargetError,
    WorkloadError,
    check_number,
)
from convtvm.kernels.task import Task, tasks_of
from convtvm.library.choices import Choice, choose
from convtvm.logs import records
from convtvm.logs.records import LogWriter, TuningRecord
from convtvm.machine.targets import CompileTarget, CudaTarget, resolve
from convtvm.measure import remote
from convtvm.measure.client import Zygote
from convtvm.measure.places import ROOM
from convtvm.measure.problems import problem_bytes
from convtvm.measure.remote import Farm
from convtvm.problem.sources import Workloads, as_names, as_workloads
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning import confirm
from convtvm.tuning.budget import Budget, Contender
from convtvm.tuning.interrupts import until_interrupted
from convtvm.tuning.loop import Loop
from convtvm.tuning.progress import Listener, TaskProgress, TuningSummary
from convtvm.tuning.search import TaskSearch
from convtvm.tuning.speed import SpeedModel
from convtvm.tuning.transfer import Neighbours

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
    if isinstance(target, CudaTarget) and len(target.arches) > 1:
        raise TargetError(
            f"target {target.name!r}: the devices of a tracker have one architecture, expected "
            f"its name, such as --target cuda:{target.arches[-1]}"
        )
    return remote.find(tracker, key, math.inf if time_limit is None else time_limit)


class _Session:
    """One call of `tune`: its tasks' searches, in their order, and the loop that they share."""

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
        self.summary, self.budget, self.farm = summary, budget, farm
        history = [*old, *records.load(records.shipped_logs())[0]]
        self.neighbours = Neighbours(history)
        models: dict[tuple[Any, ...], SpeedModel] = {}
        taught: set[str] = set()
        self.contenders: list[Contender] = []
        made_for = records.grouped(old, "task_key")
        for progress in summary.tasks:
            task = progress.task
            known = records.usable(made_for.get(task.key, ()), task)
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
        device = summary.tasks[0].task.target.device_name()
        found = self.contenders, self.neighbours
        self.loop = Loop(summary, writer, listener, budget, *found, device)

    def _rank(self, choices: Sequence[Choice]) -> None:
        """Order the tasks: every workload's likely winner, then every second, as far as the log or
        else a rough cost tells; the most expensive first.

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
        with self.loop.timed("start"):
            room = ROOM + problem_bytes({p.task.workload for p in self.summary.tasks})
            zygote = Zygote(self.budget.deadline, self.farm, at_once=False, room=room)
            zygote.start_ahead()
        with zygote:
            if self.farm is not None:
                with self.loop.timed("preflight"):
                    self._preflight(zygote)
            for contender in self.contenders:
                contender.search.zygote = zygote
            workloads = len({p.task.workload for p in self.summary.tasks})
            zygote.deadline = self.budget.tuning_deadline(workloads, confirmed)
            self.loop.tune(zygote)
            zygote.deadline = self.budget.deadline
            if confirmed:
                with self.loop.timed("confirm"):
                    self.loop.confirm(zygote)

    def _preflight(self, zygote: Zygote) -> None:
        """Ask every device what it is. Raises TargetError if one lacks what the target needs."""
        target = self.summary.tasks[0].task.target
        machines = zygote.probe()
        names = sorted({machine.name(target) for machine in machines})
        self.loop.device = f"{zygote.farm.key if zygote.farm else ''}: {', '.join(names)}"
        for machine in machines:
            if objection := remote.objection(machine, target):
                raise TargetError(f"target {target.name!r}: {objection}")
