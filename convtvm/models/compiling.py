"""`compile_model`: a model file or module in, one tuned library out, compared with the original."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convtvm.dispatch import model_file, suitability
from convtvm.dispatch.model import Model
from convtvm.dispatch.model_file import ModelContent
from convtvm.errors import EnvironmentProblem, LibraryError, TargetError
from convtvm.kernels import codegen
from convtvm.library.cache import Cache, key_of, open_cache
from convtvm.library.remembered import log_digests, place
from convtvm.logs import records
from convtvm.machine.targets import CompileTarget, CudaTarget, resolve_several
from convtvm.measure.client import Zygote
from convtvm.models import differences
from convtvm.models.building import Progress, assemble
from convtvm.models.graph import make_program
from convtvm.models.imported import Imported
from convtvm.models.importing import import_model
from convtvm.models.program import Program

# How an ONNX file begins to say where a weight is that it does not hold itself.
_WEIGHTS_BESIDE = b"\x0a\x08location"
# Kernels that are right differ by far less over a whole network, relative to the largest output.
WRONG = 1e-3


def compile_model(
    model: Any,
    example: Any = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    target: str | CompileTarget | Sequence[str | CompileTarget] = "native",
    threads: int | None = None,
    logs: Iterable[str | Path] | None = None,
    workspace_limit: int | None = None,
    max_error: float | None = None,
    batched: bool = False,
    progress: Progress = lambda done, total: None,
) -> Model:
    """Compile a whole network: an .onnx or .pt2 file, an ExportedProgram, or a PyTorch module that
    takes `example`, a tensor or a tuple of them.

    `shapes` pins inputs whose sizes a file leaves open. `target`, `threads` and `logs` are as of
    `convtvm.compile`. Kernels need at most `workspace_limit` bytes and have at most `max_error`,
    and so has the model against the original, which it is compared with: on `example`, or random
    inputs; `facts` of the result hold the difference. `batched` lets calls bring multiples of the
    batch that the shapes say. `progress` is told of functions compiled and functions in all.

    Raises ModelError for a file that is damaged, lacks a shape, or has an operator that cannot be
    compiled; NoCandidate for limits that a layer cannot keep; BuildError for a kernel that does not
    compile, or a result that is not the original's, naming the first operator that differs.
    """
    pinned = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    options = {"workspace_limit": workspace_limit, "max_error": max_error}
    key, cache = None, open_cache()
    if example is None and cache.folder is not None:
        key = _key(model, target, threads, logs, {**options, "shapes": pinned, "batched": batched})
    found = _remembered(cache, key)
    if found is not None:
        return found
    targets = resolve_several(target, threads)
    if isinstance(targets[0], CudaTarget):
        raise TargetError(f"target {targets[0].name!r}: models are compiled for CPUs only")
    codegen.linker(targets[0].spec.get("mtriple", ""))  # a refusal comes before the work
    imported = import_model(model, example, pinned)
    history, damaged = records.load(
        records.shipped_logs() if logs is None else records.as_paths(logs)
    )
    programs, problems = _programs(imported, targets, history, options)
    facts = {"source": _name(model, imported)}
    with Zygote(at_once=False) as zygote:
        content = assemble(programs, zygote, facts=facts, batched=batched, progress=progress)
    inputs = _arrays(imported, example)
    plain = [program for program, _ in programs]
    compared, uncompared = _compared(content, plain, imported, inputs, max_error)
    made = Model(compared)
    made.problems = [*map(str, damaged), *problems, *uncompared]
    if key and not made.problems:
        size = compared.weight_bytes + len(compared.image)
        cache.add(key, size, made.export)
        cache.sweep()
    return made


def _remembered(cache: Cache, key: str | None) -> Model | None:
    """What an earlier call, of any process, made of the same file."""
    path = cache.find(key) if key else None
    if path is None:
        return None
    try:
        return Model(model_file.read(path))
    except LibraryError:
        return None


def _key(
    model: Any, target: Any, threads: Any, logs: Any, options: Mapping[str, Any]
) -> str | None:
    """What a compiled file depends on; None for what is not remembered."""
    if not isinstance(model, (str, Path)):
        return None
    where, read = place(target, threads), log_digests(logs)
    try:
        content = Path(model).read_bytes()
    except OSError:
        return None
    if where is None or read is None or _WEIGHTS_BESIDE in content:
        return None
    digest, name = hashlib.sha256(content).hexdigest(), Path(model).name
    return key_of(model=digest, name=name, place=where, logs=read, options=options)


def _programs(
    imported: Imported,
    targets: Sequence[CompileTarget],
    history: Sequence[records.TuningRecord],
    limits: Mapping[str, Any],
) -> tuple[list[tuple[Program, CompileTarget]], list[str]]:
    """A program for each target, and what there is to say of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        programs = [(make_program(imported, one, history, **limits), one) for one in targets]
    return programs, [str(w.message) for w in caught if w.category is UserWarning]


def _name(model: Any, imported: Imported) -> str:
    return Path(model).name if isinstance(model, (str, Path)) else imported.name


def _arrays(imported: Imported, example: Any) -> dict[str, np.ndarray] | None:
    """The inputs that `example` is, by name; None without one."""
    if example is None:
        return None
    examples = list(example) if isinstance(example, (tuple, list)) else [example]
    if len(examples) != len(imported.inputs):
        return None  # the importer has its own idea of how to call the model
    arrays = [np.asarray(e.detach() if hasattr(e, "detach") else e) for e in examples]
    return {p.name: a.astype(p.dtype) for p, a in zip(imported.inputs, arrays, strict=True)}


def _compared(
    content: ModelContent,
    programs: Sequence[Program],
    imported: Imported,
    inputs: dict[str, np.ndarray] | None,
    max_error: float | None,
) -> tuple[ModelContent, list[str]]:
    """The content with how far each target's result was found from the original's in its facts;
    what was not compared and why."""
    targets, problems = [], []
    for manifest, program in zip(content.targets, programs, strict=True):
        reason = suitability.objection(manifest)
        found: differences.Differences | None = None
        if not reason:
            one = Model(replace(content, targets=[manifest]))
            given = inputs or one.random_inputs()
            try:
                found = differences.between(one, imported, given)
            except EnvironmentProblem as error:
                reason = str(error)
        if found is None:
            problems.append(f"not compared with the original: {reason}")
            targets.append(manifest)
            continue
        if not found.error <= (WRONG if max_error is None else max_error):
            raise differences.complaint(one, program, imported, given, found)
        targets.append(replace(manifest, facts={**manifest.facts, **found.facts()}))
    return replace(content, targets=targets), problems
