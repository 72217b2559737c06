"""What parallel loops run on: one launcher with its workers, which all libraries share.

A library for several threads brings a launcher (kernels/launcher/launcher.c); the first one of a
process serves all libraries, and is never unloaded. A library may be told to use another library's
OpenMP threads instead. Kernels for one thread have no parallel loop. Libraries of earlier versions
use TVM's pool, one for every calling thread.
"""

from __future__ import annotations

import _ctypes
import ctypes
import itertools
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tvm_ffi

from convtvm.errors import NoMemory

_MOST = 1024  # threads; a loop never gets more than the caller has CPUs
_MARGIN = 1 << 20  # bytes: what the allocator adds to the buffers of a workspace

# TVM reads this when the first pool of the process starts. Its own 300,000 keep each worker's core
# busy for 0.1 s after a call.
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "25000")


class _Launcher(ctypes.Structure):
    """What loops of an image call, and on how many threads; 0 means what it was compiled for."""

    _fields_ = (("launch", ctypes.c_void_p), ("threads", ctypes.c_int32))


@dataclass(frozen=True)
class Team:
    """The OpenMP of a library, by addresses of its functions: GOMP_parallel, omp_get_thread_num,
    omp_get_num_threads, omp_in_parallel, and one that says how many threads a loop of the caller
    may have, as omp_get_max_threads does."""

    parallel: int
    number: int
    size: int
    inside: int
    limit: int


class _Team(ctypes.Structure):
    """The team of an image's launcher: how to launch there, and without a team; then a Team."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in ("launch", "own", "parallel", "number", "size", "inside", "limit")
    )


class _Shared:
    """The launchers of the process: of the first image that has one, whose owner stays."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._launch: int | None = None
        self._team: _Team | None = None
        self._owners: list[object] = []

    def serve(self, launcher: _Launcher, owner: object) -> None:
        with self._lock:
            if self._launch is None:
                self._launch = launcher.launch
                self._owners.append(owner)
            launcher.launch = self._launch

    def serve_team(self, launcher: _Launcher, team: _Team, lent: Team, owner: object) -> None:
        """After `serve`: launches on the team that was lent first, by the first image that can."""
        with self._lock:
            if self._team is None:
                team.own = self._launch
                team.parallel = None if _Pool.forked else lent.parallel
                team.number, team.size = lent.number, lent.size
                team.inside, team.limit = lent.inside, lent.limit
                self._team = team
                self._owners.append(owner)
            launcher.launch = self._team.launch

    def fork(self) -> None:
        """In a child, where the team's threads are missing: workers of its own instead."""
        self._lock = threading.Lock()
        if self._team is not None:
            self._team.parallel = None


_shared = _Shared()


def connect(path: str, owner: object, threads: int = 0) -> bool:
    """Have the loops of the image loaded from `path`, which `owner` keeps loaded, run on the
    process's workers, on at most `threads` threads; 0 for what it was compiled for.

    False for an image of before, whose loops run in TVM's pool.
    """
    with _symbols_of(path) as library:
        if _has(library, "convtvm_launcher"):
            launcher = _Launcher.in_dll(library, "convtvm_launcher")
            launcher.threads = min(threads, _MOST)
            _shared.serve(launcher, owner)
            return True
        return not _has(library, "__TVMBackendParallelLaunch")


def join(path: str, owner: object, team: Team) -> None:
    """Have the loops of an image, as of `connect`, run on the threads of `team`. One that was made
    by an earlier version, or for one thread, stays as it is."""
    with _symbols_of(path) as library:
        if _has(library, "convtvm_team"):
            launcher = _Launcher.in_dll(library, "convtvm_launcher")
            _shared.serve_team(launcher, _Team.in_dll(library, "convtvm_team"), team, owner)


@contextmanager
def _symbols_of(path: str) -> Iterator[ctypes.CDLL]:
    library = ctypes.CDLL(path, os.RTLD_NOLOAD | os.RTLD_NOW)
    try:
        yield library
    finally:
        _ctypes.dlclose(library._handle)


def _has(library: ctypes.CDLL, symbol: str) -> bool:
    try:
        ctypes.c_void_p.in_dll(library, symbol)
    except ValueError:
        return False
    return True


class _Pool(threading.local):
    """What kernels of the calling thread have of TVM: memory for workspaces and, in libraries of
    earlier versions, workers."""

    forked = False  # in a child, where the workers of the parent's pools are missing

    def __init__(self) -> None:
        self.threads = 0
        self.served: set[int] = set()  # plans whose workspace was to be had when this thread asked

    def use(self, threads: int) -> None:
        """Let parallel loops of this thread run on `threads` threads, at most its CPUs."""
        if threads == self.threads:
            return
        mask = os.sched_getaffinity(0)
        usable = 1 if _Pool.forked else min(threads, len(mask))
        if usable == 1:
            _alone()
        else:
            # Read when a pool starts; it never grows past that.
            os.environ["TVM_NUM_THREADS"] = str(len(mask))
            all_cores = 0  # TVM's affinity mode that prefers big cores
            tvm_ffi.get_global_func("runtime.config_threadpool")(all_cores, usable)
            os.sched_setaffinity(0, mask)  # TVM gave this thread all CPUs
        self.threads = threads

    def serve(self, plan: int, workspace: int) -> None:
        """Before the first call of a plan in this thread: see that its workspace can be had.

        A kernel allocates it through C code, which no exception may pass: where there is none, the
        process ends. TVM keeps it for the calls that follow. Raises NoMemory.
        """
        try:
            if workspace:
                private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                mmap.mmap(-1, workspace + _MARGIN, flags=private).close()
        except (OSError, OverflowError):
            raise NoMemory(
                f"no memory for a workspace of {workspace:,} bytes; plan(..., workspace_limit="
                "BYTES) chooses a kernel that needs less"
            ) from None
        self.served.add(plan)


def _alone() -> None:
    """Have loops of this thread run in it. Asked for one thread by its own function, TVM would
    start a pool for it all the same."""
    ctypes.CDLL(None)._ZN3tvm7runtime9threading17SetMaxConcurrencyEi(1)


def _after_fork() -> None:
    _Pool.forked, pool.threads = True, 0
    _shared.fork()


pool = _Pool()
numbers = itertools.count()  # of plans and models, as `serve` knows them
os.register_at_fork(after_in_child=_after_fork)
