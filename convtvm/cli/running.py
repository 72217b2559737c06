"""`convtvm run`: run, check and time what is in a library. Loads no compiler."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtvm.cli.arrays import load_arrays, save_arrays
from convtvm.cli.options import Bytes, examples, json_option, refuse_options, shape_option
from convtvm.cli.output import (
    check_writable,
    gflops,
    labels,
    ms,
    plural,
    print_json,
    print_table,
    text_of,
    without_torch,
)
from convtvm.errors import ArrayError
from convtvm.problem.dtypes import ROUNDING, is_float, restored, storable
from convtvm.problem.sources import is_model
from convtvm.problem.workload import ConvWorkload

if TYPE_CHECKING:
    from convtvm.dispatch import KernelLibrary, Plan, SlicedPlan
    from convtvm.problem.reference import Array

# No algorithm but TF32's errs as much, relative to the largest output, unless it is wrong.
WRONG = 1e-3

_REPEAT = 20
_WARM_UP = 3
_FAILED = 1


def _limit(w: ConvWorkload) -> float:
    """The largest error of a right answer: what bfloat16 rounds off is more than others err."""
    return max(WRONG, 2 * ROUNDING[w.dtype])


def _number(ctx: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no limit, expected a number of 0 or more")
    return value


@dataclass(frozen=True)
class _Result:
    """What one workload's run gave; `secs` are timed calls, `error` the one against float64."""

    workload: ConvWorkload
    algorithm: str
    workspace_bytes: int
    tuned_secs: float | None
    decisions: str
    why: str
    out: Array | None
    secs: Sequence[float]
    error: float | None


@click.command(
    epilog=examples(
        "convtvm run r18.so --print-time --check",
        "convtvm run r18.so --workspace-limit 64k --max-error 1e-6",
        "convtvm run model.so --inputs in.npz --outputs out.npz --profile",
    )
)
@click.argument("library", type=click.Path(path_type=Path), metavar="LIB.so")
@shape_option
@click.option(
    "--workload",
    "wanted",
    metavar="W",
    help="Workload, or its name in the library.  [default: every workload of the library]",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    metavar="IN.npz",
    help="Arrays data (in the library's layout), weight [oc, ic/groups, kh, kw] and optionally "
    "bias [oc].  [default: random numbers]",
)
@click.option(
    "--outputs",
    type=click.Path(path_type=Path),
    metavar="OUT.npz",
    help="Write the output as `out`, or of several workloads as out_0, out_1 ...",
)
@click.option("--algorithm", metavar="A", help="Only this algorithm.  [default: the fastest]")
@click.option(
    "--workspace-limit",
    type=Bytes(),
    metavar="BYTES",
    help="Only kernels that need at most this much scratch memory; k, M, G: powers of 1024.",
)
@click.option(
    "--max-error",
    type=click.FloatRange(min=0),
    callback=_number,
    metavar="E",
    help="Only kernels with at most this measured error, relative to the largest output.",
)
@click.option(
    "--policy",
    type=click.Choice(["logged", "predicted", "measure"]),
    default="logged",
    help="Whose times count: those measured while tuning, predictions too where nothing was "
    "measured, or the leading kernels timed here and now.",
)
@click.option("--print-time", is_flag=True, help="Time calls after a warm-up.")
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Calls to time; implies --print-time.  [default: {_REPEAT}]",
)
@click.option(
    "--check",
    is_flag=True,
    help=f"Compare with the answer in float64; exit status 1 if an error exceeds {WRONG:g}, or in "
    "bfloat16 0.008.",
)
@click.option(
    "--original",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="With --check, the .onnx or .pt2 file that a model library was compiled from.",
)
@click.option("--profile", is_flag=True, help="List a model's operators by time.")
@json_option
@click.pass_context
@without_torch()
def run(
    ctx: click.Context,
    /,
    library: Path,
    inputs: Path | None,
    outputs: Path | None,
    print_time: bool,
    repeat: int | None,
    check: bool,
    as_json: bool,
    original: Path | None,
    profile: bool,
    shapes: dict[str, tuple[int, ...]],
    **choice: Any,
) -> None:
    """Run the convolutions, or the model, of a library made by `convtvm compile`.

    LIB.so may also be a model's file, which is compiled first.
    """
    if outputs is not None:
        check_writable(outputs)
    from convtvm.dispatch import container

    timed = repeat or (_REPEAT if print_time else 0)
    if is_model(str(library)) or container.is_model_file(library):
        refuse_options(ctx, "models", *choice)
        from convtvm.cli.model_running import run_model

        ctx.exit(
            run_model(
                library,
                inputs,
                outputs,
                timed,
                profile=profile,
                check=check,
                original=original,
                shapes=shapes,
                as_json=as_json,
            )
        )
    refuse_options(ctx, "a kernel library", "original", "profile", "shapes")
    results = _run_library(library, inputs, outputs, timed, check, as_json, **choice)
    wrong = [r for r in results if r.error is not None and not r.error <= _limit(r.workload)]
    if wrong:
        first = f"{wrong[0].workload} by {wrong[0].algorithm}"
        click.echo(
            f"convtvm: wrong answer: {plural(len(wrong), 'workload')}, first {first}"
            f"{_overflow(wrong[0])}",
            err=True,
        )
        ctx.exit(_FAILED)


