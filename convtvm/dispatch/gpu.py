"""Kernels on an NVIDIA GPU: the run time for it, and plans whose tensors may lie there.

The driver comes with the GPU; libtvm_runtime_cuda.so lies beside libtvm_runtime.so, and
libcudart.so.13 comes with PyTorch, with NVIDIA's packages or with the toolkit.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tvm_ffi

from convtvm.dispatch import runtime, tensors
from convtvm.dispatch.plan import Plan, operands
from convtvm.errors import ArrayError, EnvironmentProblem, NoCandidate, NoMemory
from convtvm.machine import gpu, nvidia
from convtvm.problem import arguments

_CUDA = 2  # DLPack's number of the kind of device
ALIGNMENT = 16  # bytes of the widest load


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

    def _is_plain(self, value: Any) -> bool:
        """Whether `value` is PyTorch's and fits as it is, on whichever GPU."""
        torch = sys.modules.get("torch")
        return (
            torch is not None
            and type(value) is torch.Tensor
            and value.is_cuda
            and value.dtype is self.torch_dtype
            and value.shape == self.shape
            and value.is_contiguous()
            and value.data_ptr() % ALIGNMENT == 0
            and not value.requires_grad
            and not value.is_neg()
        )

    def read(self, value: Any) -> Any:
        if self._is_plain(value):
            return tvm_ffi.from_dlpack(value)
        tensor = tensors.as_tensor(value, self, _CUDA)
        if tensor.data_ptr() % ALIGNMENT == 0:
            return tensor
        if not hasattr(value, "clone"):
            raise ArrayError(f"{self.name} does not start at a multiple of {ALIGNMENT} bytes")
        return tensors.as_tensor(value.clone(), self, _CUDA)

    def write(self, value: Any) -> Any:
        if self._is_plain(value):
            return tvm_ffi.from_dlpack(value)
        tensor = tensors.as_tensor(value, self, _CUDA, writes=True)
        if tensor.data_ptr() % ALIGNMENT:
            raise ArrayError(f"{self.name} does not start at a multiple of {ALIGNMENT} bytes")
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
        self._workspaces = [
            tensors.Port("workspace", shape, dtype) for dtype, *shape in self.choice.kernel.scratch
        ]
        self._operands_there = operands(_GpuPort, self.workload, self.code.layout, self.adds)
        self._constants: dict[int, tuple[Any, Any]] = {}  # device -> packed weight, bias
        self._lock = threading.Lock()
        self._local = threading.local()

    def __call__(self, data: Any, out: Any = None, residual: Any = None) -> Any:
        """As of Plan; `data`, `out` and `residual` are all on one GPU or all on the host."""
        torch = sys.modules.get("torch")
        kind = type(data)  # isinstance would take a Python call
        ours = torch is not None and (kind is torch.Tensor or isinstance(data, torch.Tensor))
        if torch is not None and ours:
            place = (_CUDA if data.is_cuda else 1, data.get_device())
        else:
            place = data.__dlpack_device__() if hasattr(data, "__dlpack_device__") else (1, 0)
        if place[0] != _CUDA:
            return super().__call__(data, out, residual)
        result, source, target, added = self._operands_there.take(data, out, residual)
        index = int(place[1])
        given = [] if out is None else [("out", target)]
        given += [("residual", tensor) for tensor in added]
        for name, tensor in given:
            if tensor.device.index != index:
                raise ArrayError(f"{name} is on device {tensor.device}, expected cuda:{index}")
        if torch is not None and ours:
            with _current(torch, index):
                # As Inductor asks; the public way takes ten times as long.
                stream = torch._C._cuda_getCurrentRawStream(index)
                scratch = _torch_scratch(self._workspaces, data)
                self._launch(source, target, added, index, stream, scratch)
        else:
            stream = int(tvm_ffi.get_raw_stream(tvm_ffi.device("cuda", index)))
            self._launch(source, target, added, index, stream)
        return result

    def compute(self, source: Any, target: Any, added: Sequence[Any]) -> None:
        """As of Plan, on tensors of the host: they travel to the first GPU and back."""
        device = tvm_ffi.device("cuda", 0)
        there = [_copy(tensor, device) for tensor in (source, *added)]
        out = _empty(tuple(target.shape), str(target.dtype), device)
        _wait(device)
        stream = int(tvm_ffi.get_raw_stream(device))
        self._launch(there[0], out, there[1:], 0, stream)
        _wait(device, stream)
        _copy_to(out, target)
        _wait(device)

    def repack(self, weight: Any, bias: Any = None) -> None:
        """Take another weight and bias, in the memory on devices that held the last ones: a CUDA
        graph that was captured computes with them from its next replay on.

        Waits until the devices have done what uses the last ones.
        """
        with self._lock:
            self._pack(weight, bias)
            for index, there in self._constants.items():
                device = tvm_ffi.device("cuda", index)
                _finish(device, index)
                for fresh, place in zip((self._packed, self._bias), there, strict=True):
                    _copy_to(fresh, place)
                _wait(device)

    def _launch(
        self,
        source: Any,
        target: Any,
        added: Sequence[Any],
        index: int,
        stream: int,
        scratch: Sequence[Any] | None = None,
    ) -> None:
        """Enqueue the kernel on tensors of one GPU; without `scratch` it gets TVM's."""
        self._prepare()
        device = _device(index)
        with tvm_ffi.use_raw_stream(device, stream):
            packed, bias = self._constants.get(index) or self._on(device, index)
            if scratch is None:
                scratch = self._scratch(device, (index, stream))
            operands = (source, packed, bias, target)
            self._run(*arguments.ordered(operands, scratch, self._numbers, added))

    def _on(self, device: Any, index: int) -> tuple[Any, Any]:
        """Packed weight and bias on a device, copied there at the first call.

        They lie outside of PyTorch's allocator, whose memory for CUDA graphs must hold nothing
        that outlives a run. Raises EnvironmentProblem while a graph is captured.
        """
        if is_capturing():
            raise EnvironmentProblem(
                "a CUDA graph is being captured, and the convolution's weight is not on the GPU "
                "yet; call the plan or model once in this form before the capture"
            )
        with self._lock:
            if index not in self._constants:
                there = _copy(self._packed, device), _copy(self._bias, device)
                _wait(device)  # any stream may use them next
                self._constants[index] = there
            return self._constants[index]

    def _scratch(self, device: Any, key: tuple[int, int]) -> Sequence[Any]:
        """TVM's workspaces for the kernel, one set for each thread and stream that calls."""
        kept: dict[tuple[int, int], list[Any]] = self._local.__dict__.setdefault("scratch", {})
        if key not in kept:
            kept[key] = [_empty(s, dtype, device) for dtype, *s in self.choice.kernel.scratch]
        return kept[key]


