"""What the warps of a kernel ask of shared and of global memory, counted on the emulated GPU.

Each line is one instruction of a kernel, by all warps of all blocks. Shared memory has 32 banks of
4 bytes: lanes that are served at once and want different words of one bank have to wait for each
other. Which lanes those are: all 32 for up to 4 bytes each, 16 for 8, 8 for 16; of a load of
matrices the 8 rows of one matrix. (NVIDIA documents words of 4 bytes; that wider accesses go by
halves and quarters of a warp is what its profiler shows.)
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from convtvm.kernels.cuda import cubin
from convtvm.measure.gpu_verify import GpuCheck


@dataclass(frozen=True)
class Access:
    """One instruction that reads or writes memory: `space` is shared or global, `kind` load, store,
    copy (cp.async) or matrices (ldmatrix), `bytes` those of a lane.

    Of shared memory `cost` are the turns that all `requests` took, `least` the turns without
    conflicts and `worst` the most turns of lanes that are served at once: the ways of a conflict.
    Of global memory these are sectors of 32 bytes: touched, enough for so many bytes, and of the
    largest request.
    """

    kernel: str
    space: str
    kind: str
    bytes: int
    requests: int
    cost: int
    least: int
    worst: int

    @property
    def conflicts(self) -> int:
        """Turns, or sectors, that another arrangement would save."""
        return self.cost - self.least

    @classmethod
    def parse(cls, line: str) -> Access:
        kernel, space, kind, *numbers = line.split("\t")
        return cls(kernel, space, kind, *map(int, numbers))


@dataclass(frozen=True)
class CountedCheck(GpuCheck):
    """A check that returns the accesses of the kernels it ran, which have to be right as well."""

    def __call__(self) -> Any:
        with _counting() as counted:
            super().__call__()
            return counted()


class _Launch(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("count", ctypes.c_uint),
    )


@dataclass(frozen=True)
class CountedSource:
    """The accesses of one block of `threads` of the kernel `main_kernel(float* x)` in CUDA source,
    where x has 64 KB."""

    source: str
    threads: int = 32
    device: ClassVar[str] = "cuda"

    def __call__(self) -> list[Access]:
        driver = ctypes.CDLL("libcuda.so.1")
        with _counting() as counted:
            image = cubin.compile_source(self.source, ["sm_90"]).data
            module, function, x = (ctypes.c_void_p() for _ in range(3))
            driver.cuModuleLoadData(ctypes.byref(module), image)
            driver.cuModuleGetFunction(ctypes.byref(function), module, b"main_kernel")
            driver.cuMemAlloc_v2(ctypes.byref(x), ctypes.c_size_t(65536))
            launch = _Launch((1, 1, 1), (self.threads, 1, 1), 65536)
            values = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.pointer(x), ctypes.c_void_p))
            status = driver.cuLaunchKernelEx(ctypes.byref(launch), function, values, None)
            if status:
                raise ValueError(f"status {status} of the launch")
            return counted()


@contextmanager
def _counting() -> Iterator[Callable[[], list[Access]]]:
    """While it lasts, kernels are compiled for counting; gives what was counted so far."""
    with TemporaryDirectory(prefix="accesses-") as folder:
        path = Path(folder, "accesses.txt")
        os.environ["EMULATOR_ACCESSES"] = str(path)
        try:
            yield lambda: [Access.parse(line) for line in path.read_text("utf8").splitlines()]
        finally:
            del os.environ["EMULATOR_ACCESSES"]
