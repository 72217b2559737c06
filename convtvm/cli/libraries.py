"""`convtvm compile`: tuning logs to one library file, and a table of what is in it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtvm.cli.output import (
    check_writable,
    json_option,
    labels,
    layout_option,
    ms,
    plural,
    print_json,
    print_table,
    target_options,
    text_of,
    warn,
    without_torch,
)
from convtvm.sources import merge_duplicates, read_source

if TYPE_CHECKING:
    from convtvm.dispatch import KernelLibrary


@click.command("compile")
@click.argument("source")
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
@click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Tuning log to take the fastest decisions from; may be repeated.  "
    "[default: the logs that came with convtvm]",
)
@layout_option
@click.option(
    "--keep",
    type=click.Choice(["best", "pareto", "all"]),
    default="pareto",
    help="Candidates of a workload: the fastest, those that some limit on workspace or error "
    "could make the choice, or all.",
)
@json_option
@without_torch()
def compile_(
    source: str,
    out: Path,
    target: str,
    threads: int | None,
    logs: Sequence[Path],
    layout: str,
    keep: str,
    as_json: bool,
) -> None:
    """Compile the convolutions of a SOURCE into one library.

    Workloads without records in the logs get their templates' default decisions.
    """
    workloads = merge_duplicates(read_source(source))
    check_writable(out)
    from convtvm.build import compile as build_library

    started = time.monotonic()
    lib = build_library(
        workloads, target=target, threads=threads, logs=list(logs) or None, layout=layout, keep=keep
    )
    lib.export(out)
    seconds = time.monotonic() - started
    for problem in lib.problems:
        warn(problem)
    if as_json:
        print_json(_document(lib, out, seconds))
    else:
        _print(lib, out, seconds)
    untuned = [w for w in lib.workloads if all(c.run_secs is None for c in lib.candidates(w))]
    if untuned:
        options = [source, "--threads", str(lib.threads)]
        options += [] if target == "native" else ["--target", target]
        options += [] if layout == "NCHW" else ["--layout", layout]
        warn(
            f"{len(untuned)} of {plural(len(lib.workloads), 'workload')} untuned; to tune: "
            f"`convtvm tune {shlex.join(options)} --log FILE`"
        )


def _print(lib: KernelLibrary, out: Path, seconds: float) -> None:
    label = labels(lib.workloads)
    rows = [
        [
            label[w],
            c.algorithm,
            ms(c.run_secs, "untuned"),
            text_of(c.workspace_bytes),
            text_of(c.max_error, "{:.1e}"),
        ]
        for w in lib.workloads
        for c in lib.candidates(w)
    ]
    columns = ["workload", "algorithm", ">ms", ">workspace bytes", ">max error"]
    print_table(f"{lib.target}, threads {lib.threads}, {lib.layout}", columns, rows)
    click.echo(
        f"{out}: {plural(len(lib.workloads), 'workload')}, {plural(len(rows), 'kernel')}, "
        f"{out.stat().st_size:,} bytes, {seconds:.1f} s"
    )


def _document(lib: KernelLibrary, out: Path, seconds: float) -> dict[str, Any]:
    return {
        "library": str(out),
        "bytes": out.stat().st_size,
        "target": lib.target,
        "threads": lib.threads,
        "layout": lib.layout,
        "seconds": seconds,
        "workloads": [
            {
                "workload": w.key,
                "name": w.name,
                "candidates": [
                    {
                        "algorithm": c.algorithm,
                        "run_secs": c.run_secs,
                        "workspace_bytes": c.workspace_bytes,
                        "max_error": c.max_error,
                    }
                    for c in lib.candidates(w)
                ],
            }
            for w in lib.workloads
        ],
        "problems": list(lib.problems),
    }
