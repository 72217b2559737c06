"""From records to one library: the best decisions of every task, compiled and linked together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from itertools import chain
from pathlib import Path

from convtvm import __version__
from convtvm.compute.epilogue import EPILOGUES, is_named
from convtvm.dispatch import KernelLibrary, manifest
from convtvm.dispatch.manifest import Kernel, Manifest
from convtvm.errors import ConvtvmError, WorkloadError
from convtvm.kernels import codegen
from convtvm.kernels.algorithms import select
from convtvm.kernels.task import TABLES, Task, tasks_of
from convtvm.library.choices import KEEP, Choice, check_targets, choose, keep_some, stale
from convtvm.library.objects import compile_objects, kernel_symbol, pack_symbol
from convtvm.logs import records
from convtvm.machine.targets import CompileTarget, resolve_several
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import BuildJob
from convtvm.problem.activations import FUNCTIONS
from convtvm.problem.sources import Workloads, as_names, as_workloads
from convtvm.problem.workload import ConvWorkload

# For all workloads, or for each.
Epilogues = Sequence[str] | Mapping[ConvWorkload, Sequence[str]]
_NO_NAME = re.compile(r"\W")  # what the name of a function in a library cannot have


def compile(
    workloads: Workloads,
    target: str | CompileTarget | Sequence[str | CompileTarget] = "native",
    threads: int | None = None,
    logs: str | Path | Iterable[str | Path] | None = None,
    layout: str = "NCHW",
    keep: str = "pareto",
    algorithms: str | Iterable[str] | None = None,
    epilogues: str | Iterable[str] | Mapping[ConvWorkload, Sequence[str]] = (),
) -> KernelLibrary:
    """As `convtvm.compile`, which remembers what this makes."""
    workloads, algorithms = as_workloads(workloads), as_names(algorithms, "algorithms")
    if not isinstance(epilogues, Mapping):
        epilogues = as_names(epilogues, "epilogues") or []
    if keep not in KEEP:
        raise ConvtvmError(f"keep is {keep!r}, expected one of {', '.join(KEEP)}")
    listed = chain(*epilogues.values()) if isinstance(epilogues, Mapping) else epilogues
    unknown = [e for e in listed if not is_named(e)]
    if unknown:
        known = ", ".join((*EPILOGUES, *FUNCTIONS))
        raise ConvtvmError(
            f"epilogue is {unknown[0]!r}, expected one of {known}, or add+ and a function"
        )
    if not workloads:
        raise ConvtvmError("no workloads to compile")
    targets = resolve_several(target, threads)
    codegen.linker(targets[0].spec.get("mtriple", ""))  # a refusal comes before the work
    log_paths = records.shipped_logs() if logs is None else records.as_paths(logs)
    history, damaged = records.load(log_paths)
    names = {w: w.name for w in reversed(workloads)}
    ordered = list(dict.fromkeys(workloads))
    problems, wanted = [str(p) for p in damaged], []
    for one in targets:
        if logs is not None:
            problems += filter(None, [check_targets(history, one, layout, log_paths)])
        recorded = {r.algorithm for r in history if r.target == one.name}
        choices = choose(tasks_of(ordered, one, layout, algorithms, recorded), history)
        problems += stale(history, choices)
        wanted += keep_some(choices, keep)
    for w in ordered:
        if all(c.task.workload != w for c in wanted):
            table = TABLES[targets[0].kind]
            reasons = dict.fromkeys(str(a.inapplicable(w)) for a in select(algorithms, table))
            named = ", ".join(algorithms or ())
            raise WorkloadError(
                f"none of the algorithms {named} can compute {w}: {'; '.join(reasons)}"
            )
    with Zygote(at_once=False) as zygote:
        content, made = assemble(wanted, {w: names[w] for w in ordered}, zygote, epilogues)
    library = KernelLibrary(content, made)
    library.problems = problems
    return library


def assemble(
    choices: Sequence[Choice],
    names: Mapping[ConvWorkload, str],
    zygote: Zygote,
    epilogues: Epilogues = (),
) -> tuple[bytes, list[Manifest]]:
    """The content of a library of these choices, all of one layout, and a manifest for each target.

    The targets keep their order, but those without any known time come last. Raises BuildError for
    the first kernel that does not compile.
    """
    image, kernels = _link(choices, zygote, epilogues)
    made = [
        Manifest(
            target=target.name,
            features=target.features,
            threads=target.threads,
            layout=choices[0].task.layout,
            workloads={w.key: name for w, name in names.items()},
            kernels=[kernel for choice, kernel in kernels if choice.task.target == target],
            versions={"convtvm": __version__, "tvm": metadata.version("apache-tvm")},
        )
        for target in dict.fromkeys(c.task.target for c in choices)
    ]
    made.sort(key=_is_untuned)
    return manifest.attach(image, made), made


def _is_untuned(made: Manifest) -> bool:
    """Whether nothing is known of its kernels' times; wider vectors alone make none faster."""
    return all(k.run_secs is None and k.predicted_secs is None for k in made.kernels)


def _link(
    choices: Sequence[Choice], zygote: Zygote, epilogues: Epilogues
) -> tuple[bytes, list[tuple[Choice, Kernel]]]:
    """The linked image and its kernels, best first within each workload."""
    kernels, jobs = [], []
    packs: set[str] = set()

    def add(task: Task, decisions: Mapping[str, int] | None, symbol: str) -> None:
        jobs.append(BuildJob(task, decisions, str(zygote.folder / f"{symbol}.o"), symbol))

    for choice in choices:
        task = choice.task
        pack = pack_symbol(task)
        if pack not in packs:
            packs.add(pack)
            add(task, None, pack)
        function = kernel_symbol(task, choice.decisions)
        add(task, choice.decisions, function)
        each = epilogues.get(task.workload, ()) if isinstance(epilogues, Mapping) else epilogues
        fused = {e: f"{function}_{_NO_NAME.sub('_', e)}" for e in each if e != "none"}
        for epilogue, symbol in fused.items():
            add(replace(task, epilogue=epilogue), choice.decisions, symbol)
        kernels.append((choice, _kernel(choice, function, pack, fused)))
    workspaces = compile_objects(zygote, jobs)
    finished = [
        (choice, replace(kernel, workspace_bytes=workspaces[kernel.function]))
        for choice, kernel in kernels
    ]
    image = zygote.folder / "library.so"
    codegen.link_objects([job.path for job in jobs], image, choices[0].task.target)
    finished.sort(key=lambda f: (f[1].workload, *f[0].rank(f[1].workspace_bytes)))
    return image.read_bytes(), finished


def _kernel(choice: Choice, function: str, pack: str, fused: Mapping[str, str]) -> Kernel:
    record = choice.record
    return Kernel(
        workload=choice.task.workload.key,
        algorithm=choice.task.algorithm_name,
        function=function,
        pack=pack,
        packed_shape=choice.task.packed_shape(),
        workspace_bytes=0,  # known once it is compiled
        run_secs=record.seconds if record else None,
        max_error=choice.max_error,
        decisions=choice.origin,
        source=choice.transferred_from,
        predicted_secs=choice.predicted_secs,
        epilogues=dict(fused),
        scratch=choice.task.scratch(choice.decisions),
    )
