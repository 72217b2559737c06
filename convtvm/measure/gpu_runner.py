"""One process that measures on this machine's GPU for as long as it is fit to.

It keeps its context, the stopwatch, inputs and packed weights over batches and tasks. A candidate
that fails, by whatever it does, is the last one of its process, and the only one that is blamed:
nobody can say what it did to memory, and after some errors CUDA refuses everything to a process.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import BinaryIO

from convtvm.measure.child import Child, Report, crashed
from convtvm.measure.jobs import (
    ENVIRONMENT,
    Limits,
    Outcome,
    RaceJob,
    RunJob,
    failure,
    receive,
    send,
)

_RETIRED = "retired"  # the kind of a runner's last answer, whose value is the job's outcome
_TRIES = 2  # processes that may be gone before they take a job

GpuJob = RunJob | RaceJob


class GpuRunner:
    """The process, started when there is something to run, replaced when it is of no more use."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._feed: BinaryIO | None = None

    def start(self, limits: Limits) -> None:
        """Start the process if there is none, and do not wait for it: a second for the GPU."""
        if self._child is None:
            self._start(limits)

    def run(self, jobs: Sequence[GpuJob], limits: Limits) -> Iterator[tuple[int, Outcome]]:
        """(index, outcome) of every job, in order."""
        for index, job in enumerate(jobs):
            yield index, self._run(job, limits)

    def _run(self, job: GpuJob, limits: Limits) -> Outcome:
        child = self._send(job, limits)
        if child is None:
            return Outcome(None, ENVIRONMENT, "the process that measures on the GPU does not start")
        child.deadline = time.monotonic() + limits.timeout
        while not child.results:
            wait = max(0.0, child.deadline - time.monotonic())
            ready, _, _ = select.select([child.reader], [], [], wait)
            if not ready:
                self._end(kill=True)
                return Outcome(None, "run_timeout", f"no result after {limits.timeout:g} s")
            if not child.read() and not child.results:
                return crashed(self._end(kill=False))
        outcome = child.results.pop()
        if outcome.kind != _RETIRED:
            return outcome
        self._end(kill=True)
        last: Outcome = outcome.value
        return last

    def _send(self, job: GpuJob, limits: Limits) -> Child | None:
        """Give the job to the process, or to a new one if that died since its last; None if none
        takes it."""
        for _ in range(_TRIES):
            child = self._child or self._start(limits)
            assert self._feed is not None
            try:
                send(self._feed, (job, limits))
                return child
            except OSError:
                self._end(kill=True)
        return None

    def _start(self, limits: Limits) -> Child:
        feed, writer = os.pipe()
        child = self._child = Child(partial(_serve, feed, writer), limits.timeout)
        os.close(feed)
        self._feed = os.fdopen(writer, "wb", buffering=0)
        return child

    def _end(self, kill: bool) -> str:
        """Be rid of the process; how it ended."""
        child, self._child = self._child, None
        assert child is not None and self._feed is not None
        with contextlib.suppress(OSError):
            self._feed.close()
        return child.finish(kill)


def _serve(feed: int, writer: int, report: Report) -> None:
    """Answer one job after another, until one fails."""
    os.close(writer)
    requests = os.fdopen(feed, "rb")
    from convtvm.measure.gpu_trial import Device

    try:
        device: Device | Exception = Device()
    except Exception as error:
        device = error
    while True:
        try:
            job, limits = receive(requests)
        except EOFError:
            return
        if isinstance(device, Exception):
            report(Outcome(failure(ENVIRONMENT, device), _RETIRED))
            return
        try:
            outcome = device.run(job, limits)
        except Exception as error:
            outcome = failure("runtime", error)
        if outcome.kind:
            report(Outcome(outcome, _RETIRED))
            return
        report(outcome)
