"""A clean helper process that forks one child per build, one per batch of measurements on the CPU,
and one for all those on a GPU.

The zygote imports TVM once and stays single-threaded, so forking is cheap (TVM takes over a second
to import) and safe; a candidate that crashes, hangs or eats memory costs its own child only. It
speaks length-prefixed pickles with its parent over stdin and stdout.
"""

from __future__ import annotations

import gc
import os
import select
import shutil
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO

from convtvm.machine import interpreter, nvidia
from convtvm.measure.child import Child, Report, crashed, die_with_parent, limit_memory
from convtvm.measure.gpu_runner import GpuRunner
from convtvm.measure.jobs import (
    ENVIRONMENT,
    STOPPED,
    BuildJob,
    FunctionJob,
    Limits,
    Outcome,
    ProblemJob,
    RaceJob,
    RunJob,
    failure,
    receive,
    send,
)

_SHARE = 8  # candidates that a device gets at once
_TRIES = 3  # devices that a candidate may lose before it is given up
_PATIENCE = 45.0  # seconds to look for a device
_PAUSE = 0.5  # seconds between two requests in vain: a tracker learns late of a device's death

_gpu = GpuRunner()


def serve(folder: str) -> None:
    """Answer (kind, jobs, limits) requests until the parent is gone, then remove `folder`.

    Each job is answered by (index, Outcome) as soon as it is finished.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a candidate prints must not reach the protocol
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, lambda *_: _leave(folder))
    die_with_parent(signal.SIGTERM)
    # TVM's CUDA run time opens only in a process that has this, where there is one.
    nvidia.load("libcudart.so.13")
    # tvm_ffi imports torch wherever it is installed: two seconds, and threads before forking.
    with interpreter.hidden("torch"):
        _serve(folder, requests, answers)


def _serve(folder: str, requests: BinaryIO, answers: BinaryIO) -> None:
    try:
        _warm_up()
        send(answers, "ready")
        while True:
            kind, jobs, limits = receive(requests)
            serve_one = _run_fleet if kind == "run" and limits.tracker else _SERVES[kind]
            for answer in _each_answered(serve_one(jobs, limits), len(jobs)):
                send(answers, answer)
    except (EOFError, BrokenPipeError):
        pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _each_answered(
    outcomes: Iterator[tuple[int, Outcome]], count: int
) -> Iterator[tuple[int, Outcome]]:
    """The outcomes, and those of jobs for which no child could be had: no process, no pipe."""
    missing = set(range(count))
    try:
        for index, outcome in outcomes:
            missing.discard(index)
            yield index, outcome
    except OSError as error:
        for index in sorted(missing):
            yield index, failure(ENVIRONMENT, error)


def _leave(folder: str) -> None:
    """End at once, children first (by their parent-death signal); no destructors, they may hang."""
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _warm_up() -> None:
    """Import and build once before the first fork, so that no child pays for it."""
    from tvm import te

    from convtvm.kernels import codegen, lowering
    from convtvm.machine import targets

    target = targets.resolve("native", 1)
    func = te.create_prim_func([te.compute((4,), lambda i: te.const(1.0, "float32"), name="one")])
    codegen.compile_lowered(lowering.lower(codegen.merge({"main": func}), target.tvm), target.tvm)


def _build_all(
    jobs: list[BuildJob | FunctionJob | ProblemJob], limits: Limits
) -> Iterator[tuple[int, Outcome]]:
    """Build every job, up to `limits.workers` at a time."""
    from convtvm.measure import building

    late = Outcome(None, "build_timeout", f"no library after {limits.timeout:g} s")
    building.prepare(jobs)
    return _each_alone([partial(_report_build, job) for job in jobs], limits, late)


def _probe_all(jobs: list[None], limits: Limits) -> Iterator[tuple[int, Outcome]]:
    """Ask as many devices as there are jobs, all at once, what they are."""
    from convtvm.measure import remote

    late = Outcome(None, remote.LOST, f"no answer after {limits.timeout:g} s")
    return _each_alone([partial(remote.probe, limits)] * len(jobs), limits, late)


def _each_alone(
    jobs: Sequence[Callable[[Report], None]], limits: Limits, late: Outcome
) -> Iterator[tuple[int, Outcome]]:
    """Every job in a child of its own, up to `limits.workers` at a time."""
    waiting = list(range(len(jobs)))
    running: dict[int, tuple[int, Child]] = {}
    while waiting or running:
        while waiting and len(running) < limits.workers:
            index = waiting.pop(0)
            child = Child(jobs[index], limits.timeout)
            running[child.reader] = (index, child)
        soonest = min(child.deadline for _, child in running.values())
        ready, _, _ = select.select(list(running), [], [], max(0.0, soonest - time.monotonic()))
        for reader in ready:
            index, child = running[reader]
            # A result ends the job, even if something that it started still holds the pipe.
            if not child.read() or child.results:
                del running[reader]
                ending = child.finish(kill=False)
                yield index, child.results[0] if child.results else crashed(ending)
        for reader, (index, child) in list(running.items()):
            if time.monotonic() > child.deadline:
                del running[reader]
                child.finish(kill=True)
                yield index, late


def _report_build(job: BuildJob | FunctionJob | ProblemJob, report: Report) -> None:
    from convtvm.measure import building

    gc.disable()  # what it would find is gone with the process, and a look touches all memory
    limit_memory()
    report(building.build(job))


def _run_all(jobs: list[RunJob], limits: Limits) -> Iterator[tuple[int, Outcome]]:
    """Run every job in order; a crash or hang costs one candidate and one more fork."""
    if all(isinstance(job, RunJob | RaceJob) and job.device == "cuda" for job in jobs):
        yield from _gpu.run(jobs, limits)
        return
    if limits.samples and any(getattr(job, "device", "") == "cpu" for job in jobs):
        from convtvm.measure.pace import known_work

        known_work(limits.threads)  # compiled once, for all children
    done = 0
    while done < len(jobs):
        rest = jobs[done:]
        child = Child(partial(_report_runs, rest, limits), limits.timeout)
        failure = None
        while failure is None:
            wait = max(0.0, child.deadline - time.monotonic())
            ready, _, _ = select.select([child.reader], [], [], wait)
            if not ready:
                child.finish(kill=True)
                failure = Outcome(None, "run_timeout", f"no result after {limits.timeout:g} s")
            elif not child.read():
                failure = crashed(child.finish(kill=False))
            for outcome in child.results:
                yield done, outcome
                done += 1
            child.results.clear()
        if done < len(jobs):
            yield done, failure
            done += 1


def _prepare_gpu(jobs: list[None], limits: Limits) -> Iterator[tuple[int, Outcome]]:
    """Have the process for the GPU start while candidates are built."""
    _gpu.start(limits)
    yield 0, Outcome()


def _report_runs(jobs: list[RunJob], limits: Limits, report: Report) -> None:
    # A GPU's driver reserves address space for all memory that there is.
    if all(getattr(job, "device", "cpu") == "cpu" for job in jobs):
        limit_memory()
    from convtvm.measure import trial

    trial.run_batch(jobs, limits, report)


def _run_fleet(jobs: list[RunJob], limits: Limits) -> Iterator[tuple[int, Outcome]]:
    """Run the jobs on `limits.workers` devices; what a lost device leaves goes to another."""
    from convtvm.measure import remote

    waiting = deque(range(len(jobs)))
    losses: Counter[int] = Counter()
    running: dict[int, tuple[deque[int], Child]] = {}
    answered, said = time.monotonic(), ""  # when a device did for the last time, why not since
    share = max(1, min(_SHARE, -(-len(jobs) // limits.workers)))
    while running or (waiting and time.monotonic() < answered + _PATIENCE):
        while waiting and len(running) < limits.workers:
            mine = deque(waiting.popleft() for _ in range(min(share, len(waiting))))
            work = partial(remote.run_batch, [jobs[i] for i in mine], limits)
            child = Child(work, limits.timeout + remote.CONNECT_SECONDS)
            running[child.reader] = (mine, child)
        soonest = min(child.deadline for _, child in running.values())
        ready, _, _ = select.select(list(running), [], [], max(0.0, soonest - time.monotonic()))
        for reader, (mine, child) in list(running.items()):
            late = time.monotonic() > child.deadline
            ends = not child.read() if reader in ready else late
            for outcome in child.results:
                answered, child.connected = time.monotonic(), True
                if outcome.kind != remote.CONNECTED:
                    yield mine.popleft(), outcome
            child.results.clear()
            if not ends:
                continue
            del running[reader]
            ending = child.finish(kill=late)
            if not child.connected:
                said = ending
                time.sleep(_PAUSE)
            elif mine:
                losses[mine[0]] += 1
                if losses[mine[0]] >= _TRIES:
                    message = f"{_TRIES} sessions with devices were lost: {ending}"
                    yield mine.popleft(), Outcome(None, "crash", message)
            waiting.extendleft(reversed(mine))
    for index in waiting:
        message = f"no device with key {limits.key!r} answers any more ({said})"
        yield index, Outcome(None, STOPPED, message)


_SERVES: dict[str, Callable[[list[Any], Limits], Iterator[tuple[int, Outcome]]]] = {
    "build": _build_all,
    "run": _run_all,
    "probe": _probe_all,
    "prepare": _prepare_gpu,
}
