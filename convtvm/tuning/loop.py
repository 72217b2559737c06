"""The loop of a run: candidates are proposed, built, measured and recorded, until the budget is
spent or nothing is left to gain; then the last word on the best."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from convtvm import __version__
from convtvm.errors import BuildError, EnvironmentProblem
from convtvm.logs.records import LogWriter, TuningRecord
from convtvm.measure.client import Zygote, run_limits
from convtvm.measure.jobs import ENVIRONMENT, STOPPED
from convtvm.measure.workbench import Trial, build_ahead
from convtvm.tuning import confirm
from convtvm.tuning.budget import Budget, Contender
from convtvm.tuning.builders import Builders, next_round
from convtvm.tuning.progress import LATE, Listener, TaskProgress, TuningSummary
from convtvm.tuning.transfer import Neighbours

_PATIENCE = 3  # batches in a row for which the machine may lack something
_BUILT_AHEAD = 16  # tasks whose first candidates are built together


class Loop:
    """Measures what the searches of `contenders`, in their order, propose; `device` is what the
    records say of where."""

    def __init__(
        self,
        summary: TuningSummary,
        writer: LogWriter,
        listener: Listener | None,
        budget: Budget,
        contenders: Sequence[Contender],
        neighbours: Neighbours,
        device: str,
    ) -> None:
        self.summary, self.writer, self.listener = summary, writer, listener
        self.budget, self.contenders, self.neighbours = budget, contenders, neighbours
        self.device, self._troubles = device, 0
        self._versions = {"convtvm": __version__, "tvm": metadata.version("apache-tvm")}

    def tune(self, zygote: Zygote) -> None:
        """The defaults of all tasks, then whatever promises the most."""
        if self.summary.tasks[0].task.target.kind == "cuda":
            with self.timed("search"):
                self._overlapped(zygote)
        else:
            with self.timed("defaults"):
                going = self._defaults(zygote)
            with self.timed("search"):
                while going and (chosen := self.budget.choose(self.contenders)) is not None:
                    going = self._has_time(zygote) and self._batch(chosen, zygote.deadline)
        if self.budget.is_spent:
            self.summary.stopped = "all trials of the budget done"

    def _overlapped(self, zygote: Zygote) -> None:
        """While the GPU measures a round, the next ones are built."""
        found, is_prepared = (
            (self.contenders, self.budget, self.neighbours),
            zygote.farm is not None,
        )
        with Builders(zygote.deadline) as builders:
            while self._has_time(zygote):
                while builders.have_room and (batches := next_round(*found)):
                    builders.start(batches)
                if not builders.waiting:
                    return
                if not is_prepared:
                    is_prepared = True
                    deque(zygote.call("prepare", [None], run_limits(1, None)), maxlen=0)
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

    def confirm(self, zygote: Zygote) -> None:
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
        record = TuningRecord.of(
            progress.task, decisions, trial, self.device, self._versions, confirmed
        )
        self.writer.append(record)
        progress.add(record)
        self.summary.note(progress, record)
        if self.listener:
            self.listener(self.summary, progress, record)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the time spent inside as spent on `what`."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self.summary.spent[what] = self.summary.spent.get(what, 0.0) + spent
