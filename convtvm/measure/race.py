"""The fastest kernels of a workload side by side, in the child process that may die of them:
loaded, planned and called as a user does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from convtvm.measure.jobs import Limits, Outcome, RaceJob, wrong_answer
from convtvm.measure.pace import pace
from convtvm.measure.timing import in_turn, mean_seconds, warm_up, window


def run(job: RaceJob, limits: Limits) -> Outcome:
    """The outcome of every kernel: wrong, or (run_secs, error, whether enough calls counted)."""
    import numpy as np

    from convtvm.problem import dtypes
    from convtvm.problem.reference import aligned_empty, relative_error

    arrays = {path.stem: dtypes.load(path) for path in Path(job.inputs).glob("*.npy")}
    data = aligned_empty(arrays["data"].shape, arrays["data"].dtype)
    data[:] = arrays["data"]
    runs, errors = {}, {}
    for function, plan in plans(job, arrays, limits.threads).items():
        out = aligned_empty(arrays["reference"].shape, data.dtype)
        out.fill(np.nan)
        runs[function] = partial(plan, data, out=out)
        runs[function]()
        errors[function] = relative_error(out, arrays["reference"])
    right = {f: run for f, run in runs.items() if errors[f] <= job.tolerances[f]}
    timer = partial(_timed, limits=limits)
    times = in_turn(right, limits.samples, timer, limits.patience * len(right))
    return results(job, errors, times)


def results(
    job: RaceJob,
    errors: Mapping[str, float],
    times: Mapping[str, tuple[Sequence[float], bool]],
) -> Outcome:
    """The outcome of every kernel, of which those that are right have times, which may be
    disturbed."""
    return Outcome(
        [
            Outcome((times[f][0], errors[f], not times[f][1]))
            if f in times
            else wrong_answer(errors[f], job.tolerances[f])
            for f in job.tolerances
        ]
    )


def plans(job: RaceJob, arrays: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """The contestants, by their functions, as the library plans them."""
    from convtvm import dispatch
    from convtvm.problem.workload import ConvWorkload

    library = dispatch.load(job.path, threads)
    kernels = {k.function: k for k in library.manifest.kernels}
    workload = ConvWorkload.parse(kernels[next(iter(job.tolerances))].workload)
    weight, bias = arrays["weight"], arrays["bias"]
    return {f: library.plan_by(kernels[f], workload, weight, bias) for f in job.tolerances}


def _timed(call: Callable[[], Any], limits: Limits) -> tuple[float, bool]:
    """Seconds a call in one window of the steady state."""
    number = max(1, int(limits.window / warm_up(call)))
    evaluate = partial(mean_seconds, call, number)
    return window(evaluate, pace(limits.threads), limits.threads)
