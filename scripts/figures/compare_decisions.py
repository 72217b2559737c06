"""What a knob is worth: one layer by several kernels, side by side in one process, one thread.

    python scripts/figures/compare_decisions.py mb1ic64ih56oc64kh3ph1 \
        "winograd:4 prefetch=0" "winograd:4 prefetch=1" im2col [--target native] [--log FILE ...]

A kernel is an algorithm and the knobs that it shall have; the others are those that `compile` would
take by the logs (without --log: by those that came with convtvm). Medians of calls at full speed,
and errors against float64. The exit status is 3 after a noisy run.

Quoted by docs/algorithms.md, docs/performance.md and docs/templates.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sheet import Sheet, main, parser_of

import convtvm
from convtvm.compare.bench import interleave
from convtvm.dispatch import KernelLibrary
from convtvm.errors import ConvtvmError
from convtvm.kernels.task import tasks_of
from convtvm.library.choices import choose
from convtvm.logs.records import LogWriter, TuningRecord, load, shipped_logs
from convtvm.machine.targets import CompileTarget, resolve
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error


def compiled(
    asked: str,
    w: convtvm.ConvWorkload,
    target: CompileTarget,
    history: Sequence[TuningRecord],
    folder: Path,
) -> KernelLibrary:
    """A library with the one kernel that `asked`, an algorithm and `knob=value`s, describes."""
    algorithm, *changes = asked.split()
    tasks = tasks_of([w], target, algorithms=[algorithm])
    tasks = [t for t in tasks if t.algorithm_name == algorithm] or tasks
    if len(tasks) != 1:
        raise ConvtvmError(f"{algorithm!r} is {len(tasks)} algorithms for {w}, expected one")
    (task,) = tasks
    try:
        wanted = {k: int(v) for k, v in (change.split("=") for change in changes)}
    except ValueError:
        raise ConvtvmError(f"kernel is {asked!r}, expected ALGORITHM KNOB=NUMBER ...") from None
    decisions = {**choose(tasks, history)[0].decisions, **wanted}
    if not task.space.contains(decisions):
        raise ConvtvmError(f"{asked!r} would be {decisions}, which the template refuses")
    log = LogWriter(folder / f"{len(list(folder.iterdir()))}.jsonl")
    version = task.template_version
    log.append(TuningRecord(*task.key, "", decisions, version, run_secs=[1.0]))
    log.close()
    return convtvm.compile([w], target, algorithms=[algorithm], logs=[log.path], keep="all")


def bound(plan: Any, data: np.ndarray, out: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: plan(data, out=out)


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("workload")
    parser.add_argument("kernels", nargs="+", metavar="KERNEL")
    parser.add_argument("--target", default="native")
    parser.add_argument("--log", type=Path, action="append")
    parser.add_argument("--repeat", type=int, default=60)
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    w, target = convtvm.ConvWorkload.parse(options.workload), resolve(options.target, 1)
    history, _ = load(options.log or shipped_logs())
    data, weight, bias = random_inputs(w, seed=0)
    reference = conv2d_reference(w, data, weight, bias)
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for asked in options.kernels:
            library = compiled(asked, w, target, history, Path(folder))
            plan = library.plan(w, weight, bias)
            runs[asked] = bound(plan, data, np.empty(w.out_shape(), np.float32))
    errors = {asked: relative_error(run(), reference) for asked, run in runs.items()}
    sheet.peak(target)
    times = interleave(runs, options.repeat, threads=1)
    first = times[options.kernels[0]].seconds
    for asked, timing in times.items():
        shown = sheet.time(asked, timing, w.flops, target)
        sheet.found[asked] = {"seconds": timing.seconds, "max_error": errors[asked]}
        print(
            f"{asked:40} {timing.seconds * 1e3:9.3f} ms{shown.mark} "
            f"{w.flops / timing.seconds / 1e9:6.0f} GFLOP/s {first / timing.seconds:5.2f}x  "
            f"{shown.about}, error {errors[asked]:.1e}"
        )


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
