"""A clean helper process that forks one child per build and one per batch of measurements.

The zygote imports TVM once and stays single-threaded, so forking is cheap (TVM takes over a second
to import) and safe; a candidate that crashes, hangs or eats memory costs its own child only. It
speaks length-prefixed pickles with its parent over stdin and stdout.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from convtvm.machine import nvidia
from convtvm.measure.jobs import (
    ENVIRONMENT,
    LENGTH,
    STOPPED,
    BuildJob,
    FunctionJob,
    Limits,
    Outcome,
    RunJob,
    failed,
    failure,
    receive,
    send,
)

_SHARE = 8  # candidates that a device gets at once
_TRIES = 3  # devices that a candidate may lose before it is given up
_PATIENCE = 45.0  # seconds to look for a device
_PAUSE = 0.5  # seconds between two requests in vain: a tracker learns late of a device's death
_MEMORY = 8 << 30  # address space that a child may grow by; a runaway fails with MemoryError
_OUTPUT = 64 << 20  # bytes of a file that a child may write; one that prints for ever ends there
# Lines that say only that there was an error, before the one that says which; after the first,
# TVM's own, there is none.
_DECORATION = ("!!!!!!! ", "Stack trace", "Traceback (most recent")


def serve(folder: str) -> None:
    """Answer (kind, jobs, limits) requests until the parent is gone, then remove `folder`.

    Each job is answered by (index, Outcome) as soon as it is finished.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a candidate prints must not reach the protocol
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, lambda *_: _leave(folder))
    _die_with_parent(signal.SIGTERM)
    # tvm_ffi imports torch wherever it is installed: two seconds, and threads before forking.
    sys.modules["torch"] = None  # type: ignore[assignment]
    # TVM's CUDA run time opens only in a process that has this, where there is one.
    nvidia.load("libcudart.so.13")
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


def _excused(outcome: Outcome) -> Outcome:
    """A failure for want of memory is not the candidate's where the limit is not ours."""
    if outcome.kind and "MemoryError" in outcome.message and _is_short_of_memory():
        return Outcome(None, ENVIRONMENT, outcome.message)
    return outcome


def _crash(ending: str) -> Outcome:
    """The outcome of a child that ended without a result."""
    if _is_short_of_memory() and ("bad_alloc" in ending or "MemoryError" in ending):
        return Outcome(None, ENVIRONMENT, ending)
    return failed("crash", ending)


def _leave(folder: str) -> None:
    """End at once, children first (by their parent-death signal); no destructors, they may hang."""
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _die_with_parent(number: int) -> None:
    """Have the kernel signal this process when its parent ends, however it ends (Linux only)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def _warm_up() -> None:
    """Import and build once before the first fork, so that no child pays for it."""
    from tvm import te

    from convtvm.kernels import codegen, lowering
    from convtvm.machine import targets

    target = targets.resolve("native", 1)
    func = te.create_prim_func([te.compute((4,), lambda i: te.const(1.0, "float32"), name="one")])
    codegen.compile_lowered(lowering.lower(codegen.merge({"main": func}), target.tvm), target.tvm)


class _Child:
    """A forked process in its own group; what it sends through `report` arrives in `results`."""

    def __init__(self, work: Callable[[Callable[[Outcome], None]], None], timeout: float) -> None:
        reader, writer = os.pipe()
        self.timeout = timeout
        self._printed = os.memfd_create("convtvm-printed")
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            _run_child(work, writer, self._printed)
        os.close(writer)
        self.reader, self.buffer = reader, b""
        self.results: list[Outcome] = []
        self.connected = False  # to a device
        self.deadline = time.monotonic() + timeout

    def read(self) -> bool:
        """Take what has arrived; False once the child has closed its end."""
        data = os.read(self.reader, 1 << 16)
        self.buffer += data
        while len(self.buffer) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack(self.buffer[: LENGTH.size])[0]
            if len(self.buffer) < end:
                break
            self.results.append(_excused(pickle.loads(self.buffer[LENGTH.size : end])))
            self.buffer = self.buffer[end:]
            self.deadline = time.monotonic() + self.timeout
        return bool(data)

    def finish(self, kill: bool) -> str:
        """Reap the child (with its group, if `kill`); how it ended, and what it said first."""
        if kill:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        os.close(self.reader)
        _, status = os.waitpid(self.pid, 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # whatever the child left behind
        said = _first_line(self._printed)
        os.close(self._printed)
        if os.WIFSIGNALED(status):
            return f"killed by {signal.Signals(os.WTERMSIG(status)).name}{said}"
        return f"exited with status {os.WEXITSTATUS(status)} without a result{said}"


def _first_line(file: int) -> str:
    """The first line of a child's output that means something, after a colon; empty without."""
    lines = os.pread(file, 1 << 16, 0).decode("utf8", errors="replace").splitlines()
    texts = (" ".join("".join(c if c.isprintable() else " " for c in t).split()) for t in lines)
    for text in filter(None, texts):
        if text.startswith(_DECORATION[0]):
            break
        if not text.startswith(_DECORATION):
            return f": {text[:200]}"
    return ""


