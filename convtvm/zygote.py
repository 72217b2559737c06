"""A clean helper process that forks one child per build and one per batch of measurements.

The zygote imports TVM once and stays single-threaded, so forking is cheap (TVM takes over a second
to import) and safe; a candidate that crashes, hangs or eats memory costs its own child only. Run as
`python -m convtvm.zygote`; it speaks length-prefixed pickles with its parent over stdin and stdout.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import resource
import select
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from convtvm.task import Task

_LENGTH = struct.Struct("<q")
_BUILD_MEMORY = 8 << 30  # address space that a build may grow by; a runaway fails with MemoryError


@dataclass(frozen=True)
class BuildJob:
    """Compile `task` by `decisions`, or its packing function for None, as the function `symbol`.

    A `path` that ends in .o gets the object file, any other the linked library.
    """

    task: Task
    decisions: Mapping[str, int] | None
    path: str
    symbol: str = "main"


@dataclass(frozen=True)
class RunJob:
    """Check and time the kernel library `path` on the arrays in folder `inputs`.

    The folder is one of measure.write_problem; the library `pack` packs its weight.
    """

    path: str
    pack: str
    packed_shape: tuple[int, ...]
    inputs: str
    tolerance: float


@dataclass(frozen=True)
class Limits:
    """Workers at once, seconds a job may take, and for runs the number of threads and the
    timing."""

    workers: int = 1
    timeout: float = 20.0
    threads: int = 1
    window: float = 0.005
    samples: int = 3
    attempts: int = 30


@dataclass(frozen=True)
class Outcome:
    """Result of a job: `value` on success, else the kind of error and its first line."""

    value: Any = None
    kind: str = ""
    message: str = ""


def send(stream: BinaryIO, message: object) -> None:
    body = pickle.dumps(message)
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """The next message. Raises EOFError when the other side is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    return pickle.loads(stream.read(_LENGTH.unpack(head)[0]))


# ---- inside the zygote -------------------------------------------------------------------------


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
    try:
        _warm_up()
        send(answers, "ready")
        while True:
            kind, jobs, limits = receive(requests)
            serve_one = _build_all if kind == "build" else _run_all
            for answer in serve_one(jobs, limits):
                send(answers, answer)
    except (EOFError, BrokenPipeError):
        pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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

    from convtvm import codegen, targets, task  # noqa: F401

    target = targets.resolve("native", 1)
    func = te.create_prim_func([te.compute((4,), lambda i: te.const(1.0, "float32"), name="one")])
    codegen.compile_lowered(codegen.lower(codegen.merge({"main": func}), target.tvm), target.tvm)


