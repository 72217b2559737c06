"""A forked process that may die of what it does, and what its end says."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import resource
import signal
import time
from collections.abc import Callable

from convtvm.measure.jobs import ENVIRONMENT, LENGTH, Outcome, failed, failure, send

Report = Callable[[Outcome], None]

_MEMORY = 8 << 30  # address space that a child may grow by; a runaway fails with MemoryError
_OUTPUT = 64 << 20  # bytes of a file that a child may write; one that prints for ever ends there
# Lines that say only that there was an error, before the one that says which; after the first,
# TVM's own, there is none.
_DECORATION = ("!!!!!!! ", "Stack trace", "Traceback (most recent")


class Child:
    """A forked process in its own group; what it sends through `report` arrives in `results`."""

    def __init__(self, work: Callable[[Report], None], timeout: float) -> None:
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
            self.results.append(excused(pickle.loads(self.buffer[LENGTH.size : end])))
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


def _run_child(work: Callable[[Report], None], writer: int, printed: int) -> None:
    """Body of a forked child; never returns. `os._exit` skips C++ destructors, which may hang."""
    status = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent(signal.SIGKILL)
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


def excused(outcome: Outcome) -> Outcome:
    """A failure for want of memory is not the candidate's where the limit is not ours."""
    if outcome.kind and "MemoryError" in outcome.message and _is_short_of_memory():
        return Outcome(None, ENVIRONMENT, outcome.message)
    return outcome


def crashed(ending: str) -> Outcome:
    """The outcome of a child that ended without a result."""
    if _is_short_of_memory() and ("bad_alloc" in ending or "MemoryError" in ending):
        return Outcome(None, ENVIRONMENT, ending)
    return failed("crash", ending)


def die_with_parent(number: int) -> None:
    """Have the kernel signal this process when its parent ends, however it ends (Linux only)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def limit_memory() -> None:
    _limit(resource.RLIMIT_AS, _used_memory() + _MEMORY)


def _used_memory() -> int:
    """Bytes of address space."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _is_short_of_memory() -> bool:
    """Whether a limit from outside leaves less than children may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    return hard != resource.RLIM_INFINITY and hard < _used_memory() + _MEMORY
