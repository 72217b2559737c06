"""`convtvm run`: run, check and time what is in a library. Loads no compiler."""

from __future__ import annotations

import math
import re
import statistics
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtvm.cli.options import json_option
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
    write_whole,
)
from convtvm.errors import ArrayError
from convtvm.problem.workload import ConvWorkload

if TYPE_CHECKING:
    from convtvm.dispatch import KernelLibrary, Plan, SlicedPlan
    from convtvm.problem.reference import Array

# No algorithm but TF32's errs as much, relative to the largest output, unless it is wrong.
WRONG = 1e-3

_REPEAT = 20
_WARM_UP = 3
_FAILED = 1
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


class _Bytes(click.ParamType):
    """A number of bytes: 4096, 512k, 1.5M, 2GiB; k, M and G are powers of 1024."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)([kmg]?)(?:i?b)?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no size, expected bytes such as 65536, 64k, 1.5M or 2G")
        return int(float(match[1]) * _UNITS[match[2]])


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


@click.command()
@click.argument("library", type=click.Path(path_type=Path), metavar="LIB.so")
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
    type=_Bytes(),
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
    help=f"Compare with the answer in float64; exit status 1 if an error exceeds {WRONG:g}.",
)
@json_option
@click.pass_context
@without_torch()
def run(
    ctx: click.Context,
    library: Path,
    wanted: str | None,
    inputs: Path | None,
    outputs: Path | None,
    algorithm: str | None,
    workspace_limit: int | None,
    max_error: float | None,
    policy: str,
    print_time: bool,
    repeat: int | None,
    check: bool,
    as_json: bool,
) -> None:
    """Run the convolutions of a library made by `convtvm compile`."""
    if outputs is not None:
        check_writable(outputs)
    from convtvm.dispatch import load

    lib = load(library)
    workloads = _chosen(lib, wanted)
    if inputs is not None and len(workloads) > 1:
        raise click.UsageError(
            f"--inputs holds one workload's arrays, but {library} has {len(workloads)} workloads; "
            "choose one with --workload."
        )
    timed = repeat or (_REPEAT if print_time else 0)
    results = []
    for w in workloads:
        data, weight, bias = _inputs(w, lib.layout, inputs)
        plan = lib.plan(w, weight, bias, algorithm, workspace_limit, max_error, policy=policy)
        out, secs = _run(plan, data, w.out_shape(lib.layout), timed)
        error = _error(w, (data, weight, bias), lib.layout, out) if check else None
        facts = (plan.algorithm, plan.workspace_bytes, plan.run_secs, plan.decisions)
        kept = out if outputs else None
        results.append(_Result(w, *facts, plan.explain(), kept, secs, error))
    if outputs is not None:
        _save(outputs, [r.out for r in results if r.out is not None])
    (_print_json if as_json else _print)(lib, library, results)
    wrong = [r for r in results if r.error is not None and not r.error <= WRONG]
    if wrong:
        first = f"{wrong[0].workload} by {wrong[0].algorithm}"
        click.echo(
            f"convtvm: wrong answer: {plural(len(wrong), 'workload')}, first {first}"
            f"{_overflow(wrong[0])}",
            err=True,
        )
        ctx.exit(_FAILED)


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
    arrays = _load(path)
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


def _load(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file; anything else in it is refused, never executed."""
    import numpy as np

    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ArrayError(f"cannot read {path}: one array without a name, expected an .npz")
        with file:
            arrays = {name: file[name] for name in file.files}
    except ArrayError:
        raise
    except OSError as error:
        raise ArrayError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, KeyError, NotImplementedError, MemoryError) as error:
        raise ArrayError(f"cannot read {path}: {error}") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ArrayError(f"cannot read {path}, it is damaged: {error}") from None
    other = [name for name, found in arrays.items() if not isinstance(found, np.ndarray)]
    if other:  # NumPy hands out other members of the archive as bytes
        raise ArrayError(f"cannot read {path}: {other[0]!r} in it is no array")
    return arrays


def _ready(path: Path, name: str, array: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """`array` as an aligned array of the dtype, if its shape and kind are right."""
    from convtvm.problem.reference import aligned_empty

    if array.shape != shape:
        raise ArrayError(f"{path}: {name} has shape {array.shape}, expected {shape}")
    if array.dtype.kind != "f":
        raise ArrayError(f"{path}: {name} is {array.dtype}, expected {dtype}")
    ready = aligned_empty(shape, dtype)
    ready[...] = array
    return ready


def _save(path: Path, outs: Sequence[Array]) -> None:
    import numpy as np

    many = len(outs) > 1
    buffer = BytesIO()
    named = {f"out_{i}" if many else "out": out for i, out in enumerate(outs)}
    np.savez(buffer, **named)  # type: ignore[arg-type]  # savez's own flag has another type
    write_whole(path, buffer.getvalue())


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
    family, _, tile = result.algorithm.partition(":")
    if result.error is None or math.isfinite(result.error) or family != "winograd":
        return ""
    from convtvm.compute.winograd_matrices import largest_data

    w = result.workload
    limit = largest_data(int(tile), (w.kh, w.kw), (w.sh, w.sw))
    return (
        f", not finite where it should be: NaN and infinite inputs spread over Winograd's tiles, "
        f"and its transforms may overflow on data above {limit:.1e}; `--algorithm direct` has "
        "neither limit"
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
        entry["correct"] = r.error <= WRONG
    return entry
