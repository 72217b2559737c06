"""`convtvm bench`: every algorithm of every layer beside other libraries, in one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtvm.cli.noise import marked, noise, warn_of
from convtvm.cli.options import (
    batch_option,
    dtype_option,
    examples,
    json_option,
    layout_option,
    logs_option,
    read_workloads,
    refuse_options,
    shape_option,
    source_argument,
    target_options,
)
from convtvm.cli.output import (
    chatter_on_stderr,
    labels,
    ms,
    print_json,
    print_table,
    significant,
    text_of,
    warn,
)
from convtvm.cli.plotting import plot_option, write_plot
from convtvm.problem.sources import is_model
from convtvm.problem.workload import ConvWorkload

if TYPE_CHECKING:
    from convtvm.compare.bench import BenchRow
    from convtvm.compare.peers import Peer
    from convtvm.machine.targets import CompileTarget


@click.command(
    "bench",
    epilog=examples(
        "convtvm bench resnet18 --threads 1 --log r18.jsonl --peers onnxruntime,openvino",
        "convtvm bench resnet18 --threads 1 --plot r18.svg --json",
        "convtvm bench model.onnx --threads 2 --peers onnxruntime",
    ),
)
@source_argument
@batch_option
@dtype_option
@target_options
@logs_option
@click.option(
    "--peers",
    default="",
    help="Libraries to compare with: torch,onnxruntime,openvino,ncnn,mnn or some; on a GPU torch, "
    "which is cuDNN.",
)
@click.option(
    "--max-error",
    type=click.FloatRange(min=0, min_open=True),
    metavar="E",
    help="On a GPU: let TF32 take part, ours and theirs, with at most this error relative to the "
    "largest output.",
)
@layout_option
@click.option("--repeat", type=click.IntRange(min=3), default=25, help="Timed calls of each.")
@shape_option
@plot_option
@json_option
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    source: str,
    target: str,
    threads: int | None,
    logs: Sequence[Path],
    peers: str,
    batch: int | None,
    dtype: str | None,
    max_error: float | None,
    layout: str,
    repeat: int,
    plot: Path | None,
    as_json: bool,
    shapes: dict[str, tuple[int, ...]],
) -> None:
    """Time every algorithm of a SOURCE's convolutions, or a whole model, and other libraries
    beside it.

    All contestants of a layer run in turn in this process, NCHW in and out, fp32, weights packed
    beforehand; the figures are medians. A library with several memory formats counts by its
    fastest. The ceiling is the peak by the products that the algorithm computes itself, of which
    Winograd has fewer.

    On a GPU times are the device's own, each of a call with a cold L2 cache; every contestant has
    its data on the device and in its own memory format.
    """
    from convtvm.compare.peers import select_peers

    chosen = select_peers([name for name in peers.split(",") if name])
    if is_model(source):
        refuse_options(ctx, "models", "layout", "batch", "dtype", "max_error")
        from convtvm.cli.model_benching import bench_source

        bench_source(
            source, list(chosen), target, threads, logs, shapes, repeat, plot, as_json=as_json
        )
        return
    refuse_options(ctx, "layers", "shapes")
    workloads = read_workloads(source, batch, dtype)
    from convtvm.machine.targets import resolve

    resolved = resolve(target, threads)
    if resolved.kind == "cuda":
        from convtvm.cli.gpu_benching import bench_on_gpu

        known = list(chosen)
        bench_on_gpu(
            workloads, resolved, known, logs, layout, repeat, max_error, plot, as_json=as_json
        )
        return
    refuse_options(ctx, "CPUs", "max_error")
    _bench_on_cpu(workloads, resolved, chosen, logs, layout, repeat, plot, as_json=as_json)


def _bench_on_cpu(
    workloads: Sequence[ConvWorkload],
    target: CompileTarget,
    peers: Mapping[str, Peer],
    logs: Sequence[Path],
    layout: str,
    repeat: int,
    plot: Path | None,
    *,
    as_json: bool,
) -> None:
    """Compile every algorithm and time it here beside the peers."""
    from convtvm.compare.bench import bench as run_bench
    from convtvm.compare.conditions import Neighbours, conditions, lines
    from convtvm.library.remembered import compile as build_library
    from convtvm.measure.peak import measure_peak

    lib = build_library(workloads, target, logs=list(logs) or None, layout=layout, keep="all")
    for problem in lib.problems:
        warn(problem)
    neighbours, peak = Neighbours(), measure_peak(target)
    with chatter_on_stderr():
        rows = list(run_bench(lib, peers, repeat))
    for name in peers:
        if reasons := [row.absent[name] for row in rows if name in row.absent]:
            warn(f"{name} took no part in {len(reasons)} of {len(rows)} layers: {reasons[0]}")
    under = conditions()
    found = {
        "device": target.device_name(),
        **_document(rows, lib.target, lib.threads, peak),
        **under,
        "noise": noise([m for row in rows for m in row.figures], neighbours.share()),
    }
    warn_of(found["noise"])
    write_plot(plot, found)
    if as_json:
        print_json(found)
        return
    click.echo("\n".join(lines(under)))
    title = f"{lib.target}, threads {lib.threads}, {layout}, peak {peak / 1e9:.0f} GFLOP/s"
    _print(title, rows, peak)


def _print(title: str, rows: Sequence[BenchRow], peak: float) -> None:
    label = labels([row.workload for row in rows])
    peers = list(dict.fromkeys(name for row in rows for name in row.peers))
    columns = ["workload", "chosen", ">ms", ">±%", *(f">{p} ms" for p in peers), ">vs best"]
    columns += [">% peak", ">% ceiling", ">workspace", ">error", "other algorithms, ms"]
    lines = []
    for row in rows:
        ours = row.algorithms[row.chosen]
        others = sorted(
            (m.seconds, name) for name, m in row.algorithms.items() if name != row.chosen
        )
        lines.append(
            [
                label[row.workload],
                row.chosen,
                marked(ours),
                f"{100 * ours.spread:.1f}",
                *(marked(row.peers.get(p)) for p in peers),
                text_of(row.speedup, "{:.2f}x"),
                f"{100 * row.workload.flops / ours.seconds / peak:.0f}",
                f"{100 * row.multiplied / peak:.0f}",
                text_of(ours.workspace_bytes),
                f"{ours.max_error:.1e}",
                ", ".join(f"{name} {ms(seconds)}" for seconds, name in others[:4]),
            ]
        )
    print_table(title, columns, lines)
    speedups = [row.speedup for row in rows if row.speedup]
    if speedups:
        worst = min(rows, key=lambda row: row.speedup or math.inf)
        click.echo(
            f"geomean {significant(geomean(speedups), 3)}x the best peer of each layer, worst "
            f"{significant(min(speedups), 3)}x ({label[worst.workload]})"
        )


def geomean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _document(rows: Sequence[BenchRow], target: str, threads: int, peak: float) -> dict[str, Any]:
    speedups = [row.speedup for row in rows if row.speedup]
    return {
        "target": target,
        "threads": threads,
        "peak_flops": peak,
        "geomean": geomean(speedups) if speedups else None,
        "worst": min(speedups, default=None),
        "layers": [
            {
                "workload": row.workload.key,
                "name": row.workload.name,
                "chosen": row.chosen,
                "speedup": row.speedup,
                "share_of_peak": row.workload.flops / row.algorithms[row.chosen].seconds / peak,
                "share_of_ceiling": row.multiplied / peak,
                "algorithms": {name: vars(m) for name, m in row.algorithms.items()},
                "peers": {name: vars(m) for name, m in row.peers.items()},
                "absent": dict(row.absent),
            }
            for row in rows
        ],
    }