@cache
def _device(index: int) -> Any:
    return tvm_ffi.device("cuda", index)


def is_capturing() -> bool:
    """Whether PyTorch is capturing a CUDA graph on its current stream."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    return bool(torch.cuda.is_current_stream_capturing())


def _torch_scratch(ports: Sequence[tensors.Port], data: Any) -> Sequence[Any]:
    """Workspaces of one call from PyTorch's allocator, which hands them to the next work of the
    stream: in a CUDA graph they lie in its pool."""
    return [tvm_ffi.from_dlpack(port.empty_like(data)) for port in ports]


def _current(torch: Any, index: int) -> Any:
    """A context with the device as the current one, which TVM makes it in any case."""
    if torch.cuda.current_device() == index:
        return contextlib.nullcontext()
    return torch.cuda.device(index)


def _empty(shape: Sequence[int], dtype: str, device: Any) -> Any:
    allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    wanted = tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), device, None
    torch = sys.modules.get("torch")
    try:
        return allocate(*wanted)
    except RuntimeError as error:
        problem = error
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what PyTorch keeps for later
        with contextlib.suppress(RuntimeError):
            return allocate(*wanted)
    size = math.prod(shape) * tvm_ffi.dtype(dtype).itemsize
    reason = "".join(str(problem).strip().splitlines()[-1:])
    raise NoMemory(f"no memory for {size:,} bytes on {device}: {reason}")


def _wait(device: Any, stream: int = 0) -> None:
    """Until a stream is done, by default the one that `_copy_to` copies on."""
    tvm_ffi.get_global_func("runtime.Device_StreamSync")(device, stream)


def _finish(device: Any, index: int) -> None:
    """Until all that callers may have enqueued on a device is done."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize(index)
    _wait(device, tvm_ffi.get_raw_stream(device))


def _copy(tensor: Any, device: Any) -> Any:
    there = _empty(tuple(tensor.shape), str(tensor.dtype), device)
    _copy_to(tensor, there)
    return there


def _copy_to(source: Any, target: Any) -> None:
    tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")(source, target)
