"""Builder and runner: MetaSchedule's interfaces over the zygote, plus the problem they measure
on."""

from __future__ import annotations

import contextlib
import math
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Literal, cast

import numpy as np
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.builder import BuilderInput, BuilderResult, PyBuilder
from tvm.s_tir.meta_schedule.runner import PyRunner, PyRunnerFuture, RunnerInput, RunnerResult

from convtvm.cpu import physical_cores
from convtvm.errors import BuildError, EnvironmentProblem
from convtvm.jobs import STOPPED, BuildJob, Limits, Outcome, RunJob, receive, send
from convtvm.reference import conv2d_reference, random_inputs
from convtvm.remote import Farm
from convtvm.task import Scratch, Task, decisions_of
from convtvm.workload import ConvWorkload

BUILD_SECONDS = 30.0  # a candidate that takes longer is not worth having
RUN_SECONDS = 20.0


@dataclass(frozen=True)
class Trial:
    """What became of one candidate: times and measured facts, or the kind and text of its error."""

    run_secs: Sequence[float] = ()
    max_error: float | None = None
    workspace_bytes: int | None = None
    kind: str = ""
    message: str = ""
    disturbed: bool = False  # no sample was taken while nothing else ran

    @property
    def seconds(self) -> float:
        return statistics.median(self.run_secs) if self.run_secs else math.inf


