"""Kernels on an NVIDIA GPU: the run time for it, and plans whose tensors may lie there.

The driver comes with the GPU; libtvm_runtime_cuda.so lies beside libtvm_runtime.so, and
libcudart.so.13 comes with PyTorch, with NVIDIA's packages or with the toolkit.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

from convtvm.dispatch import runtime, tensors
from convtvm.dispatch.plan import Plan, operands
from convtvm.errors import ArrayError, EnvironmentProblem, NoCandidate, NoMemory
from convtvm.machine import gpu, nvidia
from convtvm.problem import arguments

_CUDA = 2  # DLPack's number of the kind of device
_ALIGNMENT = 16  # bytes of the widest load


def objection(target: str, path: str | Path) -> str:
    """Why this machine has no GPU that runs kernels for `target`; empty if it has."""
    built = target.partition("-arch=")[2]
    found = gpu.devices()
    if not found:
        return (
            f"{path} is compiled for NVIDIA GPUs ({built}); this machine has none, or no driver "
            "for it (libcuda.so.1)"
        )
    if any(gpu.runs(arch, found[0].arch) for arch in built.split(",")):
        return ""
    return (
        f"{path} is compiled for {built}; this GPU, {found[0].name}, is {found[0].arch}; "
        f"compile it with --target cuda:{found[0].arch}"
    )


@cache
def start() -> None:
    """Load TVM's CUDA run time into the process. Raises EnvironmentProblem."""
    if nvidia.load("libcudart.so.13") is None:
        raise EnvironmentProblem(
            "libcudart.so.13 not found; install PyTorch for CUDA 13 or nvidia-cuda-runtime"
        )
    library = runtime.folder() / "libtvm_runtime_cuda.so"
    try:
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise EnvironmentProblem(f"cannot load {library}: {error}") from None


class _GpuPort(tensors.Port):
    """A tensor argument on a GPU, where the kernels' widest loads need it aligned."""

    def read(self, value: Any) -> Any:
        tensor = tensors.as_tensor(value, self, _CUDA)
        if tensor.data_ptr() % _ALIGNMENT == 0:
            return tensor
        if not hasattr(value, "clone"):
            raise ArrayError(f"{self.name} does not start at a multiple of {_ALIGNMENT} bytes")
        return tensors.as_tensor(value.clone(), self, _CUDA)

    def write(self, value: Any) -> Any:
        tensor = tensors.as_tensor(value, self, _CUDA, writes=True)
        if tensor.data_ptr() % _ALIGNMENT:
            raise ArrayError(f"{self.name} does not start at a multiple of {_ALIGNMENT} bytes")
        return tensor


class GpuPlan(Plan):
    """A plan whose kernel runs on a GPU.

    Tensors on the GPU are used where they lie, on PyTorch's current stream, without waiting for
    the result. Arrays of the host travel to the first GPU and back.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if not self._fused:
            raise NoCandidate(
                f"the library was compiled without the epilogue {self._epilogue!r}; on a GPU it "
                "has to be in the kernel: convtvm.compile(..., epilogues=...)"
            )
        self._operands_there = operands(_GpuPort, self.workload, self.code.layout, self.adds)
        self._constants: dict[int, tuple[Any, Any]] = {}  # device -> packed weight, bias
        self._lock = threading.Lock()
        self._local = threading.local()

    def __call__(self, data: Any, out: Any = None, residual: Any = None) -> Any:
        """As of Plan; `data`, `out` and `residual` are all on one GPU or all on the host."""
        place = data.__dlpack_device__() if hasattr(data, "__dlpack_device__") else (1, 0)
        if place[0] != _CUDA:
            return super().__call__(data, out, residual)
        result, source, target, added = self._operands_there.take(data, out, residual)
        index = int(place[1])
        for name, tensor in zip(("out", "residual"), (target, *added), strict=False):
            if tensor.device.index != index:
                raise ArrayError(f"{name} is on device {tensor.device}, expected cuda:{index}")
        self._launch(source, target, added, index, _stream(data, index))
        return result

    def compute(self, source: Any, target: Any, added: Sequence[Any]) -> None:
        """As of Plan, on tensors of the host: they travel to the first GPU and back."""
        device = tvm_ffi.device("cuda", 0)
        there = [_copy(tensor, device) for tensor in (source, *added)]
        out = _empty(tuple(target.shape), str(target.dtype), device)
        self._launch(there[0], out, there[1:], 0, int(tvm_ffi.get_raw_stream(device)))
        _copy_to(out, target)
        tvm_ffi.get_global_func("runtime.Device_StreamSync")(device, 0)

    def _launch(
        self, source: Any, target: Any, added: Sequence[Any], index: int, stream: int
    ) -> None:
        """Run the kernel on tensors of one GPU."""
        self._prepare()
        device = tvm_ffi.device("cuda", index)
        bounds = () if self._epilogue == "none" else self._bounds
        with tvm_ffi.use_raw_stream(device, stream):
            packed, bias = self._on(device, index)
            scratch = self._scratch(device, (index, stream))
            operands = (source, packed, bias, target)
            self._run(*arguments.ordered(operands, scratch, bounds, added))

    def _on(self, device: Any, index: int) -> tuple[Any, Any]:
        """Packed weight and bias on a device, copied there at the first call."""
        with self._lock:
            if index not in self._constants:
                self._constants[index] = (_copy(self._packed, device), _copy(self._bias, device))
                # Other streams may use them next.
                tvm_ffi.get_global_func("runtime.Device_StreamSync")(
                    device, tvm_ffi.get_raw_stream(device)
                )
            return self._constants[index]

    def _scratch(self, device: Any, key: tuple[int, int]) -> Sequence[Any]:
        """The kernel's workspaces, one set for each thread and stream that calls."""
        kept: dict[tuple[int, int], list[Any]] = self._local.__dict__.setdefault("scratch", {})
        if key not in kept:
            kept[key] = [_empty(s, dtype, device) for dtype, *s in self.choice.kernel.scratch]
        return kept[key]


def _stream(data: Any, index: int) -> int:
    """The stream on which the caller works: PyTorch's for its tensors, else the one set for TVM."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(data, torch.Tensor):
        return int(torch.cuda.current_stream(index).cuda_stream)
    return int(tvm_ffi.get_raw_stream(tvm_ffi.device("cuda", index)))


def _empty(shape: Sequence[int], dtype: str, device: Any) -> Any:
    allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    try:
        return allocate(tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), device, None)
    except RuntimeError as error:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        reason = str(error).strip().splitlines()[-1:]
        raise NoMemory(f"no memory for {size:,} bytes on {device}: {''.join(reason)}") from None


def _copy(tensor: Any, device: Any) -> Any:
    there = _empty(tuple(tensor.shape), str(tensor.dtype), device)
    _copy_to(tensor, there)
    return there


def _copy_to(source: Any, target: Any) -> None:
    tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")(source, target)
