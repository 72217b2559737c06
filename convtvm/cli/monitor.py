"""Progress of `convtvm tune`, on stderr: a bar on a terminal, else one line a batch."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from convtvm.cli.output import gflops, ms, text_of
from convtvm.workload import ConvWorkload

if TYPE_CHECKING:
    from convtvm.progress import TaskProgress, TuningSummary
    from convtvm.records import TuningRecord

_LINE_EVERY = 16  # trials of one task in a row, the tuner's batch


@contextlib.contextmanager
def monitor(quiet: bool, label: Mapping[ConvWorkload, str]) -> Iterator[Monitor]:
    """The listener that fits stderr, closed at the end."""
    if quiet:
        shown = Monitor(label)
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        shown = BarMonitor(label)
    else:
        shown = LineMonitor(label)
    try:
        yield shown
    finally:
        shown.close()


class Monitor:
    """Listens to the tuner and counts: failures of this run by task, trials done and wanted."""

    def __init__(self, label: Mapping[ConvWorkload, str]) -> None:
        self.label = label
        self.failed: Counter[Any] = Counter()
        self._wanted: dict[Any, int] = {}

    def __call__(
        self, summary: TuningSummary, progress: TaskProgress, record: TuningRecord | None
    ) -> None:
        if not self._wanted:
            for p in summary.tasks:
                self._wanted[p.task.key] = _wanted(p) if p.done else p.trials
        self._wanted[progress.task.key] = _wanted(progress)
        if record is not None and not record.run_secs:
            self.failed[progress.task.key] += 1
        self.show(summary, progress)

    def totals(self, summary: TuningSummary) -> tuple[int, int]:
        """(trials done, trials wanted) of all tasks, as far as their spaces are known."""
        done = sum(min(p.done, self._wanted[p.task.key]) for p in summary.tasks)
        return done, sum(self._wanted.values())

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
        secs = progress.best.seconds
        text += f"best {ms(secs)} ms, {text_of(gflops(task.workload, secs), '{:.1f}')} GFLOP/s"
        if progress.default is not None and math.isfinite(progress.default.seconds):
            text += f", {progress.default.seconds / secs:.2f}x the default"
        return text + (f", {failed} failed" if failed else "")


def _wanted(progress: TaskProgress) -> int:
    """Trials of a task whose space the tuner has already enumerated."""
    return min(progress.trials, len(progress.task.space.points))


class LineMonitor(Monitor):
    """A line whenever the tuner turns to another task, and after every batch of the same one."""

    def __init__(self, label: Mapping[ConvWorkload, str]) -> None:
        super().__init__(label)
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
            done, wanted = self.totals(summary)
            click.echo(f"[{done}/{wanted}] {self.describe(progress)}", err=True)

    def close(self) -> None:
        if self._last is not None:
            self._say(*self._last)


class BarMonitor(Monitor):
    """One bar over the trials of all tasks, the current task, and the time that is left."""

    def __init__(self, label: Mapping[ConvWorkload, str]) -> None:
        super().__init__(label)
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
        self._progress.update(
            self._bar, total=wanted, completed=done, description=self.describe(progress)
        )

    def close(self) -> None:
        self._progress.stop()
