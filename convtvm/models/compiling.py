"""A model file or module in, one tuned library out, compared with the original."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convtvm.dispatch import suitability
from convtvm.dispatch.model import Model
from convtvm.dispatch.model_file import ModelContent
from convtvm.errors import EnvironmentProblem, ModelError, NoCandidate, TargetError
from convtvm.kernels import codegen
from convtvm.logs import records
from convtvm.machine.targets import CompileTarget, CudaTarget, resolve_several
from convtvm.measure.client import Zygote
from convtvm.models import differences
from convtvm.models.building import Progress, assemble
from convtvm.models.candidates import MAX_ERROR, MAX_ERROR_OF_IMAGES
from convtvm.models.graph import make_program
from convtvm.models.imported import ROUNDINGS, Imported, NotComparable
from convtvm.models.importing import import_model
from convtvm.models.program import Program

# Kernels that are right differ by far less over a whole network, relative to the largest output.
WRONG = 1e-3
GOOD = 1e-5  # where nobody asked for less, worth a second try by kernels of smaller errors


def compile_anew(
    model: Any,
    example: Any,
    pinned: Mapping[str, tuple[int, ...]],
    target: str | CompileTarget | Sequence[str | CompileTarget],
    threads: int | None,
    logs: Iterable[str | Path] | None,
    limits: Mapping[str, Any],
    batched: bool,
    progress: Progress,
) -> Model:
    """The model as `convtvm.compile_model` describes it, whatever is remembered; `pinned` are the
    shapes of inputs, `limits` the workspace and error of kernels and of the whole."""
    targets = resolve_several(target, threads)
    if isinstance(targets[0], CudaTarget):
        raise TargetError(f"target {targets[0].name!r}: models are compiled for CPUs only")
    codegen.linker(targets[0].spec.get("mtriple", ""))  # a refusal comes before the work
    imported = import_model(model, example, pinned)
    if batched:
        _check_batch(imported)
    history, damaged = records.load(
        records.shipped_logs() if logs is None else records.as_paths(logs)
    )
    facts: dict[str, Any] = {"source": _name(model, imported)}
    if imported.decided:
        facts["decided"] = dict(imported.decided)
    inputs = _arrays(imported, example)

    def build(kernels: float | None, whole: float) -> Model:
        within = {**limits, "max_error": kernels}
        programs, problems = _programs(imported, targets, history, within)
        with Zygote(at_once=False) as zygote:
            content = assemble(programs, zygote, facts=facts, batched=batched, progress=progress)
        compared, uncompared = _compared(content, programs, imported, inputs, whole)
        made = Model(compared)
        made.problems = [*map(str, damaged), *problems, *uncompared]
        return made

    asked, is_rough = limits["max_error"], imported.rounding > ROUNDINGS["float32"]
    if asked is None:
        bounds = [(MAX_ERROR_OF_IMAGES, WRONG)]
        if not imported.gives_images:  # less precision than float32 is off by more than any kernel
            bounds = [(MAX_ERROR, WRONG)] if is_rough else [(MAX_ERROR, GOOD), *bounds]
    else:
        bounds = [(asked / divisor, asked) for divisor in (1, 4, 16)]
    return _tightened(build, bounds)


def _check_batch(imported: Imported) -> None:
    """Raise ModelError unless all inputs and outputs share their first axis."""
    ports = [*imported.inputs, *imported.outputs]
    firsts = {port.shape[:1] for port in ports}
    if not imported.inputs or () in firsts or len(firsts) > 1:
        raise ModelError(
            "calls may bring multiples of the batch if it is the first axis of all inputs and "
            f"outputs; these are {', '.join(map(str, ports))}"
        )


def _tightened(
    build: Callable[[float, float], Model], bounds: Sequence[tuple[float, float]]
) -> Model:
    """What `build` makes by the first of `bounds`, of a kernel's error and the whole's, that it
    keeps: errors of kernels add up."""
    too_far: differences.TooFar | None = None
    for kernels, whole in bounds:
        try:
            return build(kernels, whole)
        except differences.TooFar as error:
            too_far = too_far or error
            if error.error > WRONG:
                break  # no rounding
        except NoCandidate:
            if too_far is None:
                raise
            break
    assert too_far is not None
    raise too_far.explained()


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
    programs: Sequence[tuple[Program, CompileTarget]],
    imported: Imported,
    inputs: dict[str, np.ndarray] | None,
    bound: float,
) -> tuple[ModelContent, list[str]]:
    """The content with how far each target's result was found from the original's in its facts;
    what was not compared and why. Raises TooFar for a result beyond the bound."""
    targets, problems = [], []
    for manifest, (program, _) in zip(content.targets, programs, strict=True):
        reason = suitability.objection(manifest)
        found: differences.Differences | None = None
        if not reason:
            one = Model(replace(content, targets=[manifest]))
            given = inputs or one.random_inputs()
            try:
                found = differences.between(one, imported, given)
            except (EnvironmentProblem, NotComparable) as error:  # random inputs may mean nothing
                reason = str(error)
        if found is None:
            problems.append(f"not compared with the original: {reason}")
            targets.append(manifest)
            continue
        if not found.error <= bound:
            raise differences.TooFar(one, program, imported, given, found)
        targets.append(replace(manifest, facts={**manifest.facts, **found.facts()}))
    return replace(content, targets=targets), problems