def _run_library(
    library: Path,
    inputs: Path | None,
    outputs: Path | None,
    timed: int,
    check: bool,
    as_json: bool,
    *,
    wanted: str | None,
    **choice: Any,
) -> list[_Result]:
    """Run the workloads of a kernel library that are wanted, and print what came of it."""
    from convtvm.dispatch import load

    lib = load(library)
    workloads = _chosen(lib, wanted)
    if inputs is not None and len(workloads) > 1:
        raise click.UsageError(
            f"--inputs holds one workload's arrays, but {library} has {len(workloads)} workloads; "
            "choose one with --workload."
        )
    results = []
    for w in workloads:
        data, weight, bias = _inputs(w, lib.layout, inputs)
        plan = lib.plan(w, weight, bias, **choice)
        out, secs = _run(plan, data, w.out_shape(lib.layout), timed)
        error = _error(w, (data, weight, bias), lib.layout, out) if check else None
        facts = (plan.algorithm, plan.workspace_bytes, plan.run_secs, plan.decisions)
        kept = out if outputs else None
        results.append(_Result(w, *facts, plan.explain(), kept, secs, error))
    if outputs is not None:
        _save(outputs, [r.out for r in results if r.out is not None])
    (_print_json if as_json else _print)(lib, library, results)
    return results


def _chosen(lib: KernelLibrary, wanted: str | None) -> list[ConvWorkload]:
    """The library's workloads that `wanted` means. Raises UnknownWorkload or WorkloadError."""
    if wanted is None:
        return lib.workloads
    named = [w for w in lib.workloads if w.name == wanted]
    if len(named) == 1:
        return named
    w = ConvWorkload.parse(wanted)
    lib.candidates(w)
    return [w]


# ---- arrays --------------------------------------------------------------------------------------


def _inputs(w: ConvWorkload, layout: str, path: Path | None) -> tuple[Array, Array, Array | None]:
    """(data, weight, bias or None) of a workload, read from `path` or random."""
    from convtvm.problem.reference import random_inputs

    if path is None:
        return random_inputs(w, 0, layout)
    arrays = load_arrays(path)
    shapes = {"data": w.data_shape(layout), "weight": w.weight_shape, "bias": (w.oc,)}
    missing = [name for name in ("data", "weight") if name not in arrays]
    if missing:
        held = ", ".join(arrays) or "nothing"
        raise ArrayError(f"{path}: there is no array {missing[0]!r}, it holds {held}")
    unknown = [name for name in arrays if name not in shapes]
    if unknown:
        raise ArrayError(
            f"{path}: unknown array {unknown[0]!r}, expected data, weight and optionally bias"
        )
    ready = {
        name: _ready(path, name, array, shapes[name], w.dtype) for name, array in arrays.items()
    }
    return ready["data"], ready["weight"], ready.get("bias")


