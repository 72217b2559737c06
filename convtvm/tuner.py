"""The tuner: propose, build, check, time and record, task by task, until the budget is spent."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from convtvm import __version__, records
from convtvm.cpu import device_name
from convtvm.errors import ConvtvmError
from convtvm.measure import Trial, Zygote, build_ahead
from convtvm.records import LogWriter, TuningRecord
from convtvm.search import SpeedModel, TaskSearch
from convtvm.targets import CompileTarget, resolve
from convtvm.task import Task, tasks_of
from convtvm.workload import ConvWorkload

_HOPELESS = 1.5  # times slower than the workload's best: tuned last
_BATCH = 16  # candidates built together; the cost model learns after each batch


@dataclass
class TaskProgress:
    """Where a task stands: trials wanted and done (earlier runs included), best and default
    times."""

    task: Task
    trials: int
    done: int = 0
    default: TuningRecord | None = None
    best: TuningRecord | None = None

    def add(self, record: TuningRecord) -> None:
        self.done += 1
        if record.run_secs and (self.best is None or record.seconds < self.best.seconds):
            self.best = record
        if dict(record.decisions) == self.task.space.default:
            self.default = record


@dataclass
class TuningSummary:
    """What a call of `tune` did."""

    tasks: list[TaskProgress]
    log: Path
    measured: int = 0
    reused: int = 0
    seconds: float = 0.0
    stopped: str = ""  # why it ended before all trials, empty if it did not
    failures: Counter[str] = field(default_factory=Counter)
    first_failures: dict[str, str] = field(default_factory=dict)
    problems: list[records.Problem] = field(default_factory=list)


_Pair = tuple[TaskProgress, TaskSearch]
Listener = Callable[[TuningSummary, TaskProgress, TuningRecord | None], None]


def tune(
    workloads: Sequence[ConvWorkload],
    target: str | CompileTarget = "native",
    threads: int | None = None,
    algorithms: Sequence[str] | None = None,
    trials: int = 64,
    time_limit: float | None = None,
    log: str | Path = "convtvm.jsonl",
    layout: str = "NCHW",
    seed: int = 0,
    listener: Listener | None = None,
) -> TuningSummary:
    """Search the schedule of every workload by every applicable algorithm; append trials to `log`.

    `trials` counts per task (workload x algorithm) and includes those already in the log, so a
    second call resumes. The default decisions are always measured first. `time_limit` is in
    seconds; `listener(summary, progress, record)` is called after every trial. Ctrl-C keeps every
    finished trial and returns. Raises TargetError, WorkloadError or LogError for bad arguments.
    """
    if trials < 1:
        raise ConvtvmError(f"trials is {trials}, expected 1 or more")
    resolved = target if isinstance(target, CompileTarget) else resolve(target, threads)
    tasks = tasks_of(list(dict.fromkeys(workloads)), resolved, layout, algorithms)
    path = Path(log)
    old, problems = records.load([path]) if path.exists() else ([], [])
    summary = TuningSummary([TaskProgress(t, trials) for t in tasks], path, problems=problems)
    writer = LogWriter(path)
    started = time.monotonic()
    interrupts = _Interrupts()
    try:
        with interrupts, Zygote() as zygote:
            session = _Session(summary, writer, zygote, old, seed, listener)
            session.run(started + (math.inf if time_limit is None else time_limit))
    except KeyboardInterrupt:
        summary.stopped = "interrupted"
    except RuntimeError:
        # TVM turns a KeyboardInterrupt that lands in one of its callbacks into this.
        if not interrupts.seen:
            raise
        summary.stopped = "interrupted"
    finally:
        writer.close()
        summary.seconds = time.monotonic() - started
    return summary


class _Interrupts:
    """Remembers whether Ctrl-C was pressed; outside the main thread it does nothing."""

    def __init__(self) -> None:
        self.seen = False
        self._before: Any = None

    def _note(self, number: int, frame: Any) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


class _Session:
    """One call of `tune`: its tasks' searches, and what every record of it has in common."""

    def __init__(
        self,
        summary: TuningSummary,
        writer: LogWriter,
        zygote: Zygote,
        old: Sequence[TuningRecord],
        seed: int,
        listener: Listener | None,
    ) -> None:
        self.summary, self.writer, self.listener = summary, writer, listener
        self.zygote = zygote
        self.device = device_name()
        self.versions = {"convtvm": __version__, "tvm": metadata.version("apache-tvm")}
        models: dict[str, SpeedModel] = {}
        self.searches = []
        for progress in summary.tasks:
            task = progress.task
            speed = models.setdefault(task.algorithm_name, SpeedModel(seed=seed))
            known = {r.identity: r for r in records.usable(old, task)}
            for record in known.values():
                progress.add(record)
            summary.reused += len(known)
            self.searches.append(TaskSearch(task, speed, zygote, list(known.values()), seed))

    def run(self, deadline: float) -> None:
        """A batch of every task in turn, so that an early end leaves none untouched."""
        active = list(zip(self.summary.tasks, self.searches, strict=True))
        self._build_defaults(deadline)
        while active:
            for pair in self._contenders(active):
                progress, search = pair
                if time.monotonic() >= deadline:
                    self.summary.stopped = "time limit reached"
                    return
                left = progress.trials - progress.done
                tried = 0
                for decisions, trial in search.batch(min(_BATCH, left)) if left > 0 else ():
                    tried += 1
                    self._record(progress, decisions, trial)
                if not tried:
                    active.remove(pair)

    def _build_defaults(self, deadline: float) -> None:
        """Build the default candidates of all tasks together, some at a time."""
        waiting = [s for s in self.searches if s.lacks_default]
        while waiting and time.monotonic() < deadline:
            some, waiting = waiting[:_BATCH], waiting[_BATCH:]
            build_ahead([(s.bench, s.task.space.default) for s in some], self.zygote)

    def _contenders(self, active: list[_Pair]) -> list[_Pair]:
        """Those that may still win their workload; the hopeless wait until these are finished."""
        best: dict[ConvWorkload, float] = {}
        for progress in self.summary.tasks:
            if progress.best:
                known = best.get(progress.task.workload, math.inf)
                best[progress.task.workload] = min(known, progress.best.seconds)

        def may_win(progress: TaskProgress) -> bool:
            fastest = best.get(progress.task.workload, math.inf)
            return progress.best is None or progress.best.seconds <= _HOPELESS * fastest

        return [pair for pair in active if may_win(pair[0])] or list(active)

    def _record(self, progress: TaskProgress, decisions: Mapping[str, int], trial: Trial) -> None:
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
        )
        self.writer.append(record)
        progress.add(record)
        self.summary.measured += 1
        if trial.kind:
            self.summary.failures[trial.kind] += 1
            self.summary.first_failures.setdefault(trial.kind, trial.message)
        if self.listener:
            self.listener(self.summary, progress, record)
