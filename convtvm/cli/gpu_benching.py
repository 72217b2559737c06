"""`convtvm bench` on a GPU: every algorithm of every layer beside cuDNN through PyTorch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtvm.cli.noise import noise
from convtvm.cli.output import (
    chatter_on_stderr,
    labels,
    print_json,
    print_table,
    significant,
    text_of,
    warn,
)
from convtvm.cli.plotting import write_plot
from convtvm.errors import ConvtvmError
from convtvm.problem.workload import ConvWorkload

if TYPE_CHECKING:
    from convtvm.compare.bench import BenchRow
    from convtvm.machine.targets import CompileTarget

_OTHERS = 4  # algorithms besides the chosen one that a line of the table has room for


def bench_on_gpu(
    workloads: Sequence[ConvWorkload],
    target: CompileTarget,
    peers: Sequence[str],
    logs: Sequence[Path],
    layout: str,
    repeat: int,
    max_error: float | None,
    plot: Path | None = None,
    *,
    as_json: bool,
) -> None:
    """Compile every algorithm and time it on this machine's GPU beside the peers."""
    from convtvm.compare import cudnn
    from convtvm.compare.conditions import conditions, lines
    from convtvm.compare.gpu_bench import bench
    from convtvm.kernels.task import TABLES
    from convtvm.library.remembered import compile as build_library
    from convtvm.measure.gpu_timing import driver

    for name in peers:
        if name != "torch":
            raise ConvtvmError(f"peer {name!r} runs on CPUs; on a GPU expected torch")
    driver()
    if peers:
        cudnn.require()
    algorithms = None if max_error is None else list(TABLES["cuda"])
    lib = build_library(
        workloads, target, logs=list(logs) or None, layout=layout, keep="all", algorithms=algorithms
    )
    for problem in lib.problems:
        warn(problem)
    with chatter_on_stderr():
        rows = list(bench(lib, bool(peers), repeat, max_error))
    for row in rows:
        for reason in row.absent.values():
            warn(f"torch took no part in {row.workload}: {reason}")
    facts = {"device": target.device_name(), "target": lib.target, "threads": lib.threads}
    found = {**facts, "layout": layout, "peak_flops": None, **document(rows), **conditions()}
    found["noise"] = noise([m for row in rows for m in row.figures])
    write_plot(plot, found)
    if as_json:
        print_json(found)
        return
    click.echo("\n".join(lines(conditions())))
    print_rows(f"{lib.target}, {layout}, cold L2 cache", rows)


def print_rows(title: str, rows: Sequence[BenchRow]) -> None:
    """The table of the layers, and a line about all of them."""
    label = labels([row.workload for row in rows])
    peers = list(dict.fromkeys(name for row in rows for name in row.peers))
    bare = list(dict.fromkeys(name for row in rows for name in row.without_bias))
    columns = ["workload", "chosen", ">us", ">warm", *(f">{p} us" for p in peers), ">vs best"]
    columns += [*(f">{p} without bias" for p in bare), ">TFLOP/s", ">error"]
    columns += ["other algorithms, us"]
    lines = []
    for row in rows:
        ours = row.algorithms.get(row.chosen)
        rest = {name: m for name, m in row.algorithms.items() if name != row.chosen}
        others = sorted((m.seconds, name) for name, m in rest.items())
        lines.append(
            [
                label[row.workload],
                row.chosen or "none",
                _us(ours.seconds if ours else None),
                _us(ours.warm if ours else None),
                *(_us(row.peers[p].seconds if p in row.peers else None) for p in peers),
                text_of(row.speedup, "{:.2f}x"),
                *(_us(m.seconds if (m := row.without_bias.get(p)) else None) for p in bare),
                text_of(row.workload.flops / ours.seconds / 1e12 if ours else None, "{:.1f}"),
                text_of(ours.max_error if ours else None, "{:.1e}"),
                ", ".join(f"{name} {_us(seconds)}" for seconds, name in others[:_OTHERS]),
            ]
        )
    print_table(title, columns, lines)
    figures = [m for row in rows for m in (*row.algorithms.values(), *row.peers.values())]
    if disturbed := sum(m.disturbed for m in figures):
        warn(f"in {disturbed} of {len(figures)} figures the device had to wait for the host")
    if speeds := speedups(rows):
        click.echo(
            f"geomean {significant(statistics.geometric_mean(speeds), 3)}x the best peer of each "
            f"layer, {significant(min(speeds), 3)}x to {significant(max(speeds), 3)}x"
        )


def speedups(rows: Sequence[BenchRow]) -> list[float]:
    """Time of the best peer over ours, of every layer that has peers."""
    return [row.speedup for row in rows if row.speedup]


def document(rows: Sequence[BenchRow]) -> dict[str, Any]:
    """The rows for --json, as of CPUs; seconds with a cold L2 cache, `warm` of calls in a row. The
    GPU's peak is not measured."""
    speeds = speedups(rows)
    return {
        "geomean": statistics.geometric_mean(speeds) if speeds else None,
        "worst": min(speeds, default=None),
        "best": max(speeds, default=None),
        "layers": [
            {
                "workload": row.workload.key,
                "name": row.workload.name,
                "chosen": row.chosen,
                "speedup": row.speedup,
                "share_of_peak": None,
                "share_of_ceiling": None,
                "algorithms": {name: vars(m) for name, m in row.algorithms.items()},
                "peers": {name: vars(m) for name, m in row.peers.items()},
                "without_bias": {name: vars(m) for name, m in row.without_bias.items()},
                "absent": dict(row.absent),
            }
            for row in rows
        ],
    }


def _us(seconds: float | None) -> str:
    return "-" if seconds is None else significant(seconds * 1e6, 3)
