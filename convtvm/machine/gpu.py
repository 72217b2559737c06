"""GPUs: what their architectures offer, and which ones this machine has, asked of the driver."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Architecture:
    """Limits and rates of one generation.

    Limits are those of the CUDA C++ Programming Guide, table of compute capabilities.
    `processors` is the number of multiprocessors of its largest usual product; `shared_bytes` the
    most that one block may use, dynamically and after opting in; `shared_total` and
    `threads_total` are per processor, `registers` (32 bits) per processor and per block.

    Rates are of that product's data sheet, for one cycle of one processor at the boost clock:
    multiply-adds of float32, and of float16 by the instruction mma with sums in float32; words of
    4 bytes that arrive from the L2 cache.
    """

    processors: int
    shared_bytes: int
    shared_total: int
    threads_total: int
    multiply_adds: float
    tensor: float
    l2_words: float
    max_threads: int = 1024
    warp: int = 32
    registers: int = 65536


_KB = 1024
ARCHITECTURES: dict[str, Architecture] = {
    "sm_75": Architecture(40, 64 * _KB, 64 * _KB, 1024, 64, 512, 5.0),
    "sm_80": Architecture(108, 163 * _KB, 164 * _KB, 2048, 64, 1024, 7.0),
    "sm_86": Architecture(84, 99 * _KB, 100 * _KB, 1536, 128, 512, 5.0),
    "sm_89": Architecture(128, 99 * _KB, 100 * _KB, 1536, 128, 512, 4.0),
    "sm_90": Architecture(132, 227 * _KB, 228 * _KB, 2048, 128, 1024, 6.0),
    "sm_100": Architecture(148, 227 * _KB, 228 * _KB, 2048, 128, 1024, 6.0),
    "sm_120": Architecture(170, 99 * _KB, 100 * _KB, 1536, 128, 512, 4.0),
}
COMMON = ("sm_80", "sm_90")  # what `cuda` stands for where there is no GPU to ask


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine; `arch` as in ARCHITECTURES, L2 cache in bytes."""

    name: str
    arch: str
    l2_bytes: int


def age(arch: str) -> int:
    """Sort key of an architecture, oldest first."""
    return int(arch.removeprefix("sm_"))


def runs(built: str, device: str) -> bool:
    """Whether a device of an architecture runs machine code of another: the same major number, no
    older."""
    code, own = age(built), age(device)
    return code // 10 == own // 10 and code <= own


def common(arches: Sequence[str]) -> Architecture:
    """What all of `arches` offer."""
    many = [ARCHITECTURES[arch] for arch in arches]
    fields = Architecture.__dataclass_fields__
    return Architecture(**{name: min(getattr(a, name) for a in many) for name in fields})


@cache
def devices() -> tuple[Gpu, ...]:
    """The GPUs that the driver reports, none if there is no driver.

    Initialises the driver in this process, after which it must not fork workers that use a GPU.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_describe(driver, index) for index in range(count.value))


def _describe(driver: ctypes.CDLL, index: int) -> Gpu:
    l2_cache_size, major, minor = 38, 75, 76  # CUdevice_attribute
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), index)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, index)
        return value.value

    arch = f"sm_{attribute(major)}{attribute(minor)}"
    return Gpu(name.value.decode(errors="replace"), arch, attribute(l2_cache_size))
