"""One candidate in the child process that may die of it: its answer first, then its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from convtvm.dispatch import threads
from convtvm.measure import race
from convtvm.measure.jobs import Limits, Outcome, RaceJob, RunJob, failure, wrong_answer
from convtvm.measure.timing import mean_seconds, timed


def run_batch(
    jobs: Sequence[RunJob | RaceJob | Callable[[], Any]],
    limits: Limits,
    report: Callable[[Outcome], None],
) -> None:
    """Run every job in order and report each outcome as soon as it is known.

    The outcome of a callable is what it returns.
    """
    key, arrays = ("", ""), {}
    for job in jobs:
        try:
            if isinstance(job, RaceJob):
                report(race.run(job, limits))
                continue
            if not isinstance(job, RunJob):
                report(Outcome(job()))
                continue
            if key != (job.inputs, job.pack):
                key, arrays = (job.inputs, job.pack), _load_inputs(job)
            report(_run(job, arrays, limits))
        except Exception as error:
            report(failure("runtime", error))


def _load_inputs(job: RunJob) -> dict[str, Any]:
    """The kernel's arguments and the reference; the weight packed by the job's own function."""
    import tvm

    from convtvm.problem import dtypes

    arrays = {path.stem: dtypes.load(path) for path in Path(job.inputs).glob("*.npy")}
    dtype = str(arrays["weight"].dtype)
    packed = tvm.runtime.empty(job.packed_shape, dtype)
    tvm.runtime.load_module(job.pack)["main"](tvm.runtime.tensor(arrays["weight"]), packed)
    data, bias = (tvm.runtime.tensor(arrays[name]) for name in ("data", "bias"))
    out = tvm.runtime.empty(arrays["reference"].shape, dtype)
    return {"args": (data, packed, bias, out), "reference": arrays["reference"]}


def _run(job: RunJob, arrays: dict[str, Any], limits: Limits) -> Outcome:
    """A candidate's library, called as TVM calls it."""
    import numpy as np
    import tvm

    from convtvm.problem.reference import relative_error

    module = tvm.runtime.load_module(job.path)
    threads.connect(job.path, module)  # all candidates run on the same workers
    args, reference = arrays["args"], arrays["reference"]
    # An unwritten element shows.
    args[3].copyfrom(np.full(reference.shape, np.nan, str(args[3].dtype)))
    call = partial(module["main"], *args)
    call()
    timing = partial(timed, partial(mean_seconds, call))
    return judge(job, relative_error(args[3].numpy(), reference), timing, limits)


def judge(
    job: RunJob,
    error: float,
    timing: Callable[[Limits], tuple[list[float], bool]],
    limits: Limits,
) -> Outcome:
    """The outcome of a kernel whose output is off by `error`, relative to the largest.

    The value of a right answer is (run_secs, error, whether every sample was undisturbed).
    """
    if not error <= job.tolerance:
        return wrong_answer(error, job.tolerance)
    run_secs, clean = timing(limits) if limits.samples else ([], True)
    return Outcome((run_secs, error, clean))
