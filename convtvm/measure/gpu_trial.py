"""Candidates on a GPU, in the process that may die of them and otherwise goes on to the next.

What the process keeps is safe from what a candidate does: every array lies between guards, and
after each candidate guards and inputs must be what they were. So a kernel that writes where it must
not is found out at once, and never spoils another's answer.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from convtvm.errors import EnvironmentProblem
from convtvm.measure import gpu_timing, race
from convtvm.measure.jobs import Limits, Outcome, RaceJob, RunJob
from convtvm.measure.trial import judge
from convtvm.problem import dtypes
from convtvm.problem.reference import relative_error

_ALIGNMENT = 256  # bytes, as cudaMalloc's
_GUARD = 64 << 10  # bytes before and behind every array
_BLANK = 0xFF  # of guards and of what is to be written: a NaN in every floating-point format
_KEPT = 1 / 8  # of the host's or the GPU's memory, whichever is smaller: inputs and packed weights


class Device:
    """The first GPU, with the inputs and packed weights that were used last.

    Raises EnvironmentProblem if there is none.
    """

    def __init__(self) -> None:
        self._driver = gpu_timing.driver()
        self._device = tvm.device("cuda")
        if not self._device.exist:
            raise EnvironmentProblem("TVM finds no CUDA device here")
        self._kept: OrderedDict[tuple[str, ...], _Problem | Guarded] = OrderedDict()
        left, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._driver.cuMemGetInfo_v2(ctypes.byref(left), ctypes.byref(total))
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._most = int(_KEPT * min(host, total.value))  # bytes

    def run(self, job: RunJob | RaceJob, limits: Limits) -> Outcome:
        """Check and time a candidate; what it did outside of its output is its failure."""
        if isinstance(job, RaceJob):
            return self._race(job, limits)
        problem, packed = self._problem(job.inputs), self._packed(job)
        workspaces = {f"workspace {i}": s for i, s in enumerate(job.scratch)}
        scratch = Guarded(self._device, workspaces)
        problem.arrays.blank("out")
        held = problem.arrays.tensors
        operands = held["data"], packed.tensors["weight"], held["bias"], held["out"]
        module = tvm.runtime.load_module(job.path)
        call = partial(module["main"], *operands, *scratch.tensors.values())
        call()
        timing = partial(gpu_timing.time_gpu, call)
        error = problem.error(held["out"].numpy(), job.tolerance)
        return self._unless_damaged(
            judge(job, error, timing, limits), problem.arrays, packed, scratch
        )

    def _race(self, job: RaceJob, limits: Limits) -> Outcome:
        """The kernels of one workload in turn, called as a user does it."""
        problem = self._problem(job.inputs)
        data, out = (problem.arrays.tensors[name] for name in ("data", "out"))
        host = {name: dtypes.load(Path(job.inputs, f"{name}.npy")) for name in ("weight", "bias")}
        runs, errors = {}, {}
        for function, plan in race.plans(job, host, limits.threads).items():
            problem.arrays.blank("out")
            runs[function] = partial(plan, data, out=out)
            runs[function]()
            self.wait()
            errors[function] = problem.error(out.numpy(), job.tolerances[function])
        right = {f: run for f, run in runs.items() if errors[f] <= job.tolerances[f]}
        times = gpu_timing.race(right, limits)
        return self._unless_damaged(race.results(job, errors, times), problem.arrays)

    def _unless_damaged(self, outcome: Outcome, *arrays: Guarded) -> Outcome:
        """The outcome, or that of kernels which have written where they must not."""
        self.wait()
        for guarded in arrays:
            for name in guarded.damaged():
                return Outcome(None, "runtime", f"the kernel writes {name}")
        return outcome

    def wait(self) -> None:
        """Until the device has done everything. Raises RuntimeError for what went wrong there."""
        status = self._driver.cuCtxSynchronize()
        if status:
            name = ctypes.c_char_p()
            self._driver.cuGetErrorName(status, ctypes.byref(name))
            raise RuntimeError(f"CUDA: {(name.value or b'no name').decode()} ({status})")

    def _problem(self, folder: str) -> _Problem:
        made = self._find((folder,)) or self._keep((folder,), _Problem(self._device, Path(folder)))
        assert isinstance(made, _Problem)
        return made

    def _packed(self, job: RunJob) -> Guarded:
        """The weight, packed by the job's own function."""
        key = job.inputs, job.pack
        made = self._find(key)
        if made is None:
            weight = dtypes.load(Path(job.inputs, "weight.npy"))
            packed = tvm.runtime.empty(job.packed_shape, str(weight.dtype))
            tvm.runtime.load_module(job.pack)["main"](tvm.runtime.tensor(weight), packed)
            made = self._keep(key, Guarded(self._device, {"weight": packed.numpy()}))
        assert isinstance(made, Guarded)
        return made

    def _find(self, key: tuple[str, ...]) -> _Problem | Guarded | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _keep(self, key: tuple[str, ...], made: _Problem | Guarded) -> _Problem | Guarded:
        """Add it, in the place of what was not used for the longest time."""
        self._kept[key] = made
        while len(self._kept) > 2 and sum(each.bytes for each in self._kept.values()) > self._most:
            self._kept.popitem(last=False)
        return made


