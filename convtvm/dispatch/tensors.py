"""Arrays at the border: numpy and DLPack tensors in and out, refused where they do not fit.

An ordinary array takes one test of its type and five of its fields, and goes in as it is; whatever
fails one of them takes the long way, which converts it or says what is wrong.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm_ffi

from convtvm.errors import ArrayError

_CPU = 1  # DLPack's number of the kind of device


class Port:
    """One tensor argument of a kernel: its name, for messages, its shape and its dtype."""

    def __init__(self, name: str, shape: Sequence[int], dtype: str = "float32") -> None:
        self.name, self.shape, self.dtype = name, tuple(shape), np.dtype(dtype)
        self.bytes = self.dtype.itemsize * math.prod(shape)
        self._in_torch = dtype == "float32"  # other dtypes take the long way

    def read(self, value: Any) -> Any:
        """`value` as a tvm_ffi tensor to read; a copy only if it is not aligned and contiguous."""
        if self._is_plain(value):
            return tvm_ffi.from_dlpack(value)
        if isinstance(value, np.ndarray):
            return tvm_ffi.from_dlpack(as_array(value, self.shape, self.name, self.dtype))
        return as_tensor(value, self)

    def write(self, value: Any) -> Any:
        """`value` as a tvm_ffi tensor over the caller's memory; never a copy."""
        if self._is_plain(value):
            return tvm_ffi.from_dlpack(value)
        if isinstance(value, np.ndarray):
            _check_shape(value.shape, self.shape, self.name)
            raise ArrayError(
                f"{self.name} is {value.dtype} with strides {value.strides}, expected a writable, "
                f"C-contiguous {self.dtype} array"
            )
        if hasattr(value, "is_contiguous") and not value.is_contiguous():
            raise ArrayError(
                f"{self.name} is not contiguous, expected a contiguous {self.dtype} tensor"
            )
        return as_tensor(value, self)

    def empty_like(self, value: Any) -> Any:
        """An uninitialised tensor for this port, of the same library as `value`."""
        if isinstance(value, np.ndarray):
            return np.empty(self.shape, self.dtype)
        if hasattr(value, "new_empty"):  # PyTorch
            return value.new_empty(self.shape)
        namespace = getattr(value, "__array_namespace__", None)
        if namespace is not None:
            return namespace().empty(self.shape, dtype=getattr(namespace(), str(self.dtype)))
        raise ArrayError(f"cannot allocate a {type(value).__name__}; pass out=")

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
        )


def as_array(
    value: Any, shape: Sequence[int], name: str, dtype: np.dtype | str = "float32"
) -> np.ndarray:
    """`value` as a contiguous, aligned array of this dtype, itself if it is one already."""
    if not isinstance(value, np.ndarray):
        try:
            value = np.from_dlpack(value.detach() if hasattr(value, "detach") else value)
        except (AttributeError, TypeError, BufferError, RuntimeError) as error:
            raise ArrayError(f"{name} is no array: {error}") from None
    _check_shape(value.shape, shape, name)
    if value.dtype.kind != "f":
        raise ArrayError(f"{name} has dtype {value.dtype}, expected {dtype}")
    array = np.require(value, dtype, ("C_CONTIGUOUS", "ALIGNED"))
    # DLPack exports only writable arrays; the kernel reads this one.
    return array if array.flags.writeable else array.copy()


def check_apart(first: tuple[Any, Port], second: tuple[Any, Port]) -> None:
    """Refuse tensors (tensor, port) that overlap: a kernel would write one while it reads the
    other."""
    (a, left), (b, right) = first, second
    start, goal = a.data_ptr(), b.data_ptr()
    if start < goal + right.bytes and goal < start + left.bytes:
        raise ArrayError(f"{right.name} overlaps {left.name}, expected memory of its own")


def over(tensor: Any, port: Port) -> np.ndarray:
    """A numpy array over the memory of a CPU tensor, valid as long as it is."""
    memory = (ctypes.c_uint8 * port.bytes).from_address(tensor.data_ptr())
    return np.ctypeslib.as_array(memory).view(port.dtype).reshape(port.shape)


def _check_shape(found: Sequence[int], expected: Sequence[int], name: str) -> None:
    if tuple(found) != tuple(expected):
        raise ArrayError(f"{name} has shape {tuple(found)}, expected {tuple(expected)}")


def as_tensor(value: Any, port: Port, device: int = _CPU) -> Any:
    """`value`, a DLPack tensor for `port`, as a tvm_ffi tensor; copied if it is not contiguous.

    `device` is DLPack's number of the kind of device where it has to be.
    """
    name = port.name
    if not hasattr(value, "__dlpack__"):
        raise ArrayError(
            f"{name} is a {type(value).__name__}, expected an array or a DLPack tensor"
        )
    _check_shape(value.shape, port.shape, name)
    try:
        if hasattr(value, "is_contiguous") and not value.is_contiguous():
            value = value.contiguous()
        if hasattr(value, "detach"):
            value = value.detach()
        tensor = tvm_ffi.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise ArrayError(f"{name} cannot be exported by DLPack: {''.join(reason)}") from None
    if str(tensor.dtype) != str(port.dtype):
        raise ArrayError(f"{name} has dtype {tensor.dtype}, expected {port.dtype}")
    if tensor.device.dlpack_device_type() != device:
        expected = "the CPU" if device == _CPU else "a GPU, as the data"
        raise ArrayError(f"{name} is on device {tensor.device}, expected {expected}")
    return tensor
