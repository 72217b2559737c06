"""`convtvm bench` of a whole model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
        from convtvm.compare.conditions import Neighbours, conditions, lines
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
    under, every = conditions(), [found.ours, *found.peers.values()]
    document: dict[str, Any] = {
        "model": source,
        "device": resolved.device_name(),
        "target": model.target,
        "threads": model.threads,
        "ours": vars(found.ours),
        "peers": {name: vars(m) for name, m in found.peers.items()},
        "absent": dict(found.absent),
        "best_peer": found.best_peer,
        "speedup": found.speedup,
        **under,
        "noise": noise(every, neighbours.share()),
    }
    warn_of(document["noise"])
    write_plot(plot, document)
    if as_json:
        print_json(document)
        return
    click.echo("\n".join(lines(under)))
    ordered = sorted(found.peers.items(), key=lambda item: item[1].seconds)
    rows = []
    for name, m in (("convtvm", found.ours), *ordered):
        ratio = significant(m.seconds / found.ours.seconds, 3)
        of_ours = "" if m is found.ours else f"{ratio}x"
        rows.append([name, marked(m), f"{100 * m.spread:.1f}", of_ours, f"{m.max_error:.1e}"])
    title = f"{source}, {model.target}, threads {model.threads}"
    print_table(title, ["", ">ms", ">±%", ">of ours", ">error"], rows)
    if found.speedup:
        click.echo(f"{text_of(found.speedup, '{:.2f}')}x the best peer, {found.best_peer}")