def _ready(path: Path, name: str, array: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """`array` as an aligned array of the dtype, if its shape and kind are right."""
    from convtvm.problem.reference import aligned_empty

    if array.shape != shape:
        raise ArrayError(f"{path}: {name} has shape {array.shape}, expected {shape}")
    array = restored(array)
    if not is_float(array.dtype):
        raise ArrayError(f"{path}: {name} is {array.dtype}, expected {dtype}")
    ready = aligned_empty(shape, dtype)
    ready[...] = array
    return ready


def _save(path: Path, outs: Sequence[Array]) -> None:
    many = len(outs) > 1
    storable_outs = map(storable, outs)
    save_arrays(path, {f"out_{i}" if many else "out": out for i, out in enumerate(storable_outs)})


# ---- runs ----------------------------------------------------------------------------------------


def _run(
    plan: Plan | SlicedPlan, data: Array, shape: tuple[int, ...], timed: int
) -> tuple[Array, list[float]]:
    """The output, and the seconds of `timed` calls that follow a warm-up."""

    from convtvm.problem.reference import aligned_empty

    out = aligned_empty(shape, data.dtype)
    for _ in range(_WARM_UP if timed else 1):
        plan(data, out=out)
    secs = []
    for _ in range(timed):
        started = time.perf_counter()
        plan(data, out=out)
        secs.append(time.perf_counter() - started)
    return out, secs


def _error(
    w: ConvWorkload, inputs: tuple[Array, Array, Array | None], layout: str, out: Array
) -> float:
    from convtvm.problem.reference import conv2d_reference, relative_error

    data, weight, bias = inputs
    return relative_error(out, conv2d_reference(w, data, weight, bias, layout))


def _overflow(result: _Result) -> str:
    """What is worth saying of a wrong answer that is not finite, where data alone can be why."""
    family, _, variant = result.algorithm.partition(":")
    if result.error is None or math.isfinite(result.error):
        return ""
    if family == "winograd":
        from convtvm.compute.winograd_matrices import largest_data

        w, spread = result.workload, "Winograd's tiles, and its transforms"
        limit = largest_data(int(variant), (w.kh, w.kw), (w.sh, w.sw))
    elif family == "strassen":
        from convtvm.compute.strassen import largest_data_of

        spread, limit = "Strassen's quarters, and its sums", largest_data_of(int(variant))
    else:
        return ""
    return (
        f", not finite where it should be: NaN and infinite inputs spread over {spread} may "
        f"overflow on data above {limit:.1e}; `--algorithm direct` has neither limit"
    )


# ---- results -------------------------------------------------------------------------------------


def _print(lib: KernelLibrary, library: Path, results: Sequence[_Result]) -> None:
    label = labels(r.workload for r in results)
    columns = ["workload", "algorithm", ">workspace bytes"]
    timed, checked = bool(results[0].secs), results[0].error is not None
    columns += [">median ms", ">min ms", ">mean ms", ">GFLOP/s"] if timed else []
    columns += [">error"] if checked else []
    columns += ["decisions"]
    rows = []
    for r in results:
        row = [label[r.workload], r.algorithm, text_of(r.workspace_bytes)]
        if timed:
            median = statistics.median(r.secs)
            row += [ms(median), ms(min(r.secs)), ms(statistics.fmean(r.secs))]
            row.append(text_of(gflops(r.workload, median), "{:.1f}"))
        if checked:
            row.append(text_of(r.error, "{:.1e}"))
        row.append(r.decisions)
        rows.append(row)
    print_table(f"{library}, threads {lib.threads}, {lib.layout}", columns, rows)


def _print_json(lib: KernelLibrary, library: Path, results: Sequence[_Result]) -> None:
    print_json(
        {
            "library": str(library),
            "target": lib.target,
            "threads": lib.threads,
            "layout": lib.layout,
            "runs": [_entry(r) for r in results],
        }
    )


def _entry(r: _Result) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "workload": r.workload.key,
        "name": r.workload.name,
        "algorithm": r.algorithm,
        "workspace_bytes": r.workspace_bytes,
        "tuned_secs": r.tuned_secs,
        "decisions": r.decisions,
        "why": r.why,
    }
    if r.secs:
        median = statistics.median(r.secs)
        entry["repeat"] = len(r.secs)
        entry["median_secs"], entry["min_secs"] = median, min(r.secs)
        entry["mean_secs"], entry["gflops"] = statistics.fmean(r.secs), gflops(r.workload, median)
    if r.error is not None:
        entry["error"] = r.error
        entry["correct"] = r.error <= _limit(r.workload)
    return entry
