"""The TVM run time: libtvm_runtime.so, and images loaded from memory."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import tvm_ffi

from convtvm.dispatch.copies import Local
from convtvm.dispatch.ending import ending
from convtvm.dispatch.threads import Team, connect, join, pool
from convtvm.errors import EnvironmentProblem, LibraryError


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
def start() -> None:
    """Make libtvm_runtime.so's symbols visible; kernels bind to them when they load."""
    ctypes.CDLL(str(folder() / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)


class Image(Local):
    """A shared object loaded from a private copy in memory: its file may be replaced meanwhile, and
    the dynamic loader would answer a second load of the same path with the old code.

    Its parallel loops run on at most `threads` threads. Raises LibraryError if the loader refuses
    it.
    """

    _elsewhere = "load the file there"
    _memory = -1

    def __init__(self, content: bytes, threads: int) -> None:
        self._memory = os.memfd_create("convtvm-library")
        with os.fdopen(os.dup(self._memory), "wb") as file:
            file.write(content)
        loader = tvm_ffi.get_global_func("ffi.Module.load_from_file.so")
        path = self._path
        try:
            self._module = loader(path, "so")
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1:]
            raise LibraryError(f"the library cannot be loaded: {''.join(reason)}") from None
        # How many threads of TVM's pool its loops run on, if it is of an earlier version; 0 if not.
        self.pool_threads = 0 if connect(path, self, threads) else threads

    @property
    def _path(self) -> str:
        return f"/proc/self/fd/{self._memory}"

    def join(self, team: Team) -> None:
        """Let its parallel loops run on another library's threads from now on."""
        join(self._path, self, team)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # At the interpreter's end modules are gone before what they made.
        if hasattr(self, "_module"):
            del self._module
        if self._memory >= 0:
            close(self._memory)

    def prepare(self) -> None:
        """Before a function is called: threads for those that need TVM's, and the end of the
        interpreter seen to."""
        if ending.begun:
            ending.hold()
        if self.pool_threads:
            pool.use(self.pool_threads)

    def __getitem__(self, function: str) -> Any:
        return self._module[function]
