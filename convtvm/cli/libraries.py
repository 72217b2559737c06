"""`convtvm compile`: tuning logs to one library file, and a table of what is in it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtvm.cli.options import (
    algorithms_option,
    batch_option,
    dtype_option,
    examples,
    json_option,
    layout_option,
    logs_option,
    model_options,
    read_workloads,
    refuse_options,
    source_argument,
    target_options,
)
from convtvm.cli.output import (
    check_writable,
    labels,
    ms,
    plural,
    print_json,
    print_table,
    text_of,
    warn,
    without_torch,
)
from convtvm.problem.sources import is_model

if TYPE_CHECKING:
    from convtvm.dispatch import KernelLibrary
    from convtvm.dispatch.manifest import Kernel, Manifest


@click.command(
    "compile",
    epilog=examples(
        "convtvm compile resnet18 --threads 1 --log r18.jsonl -o r18.so",
        "convtvm compile resnet50 --target avx2,avx512 --keep best -o both.so",
        "convtvm compile model.onnx --shape x=1x3x224x224 -o model.so",
    ),
)
@source_argument
@click.option(
    "-o",
    "--output",
    "out",
    required=True,
    metavar="OUT.so",
    type=click.Path(path_type=Path),
    help="Library file to write.",
)
@target_options
@logs_option
@layout_option
@batch_option
@dtype_option
@algorithms_option("Only kernels of these; a family's name means all its variants.  [default: all]")
@click.option(
    "--keep",
    type=click.Choice(["best", "pareto", "all"]),
    default="pareto",
    help="Candidates of a workload: the fastest, those that some limit on workspace or error "
    "could make the choice, or all.",
)
@click.option(
    "--epilogues",
    metavar="A,B",
    default="",
    help="Endings to compile into kernels besides the plain ones: clip (ReLU and other bounds), "
    "add (a residual, then bounds), silu and other functions, add+silu.  [default: none; a plan "
    "then applies them afterwards]",
)
@model_options
@json_option
@click.pass_context
@without_torch()
def compile_(
    ctx: click.Context,
    /,
    source: str,
    out: Path,
    target: str,
    threads: int | None,
    logs: Sequence[Path],
    as_json: bool,
    shapes: dict[str, tuple[int, ...]],
    workspace_limit: int | None,
    max_error: float | None,
    batched: bool,
    **layers: Any,
) -> None:
    """Compile the convolutions of a SOURCE into one library, or a model into one that runs it.

    What the logs hold no records of takes the decisions of its nearest like, or the default ones.
    --target avx2,avx512 makes one library with kernels of both; the CPU that loads it decides.
    """
    if not is_model(source):
        refuse_options(ctx, "layers", "shapes", "workspace_limit", "max_error", "batched")
        _compile_layers(source, out, target, threads, logs, as_json, **layers)
        return
    refuse_options(ctx, "models", *layers)
    from convtvm.cli.models import compile_to

    compile_to(
        out,
        source,
        as_json,
        shapes=shapes,
        target=target,
        threads=threads,
        logs=list(logs) or None,
        workspace_limit=workspace_limit,
        max_error=max_error,
        batched=batched,
    )


def _compile_layers(
    source: str,
    out: Path,
    target: str,
    threads: int | None,
    logs: Sequence[Path],
    as_json: bool,
    *,
    layout: str,
    batch: int | None,
    dtype: str | None,
    algorithms: list[str] | None,
    keep: str,
    epilogues: str,
) -> None:
    workloads = read_workloads(source, batch, dtype)
    check_writable(out)
    from convtvm.library.remembered import compile as build_library

    started = time.monotonic()
    lib = build_library(
        workloads,
        target=target,
        threads=threads,
        logs=list(logs) or None,
        layout=layout,
        keep=keep,
        algorithms=algorithms,
        epilogues=[name.strip() for name in epilogues.split(",") if name.strip()],
    )
    lib.export(out)
    seconds = time.monotonic() - started
    for problem in lib.problems:
        warn(problem)
    if as_json:
        print_json(_document(lib, out, seconds))
    else:
        _print(lib, out, seconds)
    untuned = [
        w
        for made in lib.manifests
        for w in made.workloads
        if all(k.run_secs is None for k in made.kernels if k.workload == w)
    ]
    if untuned:
        asked = {
            "--threads": None if target.startswith("cuda") else lib.threads,
            "--target": None if target == "native" else target,
            "--layout": None if layout == "NCHW" else layout,
            "--batch": batch,
            "--dtype": dtype,
            "--algorithms": ",".join(algorithms) if algorithms else None,
        }
        total = plural(len(lib.workloads) * len(lib.manifests), "workload")
        warn(f"{len(untuned)} of {total} untuned; to tune: `{_tune_command(source, asked)}`")


def _tune_command(source: str, asked: Mapping[str, Any]) -> str:
    given = [str(word) for pair in asked.items() if pair[1] is not None for word in pair]
    return f"convtvm tune {shlex.join([source, *given])} --log FILE"


def _print(lib: KernelLibrary, out: Path, seconds: float) -> None:
    columns = ["workload", "algorithm", ">ms", ">workspace bytes", ">max error", "decisions"]
    label = {w.key: text for w, text in labels(lib.workloads).items()}
    for made in lib.manifests:
        rows = [[label[k.workload], *_cells(k)] for w in made.workloads for k in _of(made, w)]
        print_table(f"{made.target}, threads {made.threads}, {made.layout}", columns, rows)
    count = sum(len(made.kernels) for made in lib.manifests)
    click.echo(
        f"{out}: {plural(len(lib.workloads), 'workload')}, {plural(count, 'kernel')}, "
        f"{out.stat().st_size:,} bytes, {seconds:.1f} s"
    )


def _of(made: Manifest, workload: str) -> list[Kernel]:
    return [k for k in made.kernels if k.workload == workload]


def _cells(k: Kernel) -> list[str]:
    """All columns but the first; a predicted time has a tilde."""
    from convtvm.dispatch import Candidate

    expected = "untuned" if k.predicted_secs is None else f"~{ms(k.predicted_secs)}"
    return [
        k.algorithm,
        ms(k.run_secs, expected),
        text_of(k.workspace_bytes),
        text_of(k.max_error, "{:.1e}"),
        Candidate.of(k).origin,
    ]


def _document(lib: KernelLibrary, out: Path, seconds: float) -> dict[str, Any]:
    """What is in the library; at the top level, of the target that this machine would run."""
    from convtvm.dispatch import Candidate

    names = {w.key: w.name for w in lib.workloads}

    def workloads(made: Manifest) -> list[dict[str, Any]]:
        return [
            {
                "workload": key,
                "name": names[key],
                "candidates": [vars(Candidate.of(k)) for k in _of(made, key)],
            }
            for key in made.workloads
        ]

    return {
        "library": str(out),
        "bytes": out.stat().st_size,
        "target": lib.target,
        "threads": lib.threads,
        "layout": lib.layout,
        "seconds": seconds,
        "workloads": workloads(lib.manifest),
        "targets": [{"target": m.target, "workloads": workloads(m)} for m in lib.manifests],
        "problems": list(lib.problems),
    }