def _run_child(
    work: Callable[[Callable[[Outcome], None]], None], writer: int, printed: int
) -> None:
    """Body of a forked child; never returns. `os._exit` skips C++ destructors, which may hang."""
    status = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _die_with_parent(signal.SIGKILL)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        _limit(resource.RLIMIT_FSIZE, _OUTPUT)
        _limit(resource.RLIMIT_CORE, 0)
        pipe = os.fdopen(writer, "wb")
        work(lambda outcome: send(pipe, outcome))
        status = 0
    except BaseException as error:
        with contextlib.suppress(Exception):
            send(pipe, failure("unknown", error))
            status = 0
    finally:
        os._exit(status)


def _build_all(jobs: list[BuildJob | FunctionJob], limits: Limits) -> Iterator[tuple[int, Outcome]]:
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
    jobs: Sequence[Callable[[Callable[[Outcome], None]], None]], limits: Limits, late: Outcome
) -> Iterator[tuple[int, Outcome]]:
    """Every job in a child of its own, up to `limits.workers` at a time."""
    waiting = list(range(len(jobs)))
    running: dict[int, tuple[int, _Child]] = {}
    while waiting or running:
        while waiting and len(running) < limits.workers:
            index = waiting.pop(0)
            child = _Child(jobs[index], limits.timeout)
            running[child.reader] = (index, child)
        soonest = min(child.deadline for _, child in running.values())
        ready, _, _ = select.select(list(running), [], [], max(0.0, soonest - time.monotonic()))
        for reader in ready:
            index, child = running[reader]
            # A result ends the job, even if something that it started still holds the pipe.
            if not child.read() or child.results:
                del running[reader]
                ending = child.finish(kill=False)
                yield index, child.results[0] if child.results else _crash(ending)
        for reader, (index, child) in list(running.items()):
            if time.monotonic() > child.deadline:
                del running[reader]
                child.finish(kill=True)
                yield index, late


def _report_build(job: BuildJob | FunctionJob, report: Callable[[Outcome], None]) -> None:
    from convtvm.measure import building

    gc.disable()  # what it would find is gone with the process, and a look touches all memory
    _limit_memory()
    report(building.build(job))


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def _limit_memory() -> None:
    _limit(resource.RLIMIT_AS, _used_memory() + _MEMORY)


def _used_memory() -> int:
    """Bytes of address space."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _is_short_of_memory() -> bool:
    """Whether a limit from outside leaves less than children may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    return hard != resource.RLIM_INFINITY and hard < _used_memory() + _MEMORY


def _run_all(jobs: list[RunJob], limits: Limits) -> Iterator[tuple[int, Outcome]]:
    """Run every job in order; a crash or hang costs one candidate and one more fork."""
    if limits.samples and any(getattr(job, "device", "") == "cpu" for job in jobs):
        from convtvm.measure.pace import known_work

        known_work(limits.threads)  # compiled once, for all children
    done = 0
    while done < len(jobs):
        rest = jobs[done:]
        child = _Child(partial(_report_runs, rest, limits), limits.timeout)
        failure = None
        while failure is None:
            wait = max(0.0, child.deadline - time.monotonic())
            ready, _, _ = select.select([child.reader], [], [], wait)
            if not ready:
                child.finish(kill=True)
                failure = Outcome(None, "run_timeout", f"no result after {limits.timeout:g} s")
            elif not child.read():
                failure = _crash(child.finish(kill=False))
            for outcome in child.results:
                yield done, outcome
                done += 1
            child.results.clear()
        if done < len(jobs):
            yield done, failure
            done += 1


def _report_runs(jobs: list[RunJob], limits: Limits, report: Callable[[Outcome], None]) -> None:
    # A GPU's driver reserves address space for all memory that there is.
    if all(getattr(job, "device", "cpu") == "cpu" for job in jobs):
        _limit_memory()
    from convtvm.measure import trial

    trial.run_batch(jobs, limits, report)


def _run_fleet(jobs: list[RunJob], limits: Limits) -> Iterator[tuple[int, Outcome]]:
    """Run the jobs on `limits.workers` devices; what a lost device leaves goes to another."""
    from convtvm.measure import remote

    waiting = deque(range(len(jobs)))
    losses: Counter[int] = Counter()
    running: dict[int, tuple[deque[int], _Child]] = {}
    answered, said = time.monotonic(), ""  # when a device did for the last time, why not since
    share = max(1, min(_SHARE, -(-len(jobs) // limits.workers)))
    while running or (waiting and time.monotonic() < answered + _PATIENCE):
        while waiting and len(running) < limits.workers:
            mine = deque(waiting.popleft() for _ in range(min(share, len(waiting))))
            work = partial(remote.run_batch, [jobs[i] for i in mine], limits)
            child = _Child(work, limits.timeout + remote.CONNECT_SECONDS)
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
}
