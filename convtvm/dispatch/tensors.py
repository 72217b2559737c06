"""Arrays at the border: numpy and DLPack tensors in and out, refused where they do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm_ffi

from convtvm.errors import ArrayError


def _check_shape(found: Sequence[int], expected: Sequence[int], name: str) -> None:
    if tuple(found) != tuple(expected):
        raise ArrayError(f"{name} has shape {tuple(found)}, expected {tuple(expected)}")


def as_array(value: Any, shape: Sequence[int], name: str) -> np.ndarray:
    """`value` as a contiguous, aligned float32 array, itself if it is one already."""
    if not isinstance(value, np.ndarray):
        try:
            value = np.from_dlpack(value.detach() if hasattr(value, "detach") else value)
        except (AttributeError, TypeError, BufferError, RuntimeError) as error:
            raise ArrayError(f"{name} is no array: {error}") from None
    _check_shape(value.shape, shape, name)
    if value.dtype.kind != "f":
        raise ArrayError(f"{name} has dtype {value.dtype}, expected float32")
    array = np.require(value, np.float32, ("C_CONTIGUOUS", "ALIGNED"))
    # DLPack exports only writable arrays; the kernel reads this one.
    return array if array.flags.writeable else array.copy()


def as_tensor(value: Any, shape: Sequence[int], name: str) -> Any:
    """`value`, a DLPack tensor on the CPU, as a tvm_ffi tensor; copied only if it is not
    contiguous."""
    if not hasattr(value, "__dlpack__"):
        raise ArrayError(
            f"{name} is a {type(value).__name__}, expected an array or a DLPack tensor"
        )
    _check_shape(value.shape, shape, name)
    try:
        if hasattr(value, "is_contiguous") and not value.is_contiguous():
            value = value.contiguous()
        if hasattr(value, "detach"):
            value = value.detach()
        tensor = tvm_ffi.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise ArrayError(f"{name} cannot be exported by DLPack: {''.join(reason)}") from None
    if str(tensor.dtype) != "float32":
        raise ArrayError(f"{name} has dtype {tensor.dtype}, expected float32")
    if tensor.device.dlpack_device_type() != 1:
        raise ArrayError(f"{name} is on device {tensor.device}, expected the CPU")
    return tensor


def writable(value: Any, shape: Sequence[int]) -> Any:
    """`out` as a tvm_ffi tensor over the caller's memory; never a copy."""
    if isinstance(value, np.ndarray):
        _check_shape(value.shape, shape, "out")
        flags = value.flags
        if value.dtype != np.float32 or not (
            flags.c_contiguous and flags.aligned and flags.writeable
        ):
            raise ArrayError(
                f"out is {value.dtype} with strides {value.strides}, expected a writable, "
                "C-contiguous float32 array"
            )
        return tvm_ffi.from_dlpack(value)
    if hasattr(value, "is_contiguous") and not value.is_contiguous():
        raise ArrayError("out is not contiguous, expected a contiguous float32 tensor")
    return as_tensor(value, shape, "out")


def check_apart(source: Any, target: Any, source_bytes: int, target_bytes: int) -> None:
    """Refuse an output that a kernel would write while it still reads the data."""
    start, goal = source.data_ptr(), target.data_ptr()
    if start < goal + target_bytes and goal < start + source_bytes:
        raise ArrayError("out overlaps data, expected memory of its own")


def empty_like(data: Any, shape: Sequence[int]) -> Any:
    """An uninitialised float32 tensor of the same library as `data`."""
    if hasattr(data, "new_empty"):  # PyTorch
        return data.new_empty(tuple(shape))
    namespace = getattr(data, "__array_namespace__", None)
    if namespace is not None:
        return namespace().empty(tuple(shape), dtype=namespace().float32)
    raise ArrayError(f"cannot allocate a {type(data).__name__}; pass out=")
