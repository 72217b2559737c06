"""`convtvm tune`: search schedules, with a line or a bar of progress and a table at the end."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtvm.cli.model_tuning import convolutions_by_layout, shared_budget
from convtvm.cli.monitor import Monitor, monitor
from convtvm.cli.options import (
    algorithms_option,
    batch_option,
    dtype_option,
    examples,
    json_option,
    layout_option,
    read_workloads,
    refuse_options,
    shape_option,
    source_argument,
    target_options,
)
from convtvm.cli.output import (
    gflops,
    labels,
    ms,
    plural,
    print_json,
    print_table,
    text_of,
    warn,
    without_torch,
)
from convtvm.errors import TargetError, WorkloadError
from convtvm.machine import gpu
from convtvm.machine.cpu import missing_features
from convtvm.problem.sources import is_model
from convtvm.problem.workload import ConvWorkload

if TYPE_CHECKING:
    from convtvm.logs.records import TuningRecord
    from convtvm.machine.targets import CompileTarget
    from convtvm.tuning.progress import TaskProgress, TuningSummary

_INTERRUPTED, _BY_USER = 130, "interrupted"


def _seconds(ctx: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise click.BadParameter(f"{value:g} is no time, expected seconds above 0")
    return value


@click.command(
    epilog=examples(
        "convtvm tune resnet18 --threads 1 --time-limit 600 --log r18.jsonl",
        "convtvm tune mb1ic64ih56oc64kh3ph1 --algorithms direct,winograd --trials 32",
        "convtvm tune model.onnx --shape x=1x3x224x224 --log model.jsonl",
    )
)
@source_argument
@target_options
@algorithms_option("Only these; a family's name means all its variants.  [default: all]")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=64,
    help="Candidates to measure for each workload and algorithm, those in the log included.",
)
@click.option(
    "--time-limit",
    type=float,
    callback=_seconds,
    metavar="SECONDS",
    help="Stop after this time; the next run resumes.  [default: none]",
)
@click.option(
    "--log",
    type=click.Path(dir_okay=False, path_type=Path),
    default="convtvm.jsonl",
    help="Tuning log: trials are appended, and those it already holds are not repeated.",
)
@click.option(
    "--total-trials",
    type=click.IntRange(min=1),
    metavar="N",
    help="Trials of this run in all, spent where they are expected to save the most time.  "
    "[default: no limit]",
)
@click.option(
    "--min-gain",
    type=click.FloatRange(0, 100, max_open=True),
    default=0.0,
    metavar="PERCENT",
    help="End a task when the model expects less than this from more trials.  [default: 0]",
)
@click.option(
    "--confirm/--no-confirm",
    default=True,
    help="Measure the best again in an exported library; those times count.  [default: confirm]",
)
@click.option(
    "--events",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Append what happens to FILE, one JSON object a line.",
)
@click.option("--tracker", metavar="HOST:PORT", help="Measure on the devices of TVM's RPC tracker.")
@click.option("--key", metavar="K", help="The key of the devices to use at the tracker.")
@layout_option
@batch_option
@dtype_option
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Seed of the random choices."
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
@shape_option
@json_option
@click.pass_context
@without_torch()
def tune(
    ctx: click.Context,
    /,
    source: str,
    target: str,
    threads: int | None,
    batch: int | None,
    dtype: str | None,
    shapes: dict[str, tuple[int, ...]],
    layout: str,
    quiet: bool,
    as_json: bool,
    **search: Any,
) -> None:
    """Search the fastest schedules of a SOURCE by measuring.

    Candidates for every convolution and algorithm are built, checked, timed and appended to a log.
    Those of a model are tuned in the layouts that its graph would use.

    Ctrl-C keeps every finished trial; the same command resumes.
    """
    # `search` holds the options that `convtvm.tune` takes under the same names, and `events`.
    whole = is_model(source)
    refuse_options(
        ctx, *(("models", "layout", "batch", "dtype") if whole else ("layers", "shapes"))
    )
    layers = [] if whole else read_workloads(source, batch, dtype)
    # Refusals above this line take no second; TVM is loaded below it.
    from convtvm.machine.targets import resolve

    resolved = resolve(target, threads)
    if (search["tracker"] is None) != (search["key"] is None):
        raise click.UsageError("--tracker and --key belong together")
    if search["tracker"] is None:
        _check_runs_here(resolved)
    groups = (
        convolutions_by_layout(source, shapes, resolved, search["log"])
        if whole
        else {layout: layers}
    )
    groups = _computable(groups, search["algorithms"], resolved.kind)
    documents, stopped = [], ""
    for one, workloads, budget in shared_budget(
        groups, search["time_limit"], search["total_trials"]
    ):
        document, stopped = _tune_layout(
            workloads, resolved, one, quiet, as_json, **{**search, **budget}
        )
        documents.append(document)
        if stopped == _BY_USER:
            break
    if as_json:
        print_json({"model": source, "layouts": documents} if whole else documents[0])
    if stopped == _BY_USER:
        click.echo("interrupted: the next run resumes", err=True)
        ctx.exit(_INTERRUPTED)


def _tune_layout(
    workloads: Sequence[ConvWorkload],
    target: CompileTarget,
    layout: str,
    quiet: bool,
    as_json: bool,
    *,
    events: Path | None,
    **search: Any,
) -> tuple[dict[str, Any], str]:
    """Tune workloads in one layout and say what came of it: the document, and why it ended."""
    from convtvm.tuning.tuner import tune as run_tuner

    with monitor(quiet, labels(workloads), events) as listener:
        summary = run_tuner(workloads, target=target, layout=layout, listener=listener, **search)
        listener.note_ended(summary)
        document = _document(summary, target, layout, listener)
        if listener.events is not None:
            listener.events.summary(document)
    for problem in [*map(str, summary.problems), *summary.warnings]:
        warn(problem)
    if not as_json:
        _print(summary, target, layout, listener)
    return document, summary.stopped


def _check_runs_here(target: CompileTarget) -> None:
    """Refuse to tune for a CPU or GPU that those here cannot stand in for."""
    from convtvm.machine.targets import CudaTarget

    if isinstance(target, CudaTarget):
        found = gpu.devices()
        if not any(gpu.runs(arch, d.arch) for d in found[:1] for arch in target.arches):
            has = f"its GPU is {found[0].arch}" if found else "it has no NVIDIA GPU or no driver"
            raise TargetError(f"target {target.name!r}: cannot be tuned on this machine, {has}")
        return
    machine = platform.machine()
    if not target.spec["mtriple"].startswith(f"{machine}-"):
        raise TargetError(f"target {target.name!r}: cannot be tuned here, this CPU is {machine}")
    missing = missing_features(target.features)
    if missing:
        raise TargetError(
            f"target {target.name!r}: cannot be tuned here, this CPU lacks {', '.join(missing)}"
        )


def _computable(
    groups: Mapping[str, Sequence[ConvWorkload]], algorithms: Sequence[str] | None, kind: str
) -> dict[str, list[ConvWorkload]]:
    """The workloads of each layout that some of the algorithms can compute on this kind of device,
    layouts with none left out; the others are named."""
    from convtvm.kernels.algorithms import applicable, select
    from convtvm.kernels.task import TABLES

    chosen = select(algorithms, TABLES[kind])
    every = list(dict.fromkeys(w for workloads in groups.values() for w in workloads))
    left_out = [w for w in every if not applicable(w, algorithms, TABLES[kind])]
    label = labels(every)
    reasons = [
        f"{label[w]}: " + "; ".join(dict.fromkeys(str(a.inapplicable(w)) for a in chosen))
        for w in left_out
    ]
    if len(left_out) == len(every):
        raise WorkloadError(
            f"none of {', '.join(a.name for a in chosen)} can compute any workload; {reasons[0]}"
            if reasons
            else "no workload to tune"
        )
    for reason in reasons:
        warn(f"not tuned: {reason}")
    found = {name: [w for w in group if w not in left_out] for name, group in groups.items()}
    return {name: group for name, group in found.items() if group}


# ---- results -------------------------------------------------------------------------------------


def _secs(record: TuningRecord | None) -> float | None:
    """Seconds of a successful record, else None."""
    return record.seconds if record is not None and record.run_secs else None


def _print(summary: TuningSummary, target: CompileTarget, layout: str, listener: Monitor) -> None:
    columns = ["workload", "algorithm", ">default ms", ">tuned ms", ">in library ms"]
    columns += [">GFLOP/s", ">trials", ">failed"]
    label = labels(p.task.workload for p in summary.tasks)
    print_table(
        f"{target.name}, threads {target.threads}, {layout}",
        columns,
        [_row(p, label[p.task.workload], listener.failed) for p in summary.tasks],
    )
    _print_winners(summary, label)
    for kind, count in summary.failures.most_common():
        click.echo(f"{count} failed by {kind}: {summary.first_failures[kind]}")
    stopped = f", {summary.stopped}" if summary.stopped else ""
    click.echo(
        f"{plural(summary.measured, 'trial')} measured, {summary.confirmed} confirmed, "
        f"{summary.reused} reused, {summary.seconds:.1f} s{stopped}; log: {summary.log}"
    )
    spent = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in summary.spent.items())
    if spent:
        click.echo(f"time: {spent}")


def _print_winners(summary: TuningSummary, label: Mapping[ConvWorkload, str]) -> None:
    """What won each workload, and how far behind its best default was."""
    from convtvm.tuning.progress import winners

    by_workload: dict[ConvWorkload, list[TaskProgress]] = {}
    for p in summary.tasks:
        by_workload.setdefault(p.task.workload, []).append(p)
    won = winners(summary.tasks)
    for workload, rivals in by_workload.items():
        if workload not in won:
            click.echo(f"{label[workload]}: nothing succeeded")
            continue
        winner, record = won[workload]
        gain = _gain(winner, record, rivals)
        text = f"{label[workload]}: {winner.task.algorithm_name} {ms(record.seconds)} ms"
        click.echo(f"{text}, {gain:.2f}x the best default" if gain else text)
    click.echo("")


def _gain(
    winner: TaskProgress, record: TuningRecord, rivals: Sequence[TaskProgress]
) -> float | None:
    """How many times as long the best default takes as the winner: both in the race if both were in
    it, else both while tuning. None where there is no such pair."""
    defaults = [p for p in rivals if _secs(p.default)]
    best = min(defaults, key=lambda p: _secs(p.default) or math.inf, default=None)
    if best is None or best.default is None:
        return None
    for raced in (True, False):
        secs = winner.seconds_of(record, raced)
        untuned = best.seconds_of(best.default, raced)
        if math.isfinite(secs) and math.isfinite(untuned):
            return untuned / secs
    return None


def _row(progress: TaskProgress, label: str, failed: Counter[Any]) -> list[str]:
    task = progress.task
    default, best = _secs(progress.default), _secs(progress.best)
    return [
        label,
        task.algorithm_name,
        ms(default, "failed" if progress.default else "-"),
        ms(progress.tuned_secs),
        ms(best if progress.best is not None and progress.best.confirmed else None),
        text_of(gflops(task.workload, progress.tuned_secs or best), "{:.1f}"),
        str(progress.done),
        str(failed[task.key]),
    ]


def _document(
    summary: TuningSummary, target: CompileTarget, layout: str, listener: Monitor
) -> dict[str, Any]:
    return {
        "log": str(summary.log),
        "target": target.name,
        "threads": target.threads,
        "layout": layout,
        "measured": summary.measured,
        "searched": summary.searched,
        "confirmed": summary.confirmed,
        "disturbed": summary.disturbed,
        "reused": summary.reused,
        "spent": summary.spent,
        "warnings": summary.warnings,
        "seconds": summary.seconds,
        "stopped": summary.stopped,
        "tasks": [_entry(p, listener.failed) for p in summary.tasks],
        "failures": {
            kind: {"count": count, "first": summary.first_failures[kind]}
            for kind, count in summary.failures.items()
        },
        "problems": [str(p) for p in summary.problems],
    }


def _entry(progress: TaskProgress, failed: Counter[Any]) -> dict[str, Any]:
    task, best = progress.task, progress.best
    secs = progress.tuned_secs
    return {
        "workload": task.workload.key,
        "name": task.workload.name,
        "multiplicity": task.workload.multiplicity,
        "algorithm": task.algorithm_name,
        "trials": progress.done,
        "failed": failed[task.key],
        "default_secs": _secs(progress.default),
        "best_secs": secs,
        "library_secs": best.seconds if best is not None and best.confirmed else None,
        "ended": progress.ended,
        "seconds": progress.seconds,
        "gflops": gflops(task.workload, secs),
        "decisions": dict(best.decisions) if best is not None else None,
        "workspace_bytes": best.workspace_bytes if best is not None else None,
        "max_error": best.max_error if best is not None else None,
    }
