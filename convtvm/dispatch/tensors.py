"""Arrays at the border: numpy and DLPack tensors in and out, refused where they do not fit.

An ordinary array takes one test of its type and five of its fields, and goes in as it is; whatever
fails one of them takes the long way, which converts it or says what is wrong.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import tvm_ffi

from convtvm.errors import ArrayError, NoMemory
from convtvm.problem.dtypes import BFLOAT16, is_float, numpy_dtype

_CPU = 1  # DLPack's number of the kind of device
# Libraries whose arrays may be written, though not all of their versions say so by DLPack's flag.
_MUTABLE = ("cupy", "numpy", "paddle", "torch", "tvm_ffi")


class Port:
    """One tensor argument of a kernel, or of a model: its name, for messages, shape and dtype."""

    def __init__(self, name: str, shape: Sequence[int], dtype: str = "float32") -> None:
        self.name, self.shape, self.dtype = name, tuple(shape), numpy_dtype(dtype)
        self._export = exporter(dtype)
        self.bytes = self.dtype.itemsize * math.prod(shape)
        self._in_torch = dtype == "float32"  # other dtypes take the long way
        self._torch_dtype: Any = None

    def __repr__(self) -> str:
        return f"{self.name}: {self.dtype} {'x'.join(map(str, self.shape))}"

    def read(self, value: Any) -> Any:
        """`value` as a tvm_ffi tensor to read; a copy only if it is not aligned and contiguous."""
        if self._is_plain(value):
            return self._export(value)
        if isinstance(value, np.ndarray):
            return self._export(as_array(value, self.shape, self.name, self.dtype))
        return as_tensor(value, self)

    def write(self, value: Any) -> Any:
        """`value` as a tvm_ffi tensor over the caller's memory; never a copy."""
        if self._is_plain(value):
            return self._export(value)
        if isinstance(value, np.ndarray):
            self._check_out(value)
            return self._export(value.view(np.ndarray))
        return as_tensor(value, self, writes=True)

    def empty_like(self, value: Any) -> Any:
        """An uninitialised tensor for this port, of the same library as `value`; of numpy's where
        that library's arrays cannot be written: see `same_kind`.

        Raises NoMemory, or ArrayError if that library cannot be asked for one.
        """
        try:
            return self._allocate(value)
        except (MemoryError, RuntimeError) as error:  # PyTorch's is a RuntimeError
            reason = str(error).strip().splitlines()[:1]
            raise NoMemory(
                f"no memory for {self.name}, {self.bytes:,} bytes: {''.join(reason)}"
            ) from None

    def _allocate(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return np.empty(self.shape, self.dtype)
        if hasattr(value, "new_empty"):  # PyTorch
            wanted = self.torch_dtype
            if value.dtype is wanted:
                return value.new_empty(self.shape)  # to name the dtype takes microseconds
            return value.new_empty(self.shape, dtype=wanted)
        namespace = getattr(value, "__array_namespace__", None)
        if namespace is None:
            raise ArrayError(f"cannot allocate a {type(value).__name__}; pass out=")
        if objection_to_writing(value):
            return np.empty(self.shape, self.dtype)
        return namespace().empty(self.shape, dtype=getattr(namespace(), str(self.dtype)))

    @property
    def torch_dtype(self) -> Any:
        """PyTorch's name of the dtype, which is only asked for where PyTorch is."""
        if self._torch_dtype is None:
            self._torch_dtype = getattr(sys.modules["torch"], str(self.dtype))
        return self._torch_dtype

    def _is_plain(self, value: Any) -> bool:
        """Whether `value` fits as it is: this dtype and shape, contiguous, on the CPU."""
        kind = type(value)
        if kind is np.ndarray:
            return value.dtype == self.dtype and value.shape == self.shape and value.flags.carray
        torch = sys.modules.get("torch")
        return (
            torch is not None
            and kind is torch.Tensor  # isinstance would take a Python call
            and value.is_cpu
            and value.dtype is torch.float32
            and self._in_torch
            and value.layout is torch.strided
            and value.shape == self.shape
            and value.is_contiguous()
            and not value.is_neg()
        )

    def _check_out(self, value: np.ndarray) -> None:
        """Raise ArrayError, with the first reason, unless `value` can be written in place."""
        _check_unmasked(value, self.name)
        _check_shape(value.shape, self.shape, self.name)
        wanted = f"expected a writable, C-contiguous {self.dtype} array"
        if value.dtype != self.dtype:
            raise ArrayError(f"{self.name} has dtype {value.dtype}, {wanted}")
        if not value.flags.c_contiguous:
            raise ArrayError(f"{self.name} has strides {value.strides}, {wanted}")
        if not value.flags.aligned:
            raise ArrayError(f"{self.name} starts within an element (unaligned), {wanted}")
        if not value.flags.writeable:
            raise ArrayError(f"{self.name} is read-only, {wanted}")


class Operands:
    """The tensors of a call, taken from the caller: those that it reads, and the output that it
    writes while it reads them."""

    def __init__(self, data: Port, out: Port, residual: Port | None) -> None:
        self.data, self.out, self.residual = data, out, residual

    def take(self, data: Any, out: Any, residual: Any) -> tuple[Any, Any, Any, Sequence[Any]]:
        """The output as the caller's kind of tensor, then tvm_ffi tensors: data, output, and the
        residual if there is one.

        Raises ArrayError if one does not fit, or the output overlaps what is read.
        """
        if (residual is None) is not (self.residual is None):
            raise self._mismatch(residual)
        source = self.data.read(data)
        result = self.out.empty_like(data) if out is None else out
        target = self.out.write(result)
        added = () if self.residual is None else (self.residual.read(residual),)
        if out is not None:
            # What was copied lies apart already, and was copied before anything is written.
            start = target.data_ptr()
            end = start + self.out.bytes
            place = source.data_ptr()
            if place < end and start < place + self.data.bytes:
                raise self._overlap("data")
            for tensor in added:
                place = tensor.data_ptr()
                # The same memory too: kernels may write an element before they read its neighbour.
                if place < end and start < place + self.out.bytes:
                    raise self._overlap("residual")
        return result, source, target, added

    def _overlap(self, name: str) -> ArrayError:
        return ArrayError(
            f"{self.out.name} overlaps {name}, expected memory of its own: the call would write "
            "one while it reads the other"
        )

    def _mismatch(self, residual: Any) -> ArrayError:
        found, expected = ("none", "one") if residual is None else ("one", "none")
        return ArrayError(
            f"residual: found {found}, expected {expected}; `lib.plan(..., residual=True)` "
            "makes a plan that adds one"
        )


def as_array(
    value: Any, shape: Sequence[int], name: str, dtype: np.dtype | str = "float32"
) -> np.ndarray:
    """`value` as a contiguous, aligned array of this dtype, itself if it is one already."""
    dtype = numpy_dtype(dtype)
    if not isinstance(value, np.ndarray):
        try:
            value = _imported(_resolved(value))
        except (AttributeError, TypeError, BufferError, RuntimeError) as error:
            raise ArrayError(f"{name} is no array: {error}") from None
    _check_unmasked(value, name)
    _check_shape(value.shape, shape, name)
    floats = is_float(value.dtype) and is_float(dtype)
    if value.dtype != dtype and not floats:
        raise ArrayError(f"{name} has dtype {value.dtype}, expected {dtype}")
    array = np.require(value.view(np.ndarray), dtype, ("C_CONTIGUOUS", "ALIGNED"))
    # DLPack exports only writable arrays; the kernel reads this one.
    return array if array.flags.writeable else array.copy()


def exporter(dtype: np.dtype | str) -> Callable[[Any], Any]:
    """What makes tvm_ffi tensors over arrays of this dtype."""
    return _export_bfloat16 if str(dtype) == BFLOAT16 else tvm_ffi.from_dlpack


def from_array(array: np.ndarray) -> Any:
    """A tvm_ffi tensor over the memory of an array."""
    return exporter(array.dtype)(array)


def _export_bfloat16(array: np.ndarray) -> Any:
    """As from_dlpack, which NumPy refuses for bfloat16."""
    view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    bits = tvm_ffi.from_dlpack(array.view(np.uint16))
    return view(bits, tvm_ffi.Shape(array.shape), tvm_ffi.dtype(BFLOAT16), 0)


def _imported(value: Any) -> np.ndarray:
    """As np.from_dlpack; bfloat16, which NumPy refuses, is copied."""
    if not str(getattr(value, "dtype", "")).endswith(BFLOAT16):
        return np.from_dlpack(value)
    if hasattr(value, "contiguous"):
        value = value.contiguous()
    tensor = tvm_ffi.from_dlpack(value)
    if tensor.device.dlpack_device_type() != _CPU or not _is_contiguous(tensor):
        raise BufferError(f"a {BFLOAT16} tensor has to be contiguous, on the CPU")
    dtype = numpy_dtype(BFLOAT16)
    size = dtype.itemsize * math.prod(tensor.shape)
    array = memory_at(tensor.data_ptr(), size).view(dtype).reshape(tuple(tensor.shape))
    return array.copy()


def over(tensor: Any, port: Port) -> np.ndarray:
    """A numpy array over the memory of a CPU tensor, valid as long as it is."""
    return memory_at(tensor.data_ptr(), port.bytes).view(port.dtype).reshape(port.shape)


def memory_at(address: int, size: int) -> np.ndarray:
    """An array over `size` bytes of memory that somebody else keeps alive."""
    memory = memoryview((ctypes.c_uint8 * size).from_address(address))
    return np.frombuffer(memory, np.uint8)


def overlap(start: int, size: int, other_start: int, other_size: int) -> bool:
    """Whether two pieces of memory, by address and bytes, have a byte in common."""
    return start < other_start + other_size and other_start < start + size


def same_kind(result: Any, data: Any) -> Any:
    """`result`, allocated for a call on `data`, as an array of that library where it is none."""
    if isinstance(result, np.ndarray) and not isinstance(data, np.ndarray):
        return data.__array_namespace__().from_dlpack(result)
    return result


def objection_to_writing(value: Any) -> str:
    """Why a DLPack tensor must not be written; empty if it may be.

    Those of libraries known for mutable arrays may be, and those whose export carries DLPack's
    flags without the one for read-only memory. Older exports do not say, and JAX's are among them.
    """
    if any(kind.__module__.partition(".")[0] in _MUTABLE for kind in type(value).__mro__):
        return ""
    try:
        capsule = value.__dlpack__(max_version=(1, 0))
    except (TypeError, BufferError):  # of a library from before DLPack 1.0; or not exportable
        capsule = None
    name = b"dltensor_versioned"
    if capsule is None or not _capsules().PyCapsule_IsValid(ctypes.py_object(capsule), name):
        return "does not say whether it may be written (DLPack 1.0 has a flag for that)"
    pointer = _capsules().PyCapsule_GetPointer(ctypes.py_object(capsule), name)
    # DLManagedTensorVersioned: two uint32 of the version, two pointers, then the flags.
    flags = ctypes.c_uint64.from_address(pointer + 8 + 2 * ctypes.sizeof(ctypes.c_void_p)).value
    return "is read-only" if flags & 1 else ""


@cache
def _capsules() -> ctypes.PyDLL:
    api = ctypes.PyDLL(None)
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = api.PyCapsule_IsValid.argtypes = (
        ctypes.py_object,
        ctypes.c_char_p,
    )
    return api


def _check_shape(found: Sequence[int], expected: Sequence[int], name: str) -> None:
    if tuple(found) != tuple(expected):
        raise ArrayError(f"{name} has shape {tuple(found)}, expected {tuple(expected)}")


def _check_unmasked(value: np.ndarray, name: str) -> None:
    """A mask would be lost without a word."""
    if isinstance(value, np.ma.MaskedArray):
        raise ArrayError(
            f"{name} is a masked array, and a kernel cannot see its mask; pass .data or .filled(0)"
        )


def _resolved(value: Any) -> Any:
    """A PyTorch tensor without history, its negation, which is a mere bit of it, carried out."""
    if hasattr(value, "detach"):
        value = value.detach()
    return value.resolve_neg() if hasattr(value, "resolve_neg") else value


def as_tensor(value: Any, port: Port, device: int = _CPU, writes: bool = False) -> Any:
    """`value`, a DLPack tensor for `port`, as a tvm_ffi tensor.

    One that is read is copied if it is not contiguous; one that is written is refused then.
    `device` is DLPack's number of the kind of device where it has to be.
    """
    name = port.name
    if not hasattr(value, "__dlpack__"):
        convertible = any(hasattr(value, a) for a in ("__array__", "__array_interface__"))
        advice = "; pass np.asarray of it" if convertible else ""
        raise ArrayError(
            f"{name} is a {type(value).__name__}, expected an array or a DLPack tensor{advice}"
        )
    if hasattr(value, "shape"):
        _check_shape(value.shape, port.shape, name)
    if writes and (reason := objection_to_writing(value)):
        raise ArrayError(
            f"{name} is a {type(value).__name__} that {reason}; pass a numpy array or a PyTorch "
            "tensor"
        )
    try:
        tensor = tvm_ffi.from_dlpack(_exportable(value, port, writes))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, ArrayError):
            raise
        reason = "".join(str(error).strip().splitlines()[:1])
        raise ArrayError(f"{name} cannot be exported by DLPack: {reason}") from None
    _check_shape(tensor.shape, port.shape, name)
    if str(tensor.dtype) != str(port.dtype):
        raise ArrayError(f"{name} has dtype {tensor.dtype}, expected {port.dtype}")
    if tensor.device.dlpack_device_type() != device:
        expected = "the CPU" if device == _CPU else "a GPU, as the data"
        raise ArrayError(f"{name} is on device {tensor.device}, expected {expected}")
    if _is_contiguous(tensor) and tensor.data_ptr() % port.dtype.itemsize == 0:
        return tensor
    if writes or device != _CPU:
        raise ArrayError(f"{name} is not contiguous, expected a contiguous {port.dtype} tensor")
    return from_array(as_array(tensor, port.shape, name, port.dtype))


def _exportable(value: Any, port: Port, writes: bool) -> Any:
    """A tensor as DLPack can tell it: PyTorch's without history and negation, contiguous if it is
    to be read."""
    if not writes:
        value = _resolved(value)
        strided = hasattr(value, "is_contiguous") and not value.is_contiguous()
        return value.contiguous() if strided else value
    if hasattr(value, "is_neg") and value.is_neg():
        raise ArrayError(f"{port.name} is a negative view, expected a {port.dtype} tensor itself")
    return value.detach() if hasattr(value, "detach") else value


def _is_contiguous(tensor: Any) -> bool:
    expected = 1
    for extent, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True
