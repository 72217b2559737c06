"""`convtvm bench` of a whole model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtvm.cli.models import compile_source
from convtvm.cli.noise import marked, noise, warn_of
from convtvm.cli.output import (
    chatter_on_stderr,
    print_json,
    print_table,
    significant,
    text_of,
    torch_allowed,
    warn,
)
from convtvm.cli.plotting import write_plot

if TYPE_CHECKING:
    from convtvm.compare.model_bench import ModelBench
    from convtvm.dispatch import Model
    from convtvm.machine.targets import CompileTarget


def bench_source(
    source: str,
    peers: Sequence[str],
    target: str,
    threads: int | None,
    logs: Sequence[Path],
    shapes: Mapping[str, tuple[int, ...]],
    repeat: int,
    plot: Path | None = None,
    *,
    as_json: bool,
) -> None:
    """Compile the model in `source` and time it beside the peers."""
    with torch_allowed():
        from convtvm.compare.conditions import Neighbours, lines
        from convtvm.compare.model_bench import bench_model
        from convtvm.machine.targets import resolve
        from convtvm.models.importing import import_model

        resolved = resolve(target, threads)
        # Before the first parallel kernel: the pool starts with this many threads.
        os.environ["TVM_NUM_THREADS"] = str(resolved.threads)
        model = compile_source(
            source, quiet=as_json, target=resolved, shapes=shapes, logs=list(logs) or None
        )
        imported = import_model(source, None, dict(shapes))
        neighbours = Neighbours()
        with chatter_on_stderr():
            found = bench_model(model, imported, Path(source), peers, repeat)
    for name, reason in found.absent.items():
        warn(f"{name} took no part: {reason}")
    document = _document(source, resolved, model, found, neighbours.share())
    warn_of(document["noise"])
    write_plot(plot, document)
    if as_json:
        print_json(document)
    else:
        click.echo("\n".join(lines(document)))
        _print(f"{source}, {model.target}, threads {model.threads}", found)


def _document(
    source: str, target: CompileTarget, model: Model, found: ModelBench, others: float | None
) -> dict[str, Any]:
    """The comparison for --json; `others` is the share of the cores that other processes took."""
    from convtvm.compare.conditions import conditions

    return {
        "model": source,
        "device": target.device_name(),
        "target": model.target,
        "threads": model.threads,
        "ours": vars(found.ours),
        "peers": {name: vars(m) for name, m in found.peers.items()},
        "absent": dict(found.absent),
        "best_peer": found.best_peer,
        "speedup": found.speedup,
        **conditions(),
        "noise": noise([found.ours, *found.peers.values()], others),
    }


def _print(title: str, found: ModelBench) -> None:
    """A line for the model and each peer, the fastest first."""
    peers = sorted(found.peers.items(), key=lambda item: item[1].seconds)
    rows = []
    for name, m in (("convtvm", found.ours), *peers):
        ratio = significant(m.seconds / found.ours.seconds, 3)
        of_ours = "" if m is found.ours else f"{ratio}x"
        rows.append([name, marked(m), f"{100 * m.spread:.1f}", of_ours, f"{m.max_error:.1e}"])
    print_table(title, ["", ">ms", ">±%", ">of ours", ">error"], rows)
    if found.speedup:
        click.echo(f"{text_of(found.speedup, '{:.2f}')}x the best peer, {found.best_peer}")