class _Problem:
    """The arrays of a folder that `write_problem` has made, with room for the output."""

    def __init__(self, device: Any, folder: Path) -> None:
        data, bias, self._reference = (
            dtypes.load(folder / f"{name}.npy") for name in ("data", "bias", "reference")
        )
        out = (str(data.dtype), *self._reference.shape)
        self.arrays = Guarded(device, {"data": data, "bias": bias, "out": out})
        self.bytes = self.arrays.bytes + 2 * self._reference.nbytes
        self._rounded = self._reference.astype(np.float32)
        self._difference = np.empty_like(self._rounded)
        self._scale = float(np.max(np.abs(self._rounded), initial=0.0))

    def error(self, out: np.ndarray, tolerance: float) -> float:
        """How far the output is from the right answer, relative to the largest element.

        In float32, which is a tenth of the work and at most 2e-7 off; where that could matter, or
        something is not finite, in float64.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(out, self._rounded, out=self._difference, dtype=np.float32)
            np.abs(self._difference, out=self._difference)
            largest = float(np.max(self._difference, initial=0.0))
            if largest <= self._scale * tolerance / 2 and math.isfinite(self._scale):
                return largest / self._scale if self._scale else 0.0
        return relative_error(out, self._reference)


class Guarded:
    """Arrays in one piece of a device's memory, each between guards that nobody may write.

    `contents` are arrays to be read, or (dtype, *shape) of those to be written, which start as NaN.
    """

    def __init__(self, device: Any, contents: Mapping[str, np.ndarray | Sequence[Any]]) -> None:
        places, size = {}, _GUARD
        for name, content in contents.items():
            dtype, shape = _described(content)
            length = int(np.prod(shape, dtype=np.int64)) * dtypes.numpy_dtype(dtype).itemsize
            places[name] = size, length
            size += -(-length // _ALIGNMENT) * _ALIGNMENT + _GUARD
        self.bytes = size if contents else 0
        self.tensors: dict[str, Any] = {}
        self._places = places
        self._kept: list[tuple[str, int, np.ndarray]] = []  # what must not change: name, offset
        if not contents:
            return
        self._memory = tvm.runtime.empty((size,), "uint8", device)
        self._fill(0, size)
        end, last = 0, "the start of memory"
        for name, content in contents.items():
            offset, length = places[name]
            dtype, shape = _described(content)
            self._keep(f"between {last} and {name}", end, _blanks(offset - end))
            self.tensors[name] = _part(self._memory, shape, dtype, offset)
            if isinstance(content, np.ndarray):
                self.tensors[name].copyfrom(content)
                self._keep(f"into {name}", offset, content.reshape(-1).view(np.uint8))
            end, last = offset + length, name
        self._keep(f"beyond {last}", end, _blanks(size - end))

    def blank(self, name: str) -> None:
        """Make an array NaN, so that an element that is not written shows."""
        self._fill(*self._places[name])

    def damaged(self) -> list[str]:
        """Where memory has changed that nobody may write, in words."""
        found = []
        for name, offset, expected in self._kept:
            there = _part(self._memory, expected.shape, "uint8", offset).numpy()
            if not np.array_equal(there, expected):
                found.append(name)
        return found

    def _keep(self, name: str, offset: int, expected: np.ndarray) -> None:
        self._kept.append((name, offset, expected))

    def _fill(self, offset: int, length: int) -> None:
        start = ctypes.c_void_p(self._memory.data_ptr() + offset)
        arguments = start, ctypes.c_ubyte(_BLANK), ctypes.c_size_t(length), None
        status = gpu_timing.driver().cuMemsetD8Async(*arguments)
        if status:
            raise RuntimeError(f"cuMemsetD8Async: {status}")


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint32),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


def _part(memory: Any, shape: Sequence[int], dtype: str, offset: int) -> Any:
    """A tensor over memory from an offset on, which is in its address: kernels refuse DLPack's
    `byte_offset`, where TVM puts it."""
    capsule = memory._create_view(shape, dtype, offset)._to_dlpack()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    described = _DLTensor.from_address(pointer(capsule, b"dltensor"))
    described.data += described.byte_offset
    described.byte_offset = 0
    return tvm_ffi.from_dlpack(capsule)


def _described(content: np.ndarray | Sequence[Any]) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape)"""
    if isinstance(content, np.ndarray):
        return str(content.dtype), content.shape
    dtype, *shape = content
    return str(dtype), tuple(map(int, shape))


def _blanks(count: int) -> np.ndarray:
    return np.full(count, _BLANK, np.uint8)
