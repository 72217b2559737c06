"""From records to one library: the best decisions of every task, compiled and linked together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from convtvm import __version__, codegen, manifest, prediction, records
from convtvm.compute.epilogue import EPILOGUES
from convtvm.cpu import physical_cores
from convtvm.dispatch import KernelLibrary
from convtvm.errors import BuildError, ConvtvmError, LogError, WorkloadError
from convtvm.manifest import Kernel, Manifest
from convtvm.measure.client import BUILD_SECONDS, Zygote
from convtvm.measure.jobs import BuildJob, Limits
from convtvm.records import TuningRecord
from convtvm.targets import CompileTarget, resolve
from convtvm.task import Task, tasks_of
from convtvm.workload import ConvWorkload

KEEP = ("best", "pareto", "all")


@dataclass(frozen=True)
class Choice:
    """A task with the record to build it from; without one, what the log says of its like."""

    task: Task
    record: TuningRecord | None
    transferred: Mapping[str, int] | None = None
    predicted_secs: float | None = None

    @property
    def decisions(self) -> dict[str, int]:
        if self.record:
            return dict(self.record.decisions)
        return dict(self.transferred or self.task.space.default)

    @property
    def origin(self) -> str:
        return "tuned" if self.record else "transferred" if self.transferred else "default"


def compile(
    workloads: Sequence[ConvWorkload],
    target: str | CompileTarget = "native",
    threads: int | None = None,
    logs: Iterable[str | Path] | None = None,
    layout: str = "NCHW",
    keep: str = "pareto",
    algorithms: Sequence[str] | None = None,
    epilogues: Sequence[str] = (),
) -> KernelLibrary:
    """Compile every workload by its best recorded decisions, else by the default ones.

    `logs` are files of records; without any, those that came with convtvm are used, and with an
    empty list none. `keep` says which candidates go in: `best` (the fastest), `pareto` (those that
    some limit on workspace or error could make the choice) or `all`. `epilogues` are compiled for
    every kernel besides the plain one: `clip` (ReLU and other bounds), `add` (a residual, then
    bounds). A workload without records gets the decisions of the nearest one that has, and a
    predicted time. Raises LogError if the logs hold records for other targets only, BuildError if
    a kernel does not compile.
    """
    if keep not in KEEP:
        raise ConvtvmError(f"keep is {keep!r}, expected one of {', '.join(KEEP)}")
    unknown = [e for e in epilogues if e not in EPILOGUES]
    if unknown:
        raise ConvtvmError(f"epilogue is {unknown[0]!r}, expected one of {', '.join(EPILOGUES)}")
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
    wanted = choices
    if keep != "all":
        wanted = _fastest(choices) if keep == "best" else _undominated(choices)
    with Zygote() as zygote:
        content, made = assemble(wanted, {w: distinct[w] for w in ordered}, zygote, epilogues)
    library = KernelLibrary(content, made)
    library.problems = [str(p) for p in problems] + _stale(history, choices)
    return library


def _choose(tasks: Sequence[Task], history: Sequence[TuningRecord]) -> list[Choice]:
    """The best record of each task; defaults that are known to fail stay out if others serve."""
    choices: list[Choice] = []
    doubtful: list[Choice] = []
    for task in tasks:
        made = records.usable(history, task)
        choice = Choice(task, records.best(made))
        failed = any(dict(r.decisions) == task.space.default and r.error for r in made)
        (doubtful if choice.record is None and failed else choices).append(choice)
    served = {c.task.workload for c in choices}
    chosen = choices + [c for c in doubtful if c.task.workload not in served]
    return _informed(chosen, history)


def _informed(choices: Sequence[Choice], history: Sequence[TuningRecord]) -> list[Choice]:
    """The choices, those without a record with decisions and times from similar workloads."""
    if all(c.record for c in choices):
        return list(choices)
    task = choices[0].task
    target = task.target
    near = prediction.best_records(
        prediction.parsable(history), target.name, target.threads, task.layout, target.kind
    )
    model = prediction.TimeModel.learn(near, target.kind)
    informed = []
    for choice in choices:
        if choice.record is None:
            task = choice.task
            name = task.algorithm_name
            secs = model.seconds(task.workload, [name]).get(name) if model else None
            decisions = prediction.transferred(task, near.values())
            choice = replace(choice, transferred=decisions, predicted_secs=secs)
        informed.append(choice)
    return informed


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


def _stale(history: Sequence[TuningRecord], choices: Sequence[Choice]) -> list[str]:
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


def assemble(
    choices: Sequence[Choice],
    names: Mapping[ConvWorkload, str],
    zygote: Zygote,
    epilogues: Sequence[str] = (),
) -> tuple[bytes, Manifest]:
    """The content of a library of these choices, all of one target and layout, and its manifest.

    Raises BuildError for the first kernel that does not compile.
    """
    task = choices[0].task
    image, kernels = _link(choices, zygote, epilogues)
    made = Manifest(
        target=task.target.name,
        features=task.target.features,
        threads=task.target.threads,
        layout=task.layout,
        workloads={w.key: name for w, name in names.items()},
        kernels=kernels,
        versions={"convtvm": __version__, "tvm": metadata.version("apache-tvm")},
    )
    return manifest.attach(image, made), made


def function_name(index: int, task: Task) -> str:
    """The kernel of the choice at `index`."""
    return f"conv_{index}_{task.algorithm_name.replace(':', '_')}"


def _link(
    choices: Sequence[Choice], zygote: Zygote, epilogues: Sequence[str]
) -> tuple[bytes, list[Kernel]]:
    """The linked image and its kernels, best first within each workload."""
    kernels, jobs = [], []
    packs: dict[tuple[object, ...], str] = {}

    def add(task: Task, decisions: Mapping[str, int] | None, symbol: str) -> None:
        jobs.append(BuildJob(task, decisions, str(zygote.folder / f"{symbol}.o"), symbol))

    for index, choice in enumerate(choices):
        task = choice.task
        pack_key = (task.algorithm_name, *task.workload.weight_shape, task.workload.groups)
        if pack_key not in packs:
            packs[pack_key] = f"pack_{len(packs)}"
            add(task, None, packs[pack_key])
        function = function_name(index, task)
        add(task, choice.decisions, function)
        fused = {e: f"{function}_{e}" for e in epilogues if e != "none"}
        for epilogue, symbol in fused.items():
            add(replace(task, epilogue=epilogue), choice.decisions, symbol)
        kernels.append((choice, _kernel(choice, function, packs[pack_key], fused)))
    workspaces = _compile_objects(zygote, jobs)
    finished = [
        (choice, replace(kernel, workspace_bytes=workspaces[kernel.function]))
        for choice, kernel in kernels
    ]
    image = zygote.folder / "library.so"
    codegen.link_objects([job.path for job in jobs], image, choices[0].task.target)
    finished.sort(key=lambda f: (f[1].workload, *_rank(f[0], f[1].workspace_bytes)))
    return image.read_bytes(), [kernel for _, kernel in finished]


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
        max_error=record.max_error if record else None,
        decisions=choice.origin,
        predicted_secs=choice.predicted_secs,
        epilogues=dict(fused),
        scratch=choice.task.scratch(choice.decisions),
    )


def _rank(choice: Choice, workspace: int = 0) -> tuple[int, float, float]:
    """Sort key: measured time, else predicted time, then workspace; those without either follow
    by their multiplications."""
    if choice.record:
        return 0, choice.record.seconds, workspace
    if choice.predicted_secs is not None:
        return 1, choice.predicted_secs, workspace
    return 2, choice.task.algorithm.multiplications(choice.task.workload), workspace


def _fastest(choices: Sequence[Choice]) -> list[Choice]:
    best: dict[ConvWorkload, Choice] = {}
    for choice in choices:
        current = best.get(choice.task.workload)
        if current is None or _rank(choice) < _rank(current):
            best[choice.task.workload] = choice
    return list(best.values())


def _undominated(choices: Sequence[Choice]) -> list[Choice]:
    return [c for c in choices if not any(_dominates(other, c) for other in choices)]


def _dominates(a: Choice, b: Choice) -> bool:
    """Whether no limit on workspace or error could make `b` the choice while `a` is there.

    A candidate of which something is unknown neither dominates nor is dominated.
    """
    if a is b or a.task.workload != b.task.workload or a.record is None or b.record is None:
        return False
    left, right = ((r.seconds, r.workspace_bytes, r.max_error) for r in (a.record, b.record))
    if None in left or None in right:
        return False
    return left != right and all(x <= y for x, y in zip(left, right, strict=True))  # type: ignore[operator]
