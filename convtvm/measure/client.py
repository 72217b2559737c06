"""Client of the helper process that builds and measures candidates: start, ask, restart, end."""

from __future__ import annotations

import contextlib
import math
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, cast

from convtvm.errors import BuildError, EnvironmentProblem
from convtvm.machine import interpreter
from convtvm.machine.cpu import physical_cores
from convtvm.measure import places
from convtvm.measure.jobs import ENVIRONMENT, STOPPED, Limits, Outcome, receive, send
from convtvm.measure.remote import Farm, Machine

BUILD_SECONDS = 30.0  # a candidate that takes longer is not worth having
RUN_SECONDS = 20.0

_SERVE = "from convtvm.measure import zygote\nzygote.serve(sys.argv[1])"


class Zygote:
    """Client of one zygote process; restarts it if it dies. Use as a context manager.

    What is not finished at `deadline`, a time of the monotonic clock, is given up. Candidates run
    on the devices of `farm`, here without one. It takes a second or two to start, when it is first
    called unless `at_once`; after `start_ahead`, while the caller does other things. Its folder has
    `room` bytes. Raises EnvironmentProblem.
    """

    def __init__(
        self,
        deadline: float = math.inf,
        farm: Farm | None = None,
        at_once: bool = True,
        room: int = places.ROOM,
    ) -> None:
        self.deadline, self.farm = deadline, farm
        self.folder = places.workplace(room)
        self.asked: set[str] = set()  # folders of arrays that somebody makes or has made
        self._count = 0
        self._closed = self._stale = False
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        try:
            if at_once:
                self._start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def start_ahead(self) -> None:
        """Start the process, and do not wait until it can be called."""
        if self._process is None:
            self._process = self._spawn()

    def _start(self) -> None:
        process = self._process = self._process or self._spawn()
        try:
            receive(_pipe(process.stdout))
        except EOFError:
            raise BuildError("the build helper did not start; see its message above") from None
        self._is_ready = True

    def _spawn(self) -> subprocess.Popen[bytes]:
        # numpy's BLAS would start threads, and forking is safe only without any.
        env = dict(os.environ, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
        home = str(Path(__file__).parents[2])  # the helper runs the code that runs here
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
        return subprocess.Popen(
            interpreter.command(_SERVE, str(self.folder)),
            bufsize=0,  # so that select sees all there is to read
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )

    def call(self, kind: str, jobs: Sequence[Any], limits: Limits) -> Iterator[tuple[int, Outcome]]:
        """(index, outcome) of every job, as each is finished.

        The kind is `stopped` for those that were not finished when the time was over.
        """
        if not jobs:
            return
        missing = set(range(len(jobs)))
        lost = Outcome(None, ENVIRONMENT, "the build helper died")
        late = Outcome(None, STOPPED, "the time was over")
        if not self._is_ready:
            self._start()
        elif self._is_needed():
            self._restart()
        elif self._stale:  # what it says next answers an earlier call, whose files are gone
            yield from ((index, late) for index in missing)
            return
        process = self._process
        assert process is not None
        try:
            send(_pipe(process.stdin), (kind, list(jobs), limits))
            while missing:
                if not self._answers(process):
                    lost = late
                    break
                index, outcome = receive(_pipe(process.stdout))
                missing.discard(index)
                yield index, outcome
        except (EOFError, OSError, ValueError):  # dead, or closed by another thread
            pass
        finally:
            self._stale = bool(missing)  # dead, or busy with what nobody waits for
            if self._is_needed():
                self._restart()
        for index in sorted(missing):
            yield index, lost

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether there is an answer to read before the time is over."""
        wait = None if math.isinf(self.deadline) else max(0.0, self.deadline - time.monotonic())
        return bool(select.select([_pipe(process.stdout)], [], [], wait)[0])

    def _is_needed(self) -> bool:
        """Whether to start a new helper in the place of a useless one."""
        return self._stale and not self._closed and time.monotonic() < self.deadline

    def _restart(self) -> None:
        assert self._process is not None
        self._process.kill()  # not asked to end: the files that it built are still needed
        self._stop()
        self.folder.mkdir(exist_ok=True)
        self._process, self._is_ready = None, False
        self._start()
        self._stale = False

    def probe(self) -> list[Machine]:
        """What the farm's devices are.

        Raises EnvironmentProblem if one does not answer.
        """
        assert self.farm is not None
        limits = run_limits(1, self.farm)
        found = []
        for _, outcome in self.call("probe", [None] * self.farm.devices, limits):
            if outcome.kind:
                raise EnvironmentProblem(
                    f"a device with key {self.farm.key!r} at {self.farm.address} does not answer: "
                    f"{outcome.message}"
                )
            found.append(outcome.value)
        return found

    def fresh_path(self, suffix: str) -> Path:
        self._count += 1
        return self.folder / f"{self._count}{suffix}"

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(OSError):
            _pipe(process.stdin).close()
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _pipe(process.stdout).close()

    def close(self) -> None:
        self._closed = True
        self._stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Zygote:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _pipe(stream: IO[bytes] | None) -> BinaryIO:
    assert stream is not None
    return cast(BinaryIO, stream)


def build_limits() -> Limits:
    return Limits(workers=physical_cores(), timeout=BUILD_SECONDS)


def run_limits(threads: int, farm: Farm | None) -> Limits:
    limits = Limits(threads=threads, timeout=RUN_SECONDS)
    if farm is None:
        return limits
    return replace(limits, workers=farm.devices, tracker=farm.address, key=farm.key)
