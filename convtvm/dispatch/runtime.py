"""The TVM run time: libtvm_runtime.so, images loaded from memory, a pool of workers a thread."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import mmap
import os
import threading
from functools import cache
from pathlib import Path
from typing import Any

import tvm_ffi

from convtvm.dispatch.copies import Local
from convtvm.errors import EnvironmentProblem, LibraryError, NoMemory

# TVM reads this when the first pool of the process starts. Its own 300,000 keep each worker's core
# busy for 0.1 s after a call, at the cost of whatever else the process does; the layers of a
# network follow each other sooner than these 10 ms.
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "25000")


_MARGIN = 1 << 20  # bytes: what the allocator adds to the buffers of a workspace


@cache
def folder() -> Path:
    """The folder with libtvm_runtime.so. Raises EnvironmentProblem."""
    spec = importlib.util.find_spec("tvm")
    deployed = Path(__file__).parents[2] / "lib"
    folders = [os.environ.get("CONVTVM_RUNTIME_DIR", ""), str(deployed)]
    if spec is not None and spec.origin:
        folders.append(str(Path(spec.origin).parent / "lib"))
    for path in map(Path, filter(None, folders)):
        if (path / "libtvm_runtime.so").is_file():
            return path
    raise EnvironmentProblem(
        "libtvm_runtime.so not found; install apache-tvm==0.27.0.post1 or set CONVTVM_RUNTIME_DIR"
    )


@cache
def _load_runtime() -> None:
    """Make libtvm_runtime.so's symbols visible; kernels bind to them when they load."""
    ctypes.CDLL(str(folder() / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)


def start(threads: int) -> None:
    """Load the run time such that its pools can grow to `threads` threads."""
    # TVM reads this when a pool starts, and a pool never grows past the number it started with.
    wanted = max(threads, os.cpu_count() or 1, int(os.environ.get("TVM_NUM_THREADS", "0") or 0))
    os.environ["TVM_NUM_THREADS"] = str(wanted)
    _load_runtime()


class Image(Local):
    """A shared object loaded from a private copy in memory: its file may be replaced meanwhile, and
    the dynamic loader would answer a second load of the same path with the old code.

    Raises LibraryError if the loader refuses it.
    """

    _elsewhere = "load the file there"
    _memory = -1

    def __init__(self, content: bytes) -> None:
        self._memory = os.memfd_create("convtvm-library")
        with os.fdopen(os.dup(self._memory), "wb") as file:
            file.write(content)
        loader = tvm_ffi.get_global_func("ffi.Module.load_from_file.so")
        try:
            self._module = loader(f"/proc/self/fd/{self._memory}", "so")
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1:]
            raise LibraryError(f"the library cannot be loaded: {''.join(reason)}") from None

    def __del__(self) -> None:
        if hasattr(self, "_module"):
            del self._module
        if self._memory >= 0:
            os.close(self._memory)

    def __getitem__(self, function: str) -> Any:
        return self._module[function]


class _Pool(threading.local):
    """The calling thread's pool of workers: TVM keeps one for every thread that runs kernels."""

    def __init__(self) -> None:
        self.threads = 0
        self.served: set[int] = set()  # plans whose workspace this thread's pools have held

    def use(self, threads: int) -> None:
        """Let parallel kernels of this thread run on `threads` threads."""
        if threads != self.threads:
            all_cores = 0  # TVM's affinity mode that prefers big cores
            tvm_ffi.get_global_func("runtime.config_threadpool")(all_cores, threads)
            self.threads = threads

    def serve(self, plan: int, workspace: int) -> None:
        """Before the first call of a plan in this thread: see that its workspace can be had.

        A kernel allocates it through C code, which no exception may pass: where there is none, the
        process ends. TVM's pool keeps it for the calls that follow. Raises NoMemory.
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


pool = _Pool()
numbers = itertools.count()  # of plans and models, as `serve` knows them
