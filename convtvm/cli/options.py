"""Options that several commands share, and the workloads of a SOURCE that they ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from convtvm.problem.sources import merge_duplicates, read_source
from convtvm.problem.workload import BLOCKED_LAYOUTS, LAYOUTS, ConvWorkload

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout, nothing else."
)
layout_option = click.option(
    "--layout",
    type=click.Choice([*LAYOUTS, *BLOCKED_LAYOUTS]),
    default="NCHW",
    help="Layout of data and output.",
)
logs_option = click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Tuning log to take the fastest decisions from; may be repeated.  "
    "[default: the logs that came with convtvm]",
)
batch_option = click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images at a time, in all workloads.  [default: as they say; 1 in built-in networks]",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    help="Compute the workloads in this type; float16 is for GPUs.  [default: as they say]",
)
_target = click.option(
    "--target",
    default="native",
    help="native (this CPU), avx2, avx512, aarch64, 'llvm -mcpu=NAME', or TVM's JSON.",
)
_threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads of a kernel.  [default: one per core]",
)


def target_options(command: F) -> F:
    """Add --target and --threads."""
    return _target(_threads(command))


def algorithms_option(help: str) -> Callable[[F], F]:
    """Add --algorithms A,B: a list of names, or None."""
    return click.option("--algorithms", callback=_names, metavar="A,B", help=help)


def read_workloads(source: str, batch: int | None, dtype: str | None = None) -> list[ConvWorkload]:
    """The distinct workloads of a SOURCE, at that batch size and of that type."""
    asked: dict[str, Any] = {"n": batch, "dtype": dtype}
    changes = {name: value for name, value in asked.items() if value is not None}
    return merge_duplicates(replace(w, **changes) for w in read_source(source))


def _names(ctx: click.Context, option: click.Parameter, value: str | None) -> list[str] | None:
    """The names of a comma-separated list."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise click.BadParameter("expected names separated by commas, such as direct,winograd")
    return names
