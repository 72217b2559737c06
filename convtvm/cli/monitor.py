"""Progress of `convtvm tune`, on stderr: a bar on a terminal, else one line a batch."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtvm.cli.events import Events
from convtvm.cli.output import gflops, ms, text_of
from convtvm.problem.workload import ConvWorkload

if TYPE_CHECKING:
    from convtvm.logs.records import TuningRecord
    from convtvm.tuning.progress import TaskProgress, TuningSummary

_LINE_EVERY = 16  # trials of one task in a row, the tuner's batch


@contextlib.contextmanager
def monitor(
    quiet: bool, label: Mapping[ConvWorkload, str], events: Path | None = None
) -> Iterator[Monitor]:
    """The listener that fits stderr, closed at the end."""
    told = None if events is None else Events(events)
    if quiet:
        shown = Monitor(label, told)
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        shown = BarMonitor(label, told)
    else:
        shown = LineMonitor(label, told)
    try:
        yield shown
    finally:
        shown.close()
        if told is not None:
            told.close()


class Monitor:
    """Listens to the tuner and counts: failures of this run by task, trials done and wanted."""

    def __init__(self, label: Mapping[ConvWorkload, str], events: Events | None = None) -> None:
        self.label = label
        self.events = events
        self.failed: Counter[Any] = Counter()
        self._wanted: dict[Any, int] = {}
        self._ended: set[Any] = set()
        self._started = time.monotonic()

    def __call__(
        self, summary: TuningSummary, progress: TaskProgress, record: TuningRecord | None
    ) -> None:
        if not self._wanted:
            for p in summary.tasks:
                self._wanted[p.task.key] = _wanted(p) if p.done else p.trials
        self._wanted[progress.task.key] = _wanted(progress)
        if record is not None and not record.run_secs:
            self.failed[progress.task.key] += 1
        self.note_ended(summary)
        if self.events is not None and record is not None:
            self.events.trial(progress, record, self.totals(summary), self.eta(summary))
        self.show(summary, progress)

    def note_ended(self, summary: TuningSummary) -> None:
        """Tell of the tasks that have ended since; once more after the run, which may end so."""
        for p in summary.tasks:
            if p.ended and p.task.key not in self._ended:
                self._ended.add(p.task.key)
                self._wanted[p.task.key] = p.done
                self.say_ended(summary, p)

    def totals(self, summary: TuningSummary) -> tuple[int, int]:
        """(trials done, trials wanted) of all tasks, as far as their spaces are known."""
        done = sum(min(p.done, self._wanted[p.task.key]) for p in summary.tasks)
        return done, sum(self._wanted.values())

    def eta(self, summary: TuningSummary) -> float | None:
        """Seconds that the trials left will take at the speed of this run, or that its limits leave
        if that is less; None without any trial yet."""
        done, wanted = self.totals(summary)
        if not summary.measured:
            return None
        left, spent = wanted - done, time.monotonic() - self._started
        if summary.total_trials is not None:
            left = min(left, summary.total_trials - summary.measured)
        seconds = spent / summary.measured * left
        if summary.time_limit is not None:
            seconds = min(seconds, max(0.0, summary.time_limit - spent))
        return seconds

    def stand(self, summary: TuningSummary) -> str:
        """`17/64, 0:30 left`, as far as it is known."""
        done, wanted = self.totals(summary)
        eta = self.eta(summary)
        text = _defaults(summary) + f"{done}/{wanted}"
        return text + (f", {_clock(eta)} left" if eta else "")

    def say_ended(self, summary: TuningSummary, progress: TaskProgress) -> None:
        """A task gets no more trials, for the reason in `progress.ended`."""
        if self.events is not None:
            self.events.task(progress)

    def show(self, summary: TuningSummary, progress: TaskProgress) -> None:
        """Nothing: this one is quiet."""

    def close(self) -> None:
        """End the display."""

    def describe(self, progress: TaskProgress) -> str:
        """`conv1 direct 17/64: best 1.234 ms, 191.3 GFLOP/s, 1.52x the default, 2 failed`."""
        task = progress.task
        text = f"{self.label[task.workload]} {task.algorithm_name} "
        text += f"{progress.done}/{self._wanted[task.key]}: "
        failed = self.failed[task.key]
        if progress.best is None:
            return text + f"{failed} failed"
        secs = progress.tuned_secs or progress.best.seconds
        text += f"best {ms(secs)} ms, {text_of(gflops(task.workload, secs), '{:.1f}')} GFLOP/s"
        if progress.default is not None and math.isfinite(progress.default.seconds):
            text += f", {progress.default.seconds / secs:.2f}x the default"
        return text + (f", {failed} failed" if failed else "")


def _clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _defaults(summary: TuningSummary) -> str:
    """`defaults 3/8, ` until all default decisions were measured."""
    if not any(p.default is None and p.is_open for p in summary.tasks):
        return ""
    done = sum(p.default is not None for p in summary.tasks)
    return f"defaults {done}/{len(summary.tasks)}, "


def _wanted(progress: TaskProgress) -> int:
    """Trials of a task whose space the tuner has already enumerated."""
    return min(progress.trials, len(progress.task.space.points))


class LineMonitor(Monitor):
    """A line whenever the tuner turns to another task, and after every batch of the same one."""

    def __init__(self, label: Mapping[ConvWorkload, str], events: Events | None = None) -> None:
        super().__init__(label, events)
        self._last: tuple[TuningSummary, TaskProgress] | None = None
        self._unsaid = 0

    def show(self, summary: TuningSummary, progress: TaskProgress) -> None:
        if self._last is not None and self._last[1] is not progress:
            self._say(*self._last)
        self._last = summary, progress
        self._unsaid += 1
        if self._unsaid >= _LINE_EVERY or progress.done >= self._wanted[progress.task.key]:
            self._say(summary, progress)

    def _say(self, summary: TuningSummary, progress: TaskProgress) -> None:
        if self._unsaid:
            self._unsaid = 0
            click.echo(f"[{self.stand(summary)}] {self.describe(progress)}", err=True)

    def say_ended(self, summary: TuningSummary, progress: TaskProgress) -> None:
        super().say_ended(summary, progress)
        if progress.ended.startswith(("dropped", "the model")):
            task = progress.task
            name = f"{self.label[task.workload]} {task.algorithm_name}"
            click.echo(f"{name} ends after {progress.done} trials: {progress.ended}", err=True)

    def close(self) -> None:
        if self._last is not None:
            self._say(*self._last)


class BarMonitor(Monitor):
    """One bar over the trials of all tasks, the current task, and the time that is left."""

    def __init__(self, label: Mapping[ConvWorkload, str], events: Events | None = None) -> None:
        super().__init__(label, events)
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            redirect_stdout=False,
            transient=True,
            speed_estimate_period=600,  # trials come in bursts, a batch at a time
        )
        self._bar = self._progress.add_task("starting", total=None)
        self._begun = False
        self._progress.start()

    def show(self, summary: TuningSummary, progress: TaskProgress) -> None:
        done, wanted = self.totals(summary)
        if not self._begun:  # what earlier runs did says nothing about the speed
            self._begun = True
            self._progress.reset(self._bar, total=wanted, completed=max(0, done - 1))
        text = _defaults(summary) + self.describe(progress)
        self._progress.update(self._bar, total=wanted, completed=done, description=text)

    def close(self) -> None:
        self._progress.stop()
