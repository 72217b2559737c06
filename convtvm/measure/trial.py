"""One candidate in the child process that may die of it: its answer first, then its time."""

from __future__ import annotations

import math
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from convtvm.measure.jobs import Limits, Outcome, RunJob, failure
from convtvm.measure.pace import Pace, pace

_PATIENCE = 0.02  # seconds to wait for full speed before a window
_WAIT_SHARE = 0.02  # of a window that threads may wait for a core and the window still counts


def run_batch(
    jobs: Sequence[RunJob | Callable[[], Any]], limits: Limits, report: Callable[[Outcome], None]
) -> None:
    """Run every job in order and report each outcome as soon as it is known.

    The outcome of a callable is what it returns.
    """
    # Read at the first parallel launch; the zygote itself never launches one.
    os.environ["TVM_NUM_THREADS"] = str(limits.threads)
    key, arrays = ("", ""), {}
    for job in jobs:
        try:
            if not isinstance(job, RunJob):
                report(Outcome(job()))
                continue
            if job.function:
                report(_run_exported(job, limits))
                continue
            if key != (job.inputs, job.pack):
                key, arrays = (job.inputs, job.pack), _load_inputs(job)
            report(_run(job, arrays, limits))
        except Exception as error:
            report(failure("runtime", error))


def _load_inputs(job: RunJob) -> dict[str, Any]:
    """The kernel's arguments and the reference; the weight packed by the job's own function."""
    import numpy as np
    import tvm

    arrays = {path.stem: np.load(path) for path in Path(job.inputs).glob("*.npy")}
    dtype = str(arrays["weight"].dtype)
    packed = tvm.runtime.empty(job.packed_shape, dtype)
    tvm.runtime.load_module(job.pack)["main"](tvm.runtime.tensor(arrays["weight"]), packed)
    device = tvm.device(job.device)
    if not device.exist:
        raise RuntimeError(f"no {job.device} device here, or no driver for it")
    data, bias = (tvm.runtime.tensor(arrays[name], device) for name in ("data", "bias"))
    out = tvm.runtime.empty(arrays["reference"].shape, dtype, device)
    return {"args": (data, packed.copyto(device), bias, out), "reference": arrays["reference"]}


def _run(job: RunJob, arrays: dict[str, Any], limits: Limits) -> Outcome:
    """A candidate's library, called as TVM calls it."""
    import numpy as np
    import tvm

    module = tvm.runtime.load_module(job.path)
    args, reference = arrays["args"], arrays["reference"]
    # An unwritten element shows.
    args[3].copyfrom(np.full(reference.shape, np.nan, str(args[3].dtype)))
    args += tuple(tvm.runtime.empty(s, dtype, args[3].device) for dtype, *s in job.scratch)
    kernel = module["main"]
    kernel(*args)
    on_cpu = partial(timed, partial(_seconds, lambda: kernel(*args)))
    timing = on_cpu if job.device == "cpu" else partial(_time_gpu, module, args)
    return judge(job, args[3].numpy(), reference, timing, limits)


def _run_exported(job: RunJob, limits: Limits) -> Outcome:
    """A kernel of an exported library, loaded, planned and called as a user does it."""
    import numpy as np

    from convtvm import dispatch, reference
    from convtvm.dispatch.plan import Plan
    from convtvm.dispatch.selection import Choice
    from convtvm.workload import ConvWorkload

    library = dispatch.load(job.path, limits.threads)
    kernel = next(k for k in library.manifest.kernels if k.function == job.function)
    arrays = {path.stem: np.load(path) for path in Path(job.inputs).glob("*.npy")}
    workload = ConvWorkload.parse(kernel.workload)
    plan = Plan(library, workload, Choice.of(kernel), arrays["weight"], arrays["bias"])
    data = reference.aligned_empty(arrays["data"].shape, np.float32)
    data[:] = arrays["data"]
    out = reference.aligned_empty(arrays["reference"].shape, np.float32)
    out.fill(np.nan)
    plan(data, out=out)

    timing = partial(timed, partial(_seconds, lambda: plan(data, out=out)))
    return judge(job, out, arrays["reference"], timing, limits)


