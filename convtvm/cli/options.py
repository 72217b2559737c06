"""Options that several commands share, and the workloads of a SOURCE that they ask for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from convtvm.problem.dtypes import BYTES
from convtvm.problem.sources import BUILTIN_NETWORKS, merge_duplicates, read_source
from convtvm.problem.workload import BLOCKED_LAYOUTS, LAYOUTS, ConvWorkload

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


class Bytes(click.ParamType):
    """A number of bytes: 4096, 512k, 1.5M, 2GiB; k, M and G are powers of 1024."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)([kmg]?)(?:i?b)?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no size, expected bytes such as 65536, 64k, 1.5M or 2G")
        return int(float(match[1]) * _UNITS[match[2]])


class Group(click.Group):
    """Commands that take no empty text, which is what a script's unset variable leaves: it would
    name the current folder, or a workload without a name. Only of an option that has none anyway
    does it mean none."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if ctx.resilient_parsing:  # a shell completes the line, which is not whole yet
            return name, command, rest
        if command is not None and not isinstance(command, click.Group):
            _refuse_empty(click.Context(command, parent=ctx, info_name=name), rest)
        return name, command, rest


def _refuse_empty(ctx: click.Context, args: Sequence[str]) -> None:
    values, _, given = ctx.command.make_parser(ctx).parse_args(list(args))
    for param in given:
        value = values.get(param.name or "")
        texts = value if isinstance(value, (list, tuple)) else [value]
        if "" in texts and param.default != "":
            raise click.BadParameter("it is empty, expected a value", ctx, param)


def examples(*lines: str) -> str:
    """An epilogue of a command's help: what one may type, as it is."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def _sources(ctx: click.Context, option: click.Parameter, begun: str) -> list[CompletionItem]:
    """What completes a SOURCE: the built-in networks that begin so, else files."""
    names = [name for name in BUILTIN_NETWORKS if name.startswith(begun)]
    return [*map(CompletionItem, names)] or [CompletionItem(begun, type="file")]


source_argument = click.argument("source", shell_complete=_sources)
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
    type=click.Choice(list(BYTES)),
    help="Compute the workloads in this type; those of 16 bits are for GPUs.  "
    "[default: as they say]",
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


def _shapes(
    ctx: click.Context, option: click.Parameter, values: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Shapes by name of texts such as x=1x3x224x224; a name may hold = itself."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in values:
        match = re.fullmatch(r"(.+)=([1-9]\d{0,8}(?:x[1-9]\d{0,8})*|scalar)", text)
        if match is None:
            raise click.BadParameter(f"{text!r} is no shape, expected NAME=1x3x224x224")
        if match[1] in shapes:
            raise click.BadParameter(f"{match[1]!r} has two shapes")
        sizes = [] if match[2] == "scalar" else match[2].split("x")
        shapes[match[1]] = tuple(map(int, sizes))
    return shapes


shape_option = click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_shapes,
    metavar="NAME=1x3x224x224",
    help="Shape of a model's input that its file leaves open; may be repeated.",
)


_model_options = (
    shape_option,
    click.option(
        "--workspace-limit",
        type=Bytes(),
        metavar="BYTES",
        help="Of a model: kernels need at most this much scratch memory; k, M, G: powers of 1024.",
    ),
    click.option(
        "--max-error",
        type=click.FloatRange(min=0, min_open=True),
        metavar="E",
        help="Of a model: kernels and outputs have at most this error, relative to the largest "
        "element.",
    ),
    click.option(
        "--batched",
        is_flag=True,
        help="Let calls of a model bring any multiple of its batch, the first axis of all inputs "
        "and outputs.",
    ),
)


def model_options(command: F) -> F:
    """Add the options of `compile` that are for whole models."""
    for option in reversed(_model_options):
        command = option(command)
    return command


def refuse_options(ctx: click.Context, what: str, *names: str) -> None:
    """Raise UsageError if one of these parameters was given, which `what` has no use for."""
    for param in ctx.command.params:
        given = ctx.get_parameter_source(param.name or "")
        if param.name in names and given is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{param.opts[0]} is not for {what}")


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
