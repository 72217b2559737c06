"""What a child process does to build: instantiate, lower, compile, link. Imports TVM."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from convtvm.kernels import codegen
from convtvm.kernels.cuda import codegen as gpu_codegen
from convtvm.machine.targets import CompileTarget
from convtvm.measure.jobs import ENVIRONMENT, BuildJob, FunctionJob, Outcome, ProblemJob, failure
from convtvm.measure.problems import make_problem

Job = BuildJob | FunctionJob | ProblemJob


def prepare(jobs: Sequence[Job]) -> None:
    """Make once, before children are forked, what several of them need: launchers of threads."""
    for target in _linked_for(jobs):
        codegen.launcher_of(target)


def _linked_for(jobs: Sequence[Job]) -> set[CompileTarget]:
    """The targets of those that become libraries with parallel loops."""
    linked = (j for j in jobs if isinstance(j, BuildJob) and not j.path.endswith(".o"))
    return {j.task.target for j in linked if j.task.target.threads > 1}


def build(job: Job) -> Outcome:
    """Do the job; the value is the workspace in bytes, None of a problem's."""
    if isinstance(job, ProblemJob):
        return _make_problem(job)
    return _build_function(job) if isinstance(job, FunctionJob) else _build_task(job)


def _make_problem(job: ProblemJob) -> Outcome:
    try:
        make_problem(job.workload, job.layout, Path(job.path))
    except Exception as error:
        return failure(ENVIRONMENT, error)
    return Outcome()


def _build_function(job: FunctionJob) -> Outcome:
    try:
        built = codegen.build(codegen.accept_unaligned(job.func), job.symbol, job.target)
        built.write(job.path)
    except Exception as error:
        return failure("compile", error)
    return Outcome(built.workspace)


def _build_task(job: BuildJob) -> Outcome:
    kind = "instantiate"
    try:
        task = job.task
        func = task.pack() if job.decisions is None else task.instantiate(job.decisions)["main"]
        kind = "compile"
        on_gpu = job.decisions is not None and task.target.kind == "cuda"
        built = (gpu_codegen if on_gpu else codegen).build(func, job.symbol, task.target)
        if built.spills and job.strict:
            return Outcome(None, "spill", f"{built.spills} bytes of registers in memory")
        objects = job.path if job.path.endswith(".o") else job.path + ".o"
        built.write(objects)
        if objects != job.path:
            codegen.link_objects([objects], job.path, task.target)
            os.unlink(objects)
    except Exception as error:
        return failure(kind, error)
    return Outcome(built.workspace)
