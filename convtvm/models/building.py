"""From programs to one model library: functions compiled by all cores, weights stored once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from tvm import tirx

from convtvm import __version__
from convtvm.dispatch.model_file import ModelContent, WeightStore
from convtvm.dispatch.model_manifest import Call, FunctionFacts, ModelManifest, Value
from convtvm.errors import BuildError
from convtvm.kernels import codegen
from convtvm.library.objects import (
    Job,
    compile_objects,
    function_symbol,
    kernel_symbol,
    pack_symbol,
)
from convtvm.machine.targets import CompileTarget
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import BuildJob, FunctionJob
from convtvm.models import memory
from convtvm.models.program import ConvKernel, Function, PackKernel, Program, Step

Progress = Callable[[int, int], None]  # functions compiled, functions in all


def assemble(
    programs: Sequence[tuple[Program, CompileTarget]],
    zygote: Zygote,
    *,
    facts: Mapping[str, Any] | None = None,
    batched: bool = False,
    progress: Progress = lambda done, total: None,
) -> ModelContent:
    """The model library of these programs, one for each target, the best first.

    Raises BuildError for an unsound program, or naming the first function that does not compile.
    """
    for program, _ in programs:
        program.check()
    image, plans = _compile([_Plan(p, t) for p, t in programs], zygote, progress)
    store = WeightStore()
    targets = [
        _manifest(plan, store, {} if facts is None else facts, batched=batched) for plan in plans
    ]
    return ModelContent(image, store.weights, targets)


@dataclass
class _Plan:
    """A program on its way into a library: the symbols of its functions, and facts about these."""

    program: Program
    target: CompileTarget
    symbols: dict[str, str] = field(default_factory=dict)
    facts: dict[str, FunctionFacts] = field(default_factory=dict)


def _compile(
    plans: Sequence[_Plan], zygote: Zygote, progress: Progress
) -> tuple[bytes, Sequence[_Plan]]:
    """The linked image, and the plans with symbols and facts. Equal functions are compiled once."""
    jobs: dict[str, Job] = {}
    abouts: dict[str, str] = {}
    for plan in plans:
        for name in _used(plan.program):
            function = plan.program.functions[name]
            symbol = plan.symbols[name] = _symbol(name, function, plan.target)
            jobs[symbol] = _job(function, plan.target, symbol, zygote)
            abouts[symbol] = _about(function)
    if not jobs:
        raise BuildError("the model computes nothing: its outputs are inputs or constants")
    done: list[Job] = []

    def compiled(job: Job) -> None:
        done.append(job)
        progress(len(done), len(jobs))

    workspaces = compile_objects(zygote, list(jobs.values()), compiled)
    for plan in plans:
        plan.facts = {s: FunctionFacts(workspaces[s], abouts[s]) for s in plan.symbols.values()}
    path = zygote.folder / "model.so"
    codegen.link_objects([job.path for job in jobs.values()], path, plans[0].target)
    return path.read_bytes(), plans


def _used(program: Program) -> list[str]:
    """The functions that are called, in order."""
    return list(dict.fromkeys(step.function for step in (*program.packs, *program.steps)))


def _symbol(name: str, function: Function, target: CompileTarget) -> str:
    """The same for functions that compile to the same code."""
    if isinstance(function, ConvKernel):
        return kernel_symbol(function.task, function.decisions)
    if isinstance(function, PackKernel):
        return pack_symbol(function.task)
    prefix = "f_" + re.sub(r"\W", "_", name, flags=re.ASCII)[:60]
    return function_symbol(prefix, function, target)


def _job(function: Function, target: CompileTarget, symbol: str, zygote: Zygote) -> Job:
    path = str(zygote.folder / f"{symbol}.o")
    if isinstance(function, tirx.PrimFunc):
        return FunctionJob(function, target, path, symbol)
    decisions = function.decisions if isinstance(function, ConvKernel) else None
    return BuildJob(function.task, decisions, path, symbol)


def _about(function: Function) -> str:
    """In words, what a kernel of a task computes and how; nothing of other functions."""
    if isinstance(function, tirx.PrimFunc):
        return ""
    task = function.task
    verb = "packs the weight of " if isinstance(function, PackKernel) else ""
    return f"{verb}{task.workload.key} by {task.algorithm_name}, {task.layout}"


def _manifest(
    plan: _Plan, store: WeightStore, facts: Mapping[str, Any], *, batched: bool
) -> ModelManifest:
    program = plan.program
    offsets, size = memory.plan(program)
    used = {program.root(v) for step in program.steps for v in step.reads}
    used |= {v for step in program.packs for v in step.reads}
    used |= {program.root(v) for v in program.outputs.values()}
    return ModelManifest(
        target=plan.target.name,
        features=plan.target.features,
        threads=plan.target.threads,
        values=[Value(t.dtype, t.shape) for t in program.values],
        inputs=dict(program.inputs),
        outputs=dict(program.outputs),
        constants={v: store.add(a) for v, a in sorted(program.constants.items()) if v in used},
        packed=tuple(sorted(v for step in program.packs for v in step.outputs)),
        offsets=offsets,
        arena_bytes=size,
        aliases=dict(program.aliases),
        packs=[_call(plan, step) for step in program.packs],
        steps=[_call(plan, step) for step in program.steps],
        functions=plan.facts,
        batched=batched,
        facts=facts,
        versions={"convtvm": __version__, "tvm": metadata.version("apache-tvm")},
    )


def _call(plan: _Plan, step: Step) -> Call:
    return Call(step.label, plan.symbols[step.function], tuple(plan.program.arguments(step)))
