"""From records to one library: the best decisions of every task, compiled and linked together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from convtvm import __version__, codegen, manifest, records
from convtvm.cpu import physical_cores
from convtvm.dispatch import KernelLibrary
from convtvm.errors import BuildError, ConvtvmError, LogError, WorkloadError
from convtvm.jobs import BuildJob, Limits
from convtvm.manifest import Kernel, Manifest
from convtvm.measure import BUILD_SECONDS, Zygote
from convtvm.records import TuningRecord
from convtvm.targets import CompileTarget, resolve
from convtvm.task import Task, tasks_of
from convtvm.workload import ConvWorkload

KEEP = ("best", "pareto", "all")


@dataclass(frozen=True)
class _Choice:
    """A task with the record to build it from, or None for its default decisions."""

    task: Task
    record: TuningRecord | None

    @property
    def decisions(self) -> dict[str, int]:
        return dict(self.record.decisions if self.record else self.task.space.default)


def compile(
    workloads: Sequence[ConvWorkload],
    target: str | CompileTarget = "native",
    threads: int | None = None,
    logs: Iterable[str | Path] | None = None,
    layout: str = "NCHW",
    keep: str = "pareto",
    algorithms: Sequence[str] | None = None,
) -> KernelLibrary:
    """Compile every workload by its best recorded decisions, else by the default ones.

    `logs` are files of records; without any, those that came with convtvm are used, and with an
    empty list none. `keep` says which candidates go in: `best` (the fastest), `pareto` (those that
    some limit on workspace or error could make the choice) or `all`. Raises LogError if the logs
    hold records for other targets only, BuildError if a kernel does not compile.
    """
    if keep not in KEEP:
        raise ConvtvmError(f"keep is {keep!r}, expected one of {', '.join(KEEP)}")
    if not workloads:
        raise ConvtvmError("no workloads to compile")
    resolved = target if isinstance(target, CompileTarget) else resolve(target, threads)
    codegen.linker(resolved.spec.get("mtriple", ""))  # a refusal comes before the work
    log_paths = records.shipped_logs() if logs is None else [Path(p) for p in logs]
    history, problems = records.load(log_paths)
    if logs is not None:
        _check_targets(history, resolved, layout, log_paths)
    distinct = {w: w.name for w in reversed(workloads)}
    ordered = [w for w in dict.fromkeys(workloads)]
    choices = _choose(tasks_of(ordered, resolved, layout, algorithms), history)
    without = [w for w in ordered if all(c.task.workload != w for c in choices)]
    if without:
        raise WorkloadError(
            f"none of the algorithms {', '.join(algorithms or ())} can compute {without[0]}"
        )
    image, kernels = _build(choices, keep)
    library_manifest = Manifest(
        target=resolved.name,
        features=resolved.features,
        threads=resolved.threads,
        layout=layout,
        workloads={w.key: distinct[w] for w in ordered},
        kernels=kernels,
        versions={"convtvm": __version__, "tvm": metadata.version("apache-tvm")},
    )
    library = KernelLibrary(manifest.attach(image, library_manifest), library_manifest)
    library.problems = [str(p) for p in problems] + _stale(history, choices)
    return library


def _choose(tasks: Sequence[Task], history: Sequence[TuningRecord]) -> list[_Choice]:
    """The best record of each task; defaults that are known to fail stay out if others serve."""
    choices: list[_Choice] = []
    doubtful: list[_Choice] = []
    for task in tasks:
        made = records.usable(history, task)
        choice = _Choice(task, records.best(made))
        failed = any(dict(r.decisions) == task.space.default and r.error for r in made)
        (doubtful if choice.record is None and failed else choices).append(choice)
    served = {c.task.workload for c in choices}
    return choices + [c for c in doubtful if c.task.workload not in served]


def _check_targets(
    history: Sequence[TuningRecord], target: CompileTarget, layout: str, paths: Sequence[Path]
) -> None:
    """A log that is about something else entirely is a mistake worth stopping for."""
    wanted = (target.name, target.threads, layout)
    found = {(r.target, r.threads, r.layout) for r in history}
    if found and wanted not in found:
        listed = "; ".join(f"{t} with {n} threads, {lay}" for t, n, lay in sorted(found))
        raise LogError(
            f"{', '.join(map(str, paths))}: no record for {target.name} with {target.threads} "
            f"threads, {layout}; the records are for {listed}"
        )


def _stale(history: Sequence[TuningRecord], choices: Sequence[_Choice]) -> list[str]:
    """Warnings about records that today's templates no longer accept."""
    warnings = []
    for choice in choices:
        task = choice.task
        made = [r for r in history if r.task_key == task.key]
        unused = len(made) - len(records.usable(made, task))
        if unused:
            warnings.append(
                f"{unused} records of {task.workload} by {task.algorithm_name} were made by "
                f"another version of its template (now {task.template_version}); "
                "not used, tune again"
            )
    return warnings