def judge(
    job: RunJob,
    out: Any,
    reference: Any,
    timing: Callable[[Limits], tuple[list[float], bool]],
    limits: Limits,
) -> Outcome:
    """The value of a right answer is (run_secs, error, whether every sample was undisturbed)."""
    from convtvm.reference import relative_error

    error = relative_error(out, reference)
    if not error <= job.tolerance:
        message = f"relative error {error:.1e}, at most {job.tolerance:.0e} is accepted"
        return Outcome(None, "wrong_answer", message)
    run_secs, clean = timing(limits) if limits.samples else ([], True)
    return Outcome((run_secs, error, clean))


# ---- time ----------------------------------------------------------------------------------------


def timed(evaluate: Callable[[int], float], limits: Limits) -> tuple[list[float], bool]:
    """Seconds a call in the fastest third of the windows at full speed that nothing disturbed;
    whether there were enough.

    Medians of plain timings are wrong by half on a shared machine, and with several threads they
    do not even look noisy. What disturbs only ever slows down, and some of it, such as strangers in
    the shared cache, cannot be seen: hence the fastest. With too few clean windows the fastest
    of all are used and marked.
    """
    once = evaluate(1)
    number = max(1, int(limits.window / max(once, 1e-7)))
    if limits.tracker:  # this process only waits; what disturbs the device cannot be seen
        return [evaluate(number) for _ in range(limits.samples)], True
    clean: list[float] = []
    disturbed: list[float] = []
    deadline = time.monotonic() + limits.patience
    while len(clean) < 3 * limits.samples:
        taken = [*clean, *disturbed]
        over = time.monotonic() >= deadline or min(taken, default=0.0) > limits.hopeless
        if over and len(taken) >= limits.samples:
            break
        seconds, alone = _window(lambda: evaluate(number), pace(limits.threads), limits.threads)
        (clean if alone else disturbed).append(seconds)
    enough = len(clean) >= limits.samples
    fastest = sorted(clean if enough else clean + disturbed)
    return fastest[: min(limits.samples, math.ceil(len(fastest) / 3))], enough


def _seconds(call: Callable[[], Any], number: int) -> float:
    """Seconds of a call, the mean of `number` in a row."""
    started = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - started) / number


def _time_gpu(module: Any, args: Any, limits: Limits) -> tuple[list[float], bool]:
    """Seconds a call by the device's own clock, every one with a cold L2 cache.

    Each sample is the median of many single calls; TVM overwrites the cache before each.
    """
    device = args[0].device
    flushed = 2 * (device.l2_cache_size_bytes or 32 << 20)
    evaluate = partial(module.time_evaluator, "main", device, number=1, cache_flush_bytes=flushed)
    once = float(evaluate(repeat=1)(*args).results[0])
    repeat = min(200, max(3, int(limits.window / max(once, 1e-7))))
    many = (evaluate(repeat=repeat)(*args).results for _ in range(limits.samples))
    return [statistics.median(map(float, results)) for results in many], True


def _window(run: Callable[[], float], cores: Pace, threads: int) -> tuple[float, bool]:
    """The result of `run`, and whether this process had the cores that it wanted meanwhile.

    It had not if they were slower than they can be before or after, if it was preempted, if its
    threads waited in line for a core while runnable, or if a single thread got less processor time
    than time passed.
    """
    full = cores.wait(_PATIENCE)
    preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    waited = _waited()
    cpu, wall = time.process_time(), time.perf_counter()
    result = run()
    full = full and (cores.is_full() or cores.is_full())  # its operands may have left the cache
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    waited = _waited() - waited
    preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - preempted
    busy = threads > 1 or cpu >= (1 - _WAIT_SHARE) * wall
    return result, full and not preempted and busy and waited <= _WAIT_SHARE * wall


def _waited() -> float:
    """Seconds that this process's threads have waited for a core; 0 where the kernel keeps none."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text(encoding="ascii").split()[1])
        except (OSError, IndexError, ValueError):
            continue
    return total / 1e9
