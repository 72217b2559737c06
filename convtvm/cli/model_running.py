"""`convtvm run` of a whole model: by the graph's names, timed, checked and listed by operator."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtvm.cli.arrays import load_arrays, save_arrays
from convtvm.cli.models import compile_source, document_of, facts_of
from convtvm.cli.output import ms, print_json, print_table, torch_allowed
from convtvm.errors import ArrayError
from convtvm.problem.sources import is_model

if TYPE_CHECKING:
    from convtvm.dispatch import Model
    from convtvm.dispatch.model import StepTime
    from convtvm.problem.reference import Array

WRONG = 1e-3  # relative to the largest element of an output
_REPEAT, _WARM_UP, _FAILED = 20, 3, 1


def run_model(
    library: Path,
    inputs: Path | None,
    outputs: Path | None,
    timed: int,
    *,
    profile: bool,
    check: bool,
    original: Path | None,
    shapes: Mapping[str, tuple[int, ...]],
    as_json: bool,
) -> int:
    """Run the model of a library, or of a model file that is compiled for it; the exit status."""
    if is_model(str(library)):
        model = compile_source(library, quiet=as_json, shapes=shapes)
        original = original or library
    else:
        from convtvm.dispatch import load_model

        if shapes:
            raise click.UsageError(f"--shape is for models to compile; {library} has its shapes")
        if check and original is None:
            raise click.UsageError("--check of a model library needs --original MODEL")
        model = load_model(library)
    arrays = model.random_inputs() if inputs is None else _inputs(model, inputs)
    results, secs = _run(model, arrays, timed)
    if outputs is not None:
        save_arrays(outputs, results)
    steps = model.profile(arrays, repeat=timed or _REPEAT) if profile else []
    errors = _errors(original, model, arrays, results) if check and original else {}
    document = document_of(model, library) | _findings(secs, steps, errors)
    if as_json:
        print_json(document)
    else:
        _print(model, library, secs, steps, errors)
    wrong = [name for name, error in errors.items() if not error <= WRONG]
    if wrong:
        click.echo(f"convtvm: wrong answer: output {wrong[0]!r}", err=True)
    return _FAILED if wrong else 0


def _inputs(model: Model, path: Path) -> dict[str, Array]:
    """The arrays of a file, by the model's names. Raises ArrayError."""
    arrays = load_arrays(path)
    expected = ", ".join(map(str, model.inputs.values()))
    for name in arrays:
        if name not in model.inputs:
            raise ArrayError(f"{path}: unknown array {name!r}, expected {expected}")
    for name in model.inputs:
        if name not in arrays:
            held = ", ".join(arrays) or "nothing"
            raise ArrayError(
                f"{path}: there is no array {name!r}, it holds {held}; expected {expected}"
            )
    return arrays


def _run(
    model: Model, arrays: Mapping[str, Array], timed: int
) -> tuple[dict[str, Array], list[float]]:
    """The outputs by name, and the seconds of `timed` calls that follow a warm-up."""
    first = model(arrays)
    out = first if isinstance(first, tuple) else (first,)
    secs = []
    for _ in range(_WARM_UP if timed else 0):
        model(arrays, out=out)
    for _ in range(timed):
        started = time.perf_counter()
        model(arrays, out=out)
        secs.append(time.perf_counter() - started)
    return dict(zip(model.outputs, out, strict=True)), secs


def _errors(
    original: Path, model: Model, arrays: Mapping[str, Array], results: Mapping[str, Array]
) -> dict[str, float]:
    """By output, how far it is from the original's, relative to the largest element."""
    with torch_allowed():
        from convtvm.models.importing import import_model

        shapes = {name: port.shape for name, port in model.inputs.items()}
        imported = import_model(str(original), None, shapes)
        expected = imported.reference(arrays)
    from convtvm.problem.reference import relative_error

    if [p.shape for p in imported.outputs] != [p.shape for p in model.outputs.values()]:
        raise ArrayError(f"{original} has other outputs than the model; is it the original?")
    pairs = zip(model.outputs, expected, strict=True)
    return {name: relative_error(results[name], array) for name, array in pairs}


def _findings(
    secs: Sequence[float], steps: Sequence[StepTime], errors: Mapping[str, float]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if secs:
        found |= {
            "repeat": len(secs),
            "median_secs": statistics.median(secs),
            "min_secs": min(secs),
            "mean_secs": statistics.fmean(secs),
        }
    if steps:
        found["profile"] = [vars(step) for step in steps]
    if errors:
        worst = max(errors.values())
        found |= {"errors": dict(errors), "error": worst, "correct": worst <= WRONG}
    return found


def _print(
    model: Model,
    library: Path,
    secs: Sequence[float],
    steps: Sequence[StepTime],
    errors: Mapping[str, float],
) -> None:
    rows = facts_of(model)
    if secs:
        text = f"{ms(statistics.median(secs))} ms median, {ms(min(secs))} ms least of {len(secs)}"
        rows.append(("time", text))
    rows += [(f"error of {name}", f"{error:.1e}") for name, error in errors.items()]
    print_table(str(library), ["", ""], rows)
    if steps:
        _print_profile(steps)


def _print_profile(steps: Sequence[StepTime]) -> None:
    """The operators by time, equal ones apart."""
    ordered = sorted(steps, key=lambda s: -s.seconds)
    lines, total = [], 0.0
    for step in ordered:
        total += step.share
        times = [ms(step.seconds), ms(step.least)]
        lines.append([step.label, *times, f"{100 * step.share:.1f}", f"{100 * total:.0f}"])
    sums = [ms(sum(times)) for times in zip(*((s.seconds, s.least) for s in steps), strict=True)]
    lines.append(["sum", *sums, "100", ""])
    print_table("operators by time", ["operator", ">ms", ">least", ">%", ">% so far"], lines)