def _build(choices: Sequence[_Choice], keep: str) -> tuple[bytes, list[Kernel]]:
    """The linked image and its kernels, best first within each workload."""
    wanted = list(choices)
    if keep != "all":
        wanted = _fastest(choices) if keep == "best" else _undominated(choices)
    with Zygote() as zygote:
        kernels, jobs = [], []
        packs: dict[tuple[object, ...], str] = {}
        for index, choice in enumerate(wanted):
            task = choice.task
            pack_key = (task.algorithm_name, *task.workload.weight_shape, task.workload.groups)
            if pack_key not in packs:
                packs[pack_key] = f"pack_{len(packs)}"
                path = str(zygote.folder / f"{packs[pack_key]}.o")
                jobs.append(BuildJob(task, None, path, packs[pack_key]))
            function = f"conv_{index}_{task.algorithm_name.replace(':', '_')}"
            jobs.append(
                BuildJob(task, choice.decisions, str(zygote.folder / f"{function}.o"), function)
            )
            kernels.append((choice, function, packs[pack_key]))
        workspaces = _compile_objects(zygote, jobs)
        finished = [
            _kernel(choice, function, pack, workspaces[function])
            for choice, function, pack in kernels
        ]
        image = zygote.folder / "library.so"
        codegen.link_objects([job.path for job in jobs], image, choices[0].task.target)
        ranks = {function: _rank(choice, workspaces[function]) for choice, function, _ in kernels}
        finished.sort(key=lambda k: (k.workload, *ranks[k.function]))
        return image.read_bytes(), finished


def _compile_objects(zygote: Zygote, jobs: Sequence[BuildJob]) -> dict[str, int]:
    """Compile all jobs; workspace bytes by symbol. Raises BuildError for the first failure."""
    workspaces: dict[str, int] = {}
    limits = Limits(workers=physical_cores(), timeout=4 * BUILD_SECONDS)
    for index, outcome in zygote.call("build", jobs, limits):
        job = jobs[index]
        if outcome.kind:
            raise BuildError(
                f"{job.task.workload} by {job.task.algorithm_name} does not compile: "
                f"{outcome.message}"
            )
        workspaces[job.symbol] = outcome.value
    return workspaces


def _kernel(choice: _Choice, function: str, pack: str, workspace: int) -> Kernel:
    record = choice.record
    return Kernel(
        workload=choice.task.workload.key,
        algorithm=choice.task.algorithm_name,
        function=function,
        pack=pack,
        packed_shape=choice.task.packed_shape(),
        workspace_bytes=workspace,
        run_secs=record.seconds if record else None,
        max_error=record.max_error if record else None,
        decisions="tuned" if record else "default",
    )


def _rank(choice: _Choice, workspace: int = 0) -> tuple[float, float]:
    """Sort key: measured time, then workspace; the unmeasured follow by their multiplications."""
    if choice.record:
        return choice.record.seconds, workspace
    return float("inf"), choice.task.algorithm.multiplications(choice.task.workload)


def _fastest(choices: Sequence[_Choice]) -> list[_Choice]:
    best: dict[ConvWorkload, _Choice] = {}
    for choice in choices:
        current = best.get(choice.task.workload)
        if current is None or _rank(choice) < _rank(current):
            best[choice.task.workload] = choice
    return list(best.values())


def _undominated(choices: Sequence[_Choice]) -> list[_Choice]:
    return [c for c in choices if not any(_dominates(other, c) for other in choices)]


def _dominates(a: _Choice, b: _Choice) -> bool:
    """Whether no limit on workspace or error could make `b` the choice while `a` is there.

    A candidate of which something is unknown neither dominates nor is dominated.
    """
    if a is b or a.task.workload != b.task.workload or a.record is None or b.record is None:
        return False
    left, right = ((r.seconds, r.workspace_bytes, r.max_error) for r in (a.record, b.record))
    if None in left or None in right:
        return False
    return left != right and all(x <= y for x, y in zip(left, right, strict=True))  # type: ignore[operator]