class _Child:
    """A forked process in its own group; what it sends through `report` arrives in `results`."""

    def __init__(self, work: Callable[[Callable[[Outcome], None]], None], timeout: float) -> None:
        reader, writer = os.pipe()
        self.timeout = timeout
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            _run_child(work, writer)
        os.close(writer)
        self.reader, self.buffer = reader, b""
        self.results: list[Outcome] = []
        self.deadline = time.monotonic() + timeout

    def read(self) -> bool:
        """Take what has arrived; False once the child has closed its end."""
        data = os.read(self.reader, 1 << 16)
        self.buffer += data
        while len(self.buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack(self.buffer[: _LENGTH.size])[0]
            if len(self.buffer) < end:
                break
            self.results.append(pickle.loads(self.buffer[_LENGTH.size : end]))
            self.buffer = self.buffer[end:]
            self.deadline = time.monotonic() + self.timeout
        return bool(data)

    def finish(self, kill: bool) -> str:
        """Reap the child (with its group, if `kill`) and say in words how it ended."""
        if kill:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        os.close(self.reader)
        _, status = os.waitpid(self.pid, 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # whatever the child left behind
        if os.WIFSIGNALED(status):
            return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
        return f"exited with status {os.WEXITSTATUS(status)} without a result"


def _run_child(work: Callable[[Callable[[Outcome], None]], None], writer: int) -> None:
    """Body of a forked child; never returns. `os._exit` skips C++ destructors, which may hang."""
    status = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _die_with_parent(signal.SIGKILL)
        pipe = os.fdopen(writer, "wb")
        work(lambda outcome: send(pipe, outcome))
        status = 0
    except BaseException as error:
        with contextlib.suppress(Exception):
            send(pipe, _failure("unknown", error))
            status = 0
    finally:
        os._exit(status)


def _failure(kind: str, error: BaseException) -> Outcome:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else "no message"
    return Outcome(kind=kind, message=f"{type(error).__name__}: {first}"[:400])


def _build_all(jobs: list[BuildJob], limits: Limits) -> Iterator[tuple[int, Outcome]]:
    """Build every job, up to `limits.workers` at a time."""
    waiting = list(range(len(jobs)))
    running: dict[int, tuple[int, _Child]] = {}
    while waiting or running:
        while waiting and len(running) < limits.workers:
            index = waiting.pop(0)
            job = jobs[index]
            child = _Child(partial(_report_build, job), limits.timeout)
            running[child.reader] = (index, child)
        soonest = min(child.deadline for _, child in running.values())
        ready, _, _ = select.select(list(running), [], [], max(0.0, soonest - time.monotonic()))
        for reader in ready:
            index, child = running[reader]
            # A result ends the job, even if something that it started still holds the pipe.
            if not child.read() or child.results:
                del running[reader]
                ending = child.finish(kill=False)
                yield index, child.results[0] if child.results else Outcome(None, "crash", ending)
        for reader, (index, child) in list(running.items()):
            if time.monotonic() > child.deadline:
                del running[reader]
                child.finish(kill=True)
                yield (
                    index,
                    Outcome(None, "build_timeout", f"no library after {limits.timeout:g} s"),
                )


def _report_build(job: BuildJob, report: Callable[[Outcome], None]) -> None:
    report(_build(job))


def _build(job: BuildJob) -> Outcome:
    """Instantiate, lower, compile and link; the value is the workspace in bytes."""
    from convtvm import codegen

    _limit_memory(_BUILD_MEMORY)
    kind = "instantiate"
    try:
        task = job.task
        func = task.pack() if job.decisions is None else task.instantiate(job.decisions)["main"]
        kind = "compile"
        target = task.target.tvm
        lowered = codegen.lower(codegen.merge({job.symbol: func}), target)
        workspace = codegen.workspace_bytes(lowered, task.target.threads)
        compiled = codegen.compile_lowered(lowered, target)
        objects = job.path if job.path.endswith(".o") else job.path + ".o"
        codegen.write_object(compiled, objects)
        if objects != job.path:
            codegen.link_objects([objects], job.path, task.target)
            os.unlink(objects)
    except Exception as error:
        return _failure(kind, error)
    return Outcome(workspace)


def _limit_memory(growth: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + growth
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _run_all(jobs: list[RunJob], limits: Limits) -> Iterator[tuple[int, Outcome]]:
    """Run every job in order; a crash or hang costs one candidate and one more fork."""
    done = 0
    while done < len(jobs):
        rest = jobs[done:]
        child = _Child(partial(_run_batch, rest, limits), limits.timeout)
        failure = None
        while failure is None:
            wait = max(0.0, child.deadline - time.monotonic())
            ready, _, _ = select.select([child.reader], [], [], wait)
            if not ready:
                child.finish(kill=True)
                failure = Outcome(None, "run_timeout", f"no result after {limits.timeout:g} s")
            elif not child.read():
                failure = Outcome(None, "crash", child.finish(kill=False))
            for outcome in child.results:
                yield done, outcome
                done += 1
            child.results.clear()
        if done < len(jobs):
            yield done, failure
            done += 1


def _run_batch(jobs: list[RunJob], limits: Limits, report: Callable[[Outcome], None]) -> None:
    # Read at the first parallel launch; the zygote itself never launches one.
    os.environ["TVM_NUM_THREADS"] = str(limits.threads)
    key, arrays = ("", ""), {}
    for job in jobs:
        try:
            if key != (job.inputs, job.pack):
                key, arrays = (job.inputs, job.pack), _load_inputs(job)
            report(_run(job, arrays, limits))
        except Exception as error:
            report(_failure("runtime", error))


def _load_inputs(job: RunJob) -> dict[str, Any]:
    """The kernel's arguments and the reference; the weight packed by the job's own function."""
    import numpy as np
    import tvm

    arrays = {path.stem: np.load(path) for path in Path(job.inputs).glob("*.npy")}
    packed = tvm.runtime.empty(job.packed_shape, "float32")
    tvm.runtime.load_module(job.pack)["main"](tvm.runtime.tensor(arrays["weight"]), packed)
    out = tvm.runtime.empty(arrays["reference"].shape, "float32")
    data, bias = tvm.runtime.tensor(arrays["data"]), tvm.runtime.tensor(arrays["bias"])
    return {"args": (data, packed, bias, out), "reference": arrays["reference"]}


def _run(job: RunJob, arrays: dict[str, Any], limits: Limits) -> Outcome:
    """Answer first, then time; the value is (run_secs, error, rejected samples)."""
    import numpy as np
    import tvm

    from convtvm.reference import relative_error

    module = tvm.runtime.load_module(job.path)
    args, reference = arrays["args"], arrays["reference"]
    args[3].copyfrom(np.full(reference.shape, np.nan, np.float32))  # an unwritten element shows
    module["main"](*args)
    error = relative_error(args[3].numpy(), reference)
    if not error <= job.tolerance:
        message = f"relative error {error:.1e}, at most {job.tolerance:.0e} is accepted"
        return Outcome(None, "wrong_answer", message)
    run_secs, rejected = _time(module, args, limits) if limits.samples else ([], 0)
    return Outcome((run_secs, error, rejected))


def _time(module: Any, args: list[Any], limits: Limits) -> tuple[list[float], int]:
    """Seconds a call, from timing windows that nothing else disturbed.

    A window counts only if this process was not preempted during it and, on one thread, had the
    core to itself; medians of plain timings are wrong by half on a shared machine. If no window is
    clean, the fastest ones are used.
    """
    import tvm

    device = tvm.cpu()
    once = float(module.time_evaluator("main", device, number=1, repeat=1)(*args).results[0])
    number = max(1, int(limits.window / max(once, 1e-7)))
    evaluate = module.time_evaluator("main", device, number=number, repeat=1)
    clean: list[float] = []
    disturbed: list[float] = []
    for _ in range(limits.attempts):
        preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        cpu, wall = time.process_time(), time.perf_counter()
        seconds = float(evaluate(*args).results[0])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - preempted
        alone = not preempted and (limits.threads > 1 or cpu >= 0.98 * wall)
        (clean if alone else disturbed).append(seconds)
        if len(clean) >= limits.samples:
            break
    rejected = len(disturbed)
    return (clean or sorted(disturbed)[: limits.samples]), rejected


if __name__ == "__main__":
    # As a module of its own name, so that both sides of the pipe pickle the same classes.
    from convtvm import zygote

    zygote.serve(sys.argv[1])
