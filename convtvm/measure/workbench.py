"""Builder and runner: MetaSchedule's interfaces over the zygote."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.builder import BuilderInput, BuilderResult, PyBuilder
from tvm.s_tir.meta_schedule.runner import PyRunner, PyRunnerFuture, RunnerInput, RunnerResult

from convtvm.kernels.task import Scratch, Task, decisions_of
from convtvm.measure.client import Zygote, build_limits, run_limits
from convtvm.measure.jobs import ENVIRONMENT, BuildJob, Limits, Outcome, ProblemJob, RunJob
from convtvm.measure.problems import problem_folder, write_problem

_HOPELESS = 1.5  # times the best of the task: no reason to wait for a quiet moment


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


@derived_object
class ZygoteBuilder(PyBuilder):  # type: ignore[misc]
    """Builds candidates of one task; `outcomes` keeps each library's Outcome by path."""

    def __init__(self, zygote: Zygote, task: Task, limits: Limits) -> None:
        super().__init__()
        self.zygote, self.task, self.limits = zygote, task, limits
        self.outcomes: dict[str, Outcome] = {}
        self.pack = str(zygote.fresh_path("-pack.so"))
        self.inputs = problem_folder(task.workload, task.layout, zygote.folder)
        if task.target.kind == "cpu":  # where nobody else would do it meanwhile
            write_problem(task.workload, task.layout, zygote)
        self._packing = False  # its build was asked for
        self._ready: dict[tuple[tuple[str, int], ...], str] = {}  # built ahead: decisions -> path
        self.scratch: dict[str, Scratch] = {}  # path -> workspaces that a GPU's kernel is given

    def jobs(self, many: Sequence[Mapping[str, int]]) -> list[BuildJob | ProblemJob]:
        """What is left to build for candidates with these decisions; the packing function once, and
        the arrays of the problem where nobody has asked for them."""
        packed = self.outcomes.get(self.pack)
        wanted = packed.kind == ENVIRONMENT if packed else not self._packing
        jobs: list[BuildJob | ProblemJob] = []
        if not self.inputs.exists() and str(self.inputs) not in self.zygote.asked:
            self.zygote.asked.add(str(self.inputs))
            jobs.append(ProblemJob(self.task.workload, self.task.layout, str(self.inputs)))
        if wanted:
            jobs.append(BuildJob(self.task, None, self.pack))
        self._packing = True
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
        write_problem(self.task.workload, self.task.layout, self.zygote)  # if nobody else did
        paths = [self._ready.pop(_frozen(decisions)) for decisions in many]
        return [_builder_result(path, self.outcomes[path]) for path in paths]


def _frozen(decisions: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(decisions.items()))


Owned = tuple[ZygoteBuilder, BuildJob | ProblemJob]


def jobs_ahead(benches: Sequence[tuple[Workbench, Sequence[Mapping[str, int]]]]) -> list[Owned]:
    """What is to be built for candidates of many tasks, with who asks for it."""
    return [(bench.builder, job) for bench, many in benches for job in bench.builder.jobs(many)]


def build_ahead(
    benches: Sequence[tuple[Workbench, Sequence[Mapping[str, int]]]], zygote: Zygote
) -> None:
    """Build a few candidates of many tasks together, so that all cores have work; measured
    later."""
    build_jobs(jobs_ahead(benches), zygote)


def build_jobs(owned: Sequence[Owned], zygote: Zygote) -> None:
    """Build what `jobs_ahead` has found."""
    for index, outcome in zygote.call("build", [job for _, job in owned], build_limits()):
        builder, job = owned[index]
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
            self.runner.take(*next(self.stream))
        outcome = self.runner.outcomes[self.path]
        if outcome.kind:
            return RunnerResult(None, f"{outcome.kind}: {outcome.message}")
        return RunnerResult(outcome.value[0], None)


@derived_object
class ZygoteRunner(PyRunner):  # type: ignore[misc]
    """Checks and times libraries of one task; `outcomes` keeps each one's Outcome by path."""

    def __init__(self, builder: ZygoteBuilder, limits: Limits) -> None:
        super().__init__()
        task = builder.task
        self.zygote, self.limits, self.scratch = builder.zygote, limits, builder.scratch
        shape, tolerance = task.packed_shape(), task.tolerance
        inputs, device = str(builder.inputs), task.target.kind
        self.job = RunJob("", builder.pack, shape, inputs, tolerance, device)
        self.outcomes: dict[str, Outcome] = {}
        self._best = math.inf

    def run(self, runner_inputs: list[RunnerInput]) -> list[PyRunnerFuture]:
        paths = [str(i.artifact_path) for i in runner_inputs]
        jobs = [replace(self.job, path=path, scratch=self.scratch[path]) for path in paths]
        limits = replace(self.limits, hopeless=_HOPELESS * self._best)
        answers = self.zygote.call("run", jobs, limits)
        stream = ((jobs[index].path, outcome) for index, outcome in answers)
        return [_Measurement(self, stream, job.path) for job in jobs]

    def take(self, path: str, outcome: Outcome) -> None:
        """Keep the outcome of a library, and delete the file."""
        self.outcomes[path] = outcome
        Path(path).unlink(missing_ok=True)
        if not outcome.kind:
            self._best = min([self._best, *outcome.value[0]])


class Workbench:
    """Builder and runner of one task, with the arrays that its candidates are checked on."""

    def __init__(self, task: Task, zygote: Zygote) -> None:
        self.task = task
        run = run_limits(task.target.threads, zygote.farm)
        self.builder = ZygoteBuilder(zygote, task, build_limits())
        self.runner = ZygoteRunner(self.builder, run)

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