class Zygote:
    """Client of one zygote process; restarts it if it dies. Use as a context manager.

    What is not finished at `deadline`, a time of the monotonic clock, is given up. Candidates run
    on the devices of `farm`, here without one.
    """

    def __init__(self, deadline: float = math.inf, farm: Farm | None = None) -> None:
        self.deadline, self.farm = deadline, farm
        self.folder = Path(tempfile.mkdtemp(prefix="convtvm-", dir=shared_memory()))
        self._count = 0
        self._closed = self._stale = False
        try:
            self._start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _start(self) -> None:
        # numpy's BLAS would start threads, and forking is safe only without any.
        env = dict(os.environ, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
        home = str(Path(__file__).parents[1])  # the helper runs the code that runs here
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "convtvm.zygote", str(self.folder)]
        self._process = subprocess.Popen(
            command,
            bufsize=0,  # so that select sees all there is to read
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
        try:
            receive(_pipe(self._process.stdout))
        except EOFError:
            raise BuildError("the build helper did not start; see its message above") from None

    def call(self, kind: str, jobs: Sequence[Any], limits: Limits) -> Iterator[tuple[int, Outcome]]:
        """(index, outcome) of every job, as each is finished.

        The kind is `stopped` for those that were not finished when the time was over.
        """
        if not jobs:
            return
        missing = set(range(len(jobs)))
        lost = Outcome(None, "crash", "the build helper died")
        if self._is_needed():
            self._restart()
        try:
            send(_pipe(self._process.stdin), (kind, list(jobs), limits))
            while missing:
                if not self._answers():
                    lost = Outcome(None, STOPPED, "the time was over")
                    break
                index, outcome = receive(_pipe(self._process.stdout))
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

    def _answers(self) -> bool:
        """Whether there is an answer to read before the time is over."""
        wait = None if math.isinf(self.deadline) else max(0.0, self.deadline - time.monotonic())
        return bool(select.select([_pipe(self._process.stdout)], [], [], wait)[0])

    def _is_needed(self) -> bool:
        """Whether to start a new helper in the place of a useless one."""
        return self._stale and not self._closed and time.monotonic() < self.deadline

    def _restart(self) -> None:
        self._process.kill()  # not asked to end: the files that it built are still needed
        self._stop()
        self.folder.mkdir(exist_ok=True)
        self._start()
        self._stale = False

    def probe(self) -> list[str]:
        """The CPUs of the farm's devices, by LLVM's names, empty where a device cannot tell.

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
        with contextlib.suppress(OSError):
            _pipe(self._process.stdin).close()
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _pipe(self._process.stdout).close()

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


def shared_memory() -> Path | None:
    """A folder that lives in memory, if this machine has one."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else None


def _pipe(stream: IO[bytes] | None) -> BinaryIO:
    assert stream is not None
    return cast(BinaryIO, stream)


def write_problem(
    workload: ConvWorkload,
    layout: str,
    zygote: Zygote,
    seed: int = 0,
    kind: Literal["normal", "integer"] = "normal",
) -> Path:
    """A folder with the arrays that every kernel of `workload` is checked and timed on.

    data, weight, bias and the float64 reference, as .npy files, made once per zygote; `kind` is
    that of random_inputs.
    """
    folder = zygote.folder / f"{workload.key}-{layout}-{seed}-{kind}"
    if not folder.exists():
        data, weight, bias = random_inputs(workload, seed, layout, kind)
        reference = conv2d_reference(workload, data, weight, bias, layout)
        folder.mkdir()
        arrays = {"data": data, "weight": weight, "bias": bias, "reference": reference}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
    return folder


@derived_object
class ZygoteBuilder(PyBuilder):  # type: ignore[misc]
    """Builds candidates of one task; `outcomes` keeps each library's Outcome by path."""

    def __init__(self, zygote: Zygote, task: Task, limits: Limits) -> None:
        super().__init__()
        self.zygote, self.task, self.limits = zygote, task, limits
        self.outcomes: dict[str, Outcome] = {}
        self.pack = str(zygote.fresh_path("-pack.so"))
        self._ready: dict[tuple[tuple[str, int], ...], str] = {}  # built ahead: decisions -> path
        self.scratch: dict[str, Scratch] = {}  # path -> workspaces that a GPU's kernel is given

    def jobs(self, many: Sequence[Mapping[str, int]]) -> list[BuildJob]:
        """What is left to build for candidates with these decisions; the packing function once."""
        jobs = [] if self.pack in self.outcomes else [BuildJob(self.task, None, self.pack)]
        for decisions in many:
            path = str(self.zygote.fresh_path(".so"))
            if self._ready.setdefault(_frozen(decisions), path) == path:
                jobs.append(BuildJob(self.task, decisions, path, strict=True))
                self.scratch[path] = self.task.scratch(decisions)
        return jobs

    def build(self, build_inputs: list[BuilderInput]) -> list[BuilderResult]:
        many = [decisions_of(i.mod) for i in build_inputs]
        jobs = self.jobs(many)
        for index, outcome in self.zygote.call("build", jobs, self.limits):
            self.outcomes[jobs[index].path] = outcome
        paths = [self._ready.pop(_frozen(decisions)) for decisions in many]
        return [_builder_result(path, self.outcomes[path]) for path in paths]


def _frozen(decisions: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(decisions.items()))


def build_ahead(benches: Sequence[tuple[Workbench, Mapping[str, int]]], zygote: Zygote) -> None:
    """Build one candidate of many tasks together, so that all cores have work; measured later."""
    owners = []
    for bench, decisions in benches:
        owners += [(bench.builder, job) for job in bench.builder.jobs([decisions])]
    for index, outcome in zygote.call("build", [job for _, job in owners], build_limits()):
        builder, job = owners[index]
        builder.outcomes[job.path] = outcome


def _builder_result(path: str, outcome: Outcome) -> BuilderResult:
    if outcome.kind:
        return BuilderResult(path, f"{outcome.kind}: {outcome.message}")
    return BuilderResult(path, None)


@derived_object
class _Measurement(PyRunnerFuture):  # type: ignore[misc]
    """Waits for one library's outcome; several devices answer in any order."""

    def __init__(self, runner: Any, stream: Iterator[tuple[str, Outcome]], path: str) -> None:
        super().__init__()
        self.runner, self.stream, self.path = runner, stream, path

    def done(self) -> bool:
        return self.path in self.runner.outcomes

    def result(self) -> RunnerResult:
        while not self.done():
            path, self.runner.outcomes[path] = next(self.stream)
            Path(path).unlink(missing_ok=True)
        outcome = self.runner.outcomes[self.path]
        if outcome.kind:
            return RunnerResult(None, f"{outcome.kind}: {outcome.message}")
        return RunnerResult(outcome.value[0], None)


@derived_object
class ZygoteRunner(PyRunner):  # type: ignore[misc]
    """Checks and times libraries of one task; `outcomes` keeps each one's Outcome by path."""

    def __init__(self, builder: ZygoteBuilder, inputs: str, limits: Limits) -> None:
        super().__init__()
        task = builder.task
        self.zygote, self.limits, self.scratch = builder.zygote, limits, builder.scratch
        shape, tolerance = task.packed_shape(), task.algorithm.tolerance
        self.job = RunJob("", builder.pack, shape, inputs, tolerance, device=task.target.kind)
        self.outcomes: dict[str, Outcome] = {}

    def run(self, runner_inputs: list[RunnerInput]) -> list[PyRunnerFuture]:
        paths = [str(i.artifact_path) for i in runner_inputs]
        jobs = [replace(self.job, path=path, scratch=self.scratch[path]) for path in paths]
        answers = self.zygote.call("run", jobs, self.limits)
        stream = ((jobs[index].path, outcome) for index, outcome in answers)
        return [_Measurement(self, stream, job.path) for job in jobs]


def build_limits() -> Limits:
    return Limits(workers=physical_cores(), timeout=BUILD_SECONDS)


def run_limits(threads: int, farm: Farm | None) -> Limits:
    limits = Limits(threads=threads, timeout=RUN_SECONDS)
    if farm is None:
        return limits
    return replace(limits, workers=farm.devices, tracker=farm.address, key=farm.key)


class Workbench:
    """Builder and runner of one task, with the arrays that its candidates are checked on."""

    def __init__(self, task: Task, zygote: Zygote) -> None:
        self.task = task
        inputs = write_problem(task.workload, task.layout, zygote)
        run = run_limits(task.target.threads, zygote.farm)
        self.builder = ZygoteBuilder(zygote, task, build_limits())
        self.runner = ZygoteRunner(self.builder, str(inputs), run)

    def measure(self, candidates: Sequence[Any]) -> Iterator[tuple[RunnerResult, Trial]]:
        """Build all MeasureCandidates, then check and time one after another, in order."""
        target = self.task.target.tvm
        built = self.builder.build([BuilderInput(c.sch.mod, target) for c in candidates])
        pairs = zip(candidates, built, strict=True)
        inputs = [
            RunnerInput(b.artifact_path, "cpu", c.args_info) for c, b in pairs if not b.error_msg
        ]
        futures = iter(self.runner.run(inputs))
        for result in built:
            if result.error_msg:
                outcome = self.builder.outcomes[str(result.artifact_path)]
                yield (
                    RunnerResult(None, result.error_msg),
                    Trial(kind=outcome.kind, message=outcome.message),
                )
            else:
                yield next(futures).result(), self._trial(str(result.artifact_path))

    def _trial(self, path: str) -> Trial:
        return trial_of(self.runner.outcomes[path], self.builder.outcomes[path].value)


def trial_of(outcome: Outcome, workspace: int | None) -> Trial:
    """What a run came to, with what its build has said of the workspace."""
    if outcome.kind:
        return Trial(workspace_bytes=workspace, kind=outcome.kind, message=outcome.message)
    run_secs, max_error, clean = outcome.value
    return Trial(run_secs, max_error, workspace, disturbed=not clean)
