"""What a child process does to build: instantiate, lower, compile, link. Imports TVM."""

from __future__ import annotations

import os
from collections.abc import Sequence

from convtvm.kernels import codegen
from convtvm.kernels.cuda import codegen as gpu_codegen
from convtvm.machine.targets import CompileTarget
from convtvm.measure.jobs import BuildJob, FunctionJob, Outcome, failure


def prepare(jobs: Sequence[BuildJob | FunctionJob]) -> None:
    """Make once, before children are forked, what several of them need: launchers of threads."""
    for target in _linked_for(jobs):
        codegen.launcher_of(target)


def _linked_for(jobs: Sequence[BuildJob | FunctionJob]) -> set[CompileTarget]:
    """The targets of those that become libraries with parallel loops."""
    linked = (j for j in jobs if isinstance(j, BuildJob) and not j.path.endswith(".o"))
    return {j.task.target for j in linked if j.task.target.threads > 1}


def build(job: BuildJob | FunctionJob) -> Outcome:
    """Do the job; the value is the workspace in bytes."""
    return _build_function(job) if isinstance(job, FunctionJob) else _build_task(job)


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
