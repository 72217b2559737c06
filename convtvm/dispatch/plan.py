"""A plan: one kernel with its packed weight, ready to be called."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm_ffi

from convtvm.dispatch import tensors
from convtvm.dispatch.runtime import pool
from convtvm.manifest import Kernel
from convtvm.reference import aligned_empty
from convtvm.workload import ConvWorkload

if TYPE_CHECKING:
    from convtvm.dispatch.library import KernelLibrary


class Plan:
    """A chosen kernel with its packed weight; call it with data, from any number of threads."""

    def __init__(
        self, library: KernelLibrary, workload: ConvWorkload, kernel: Kernel, weight: Any, bias: Any
    ) -> None:
        self.library, self.workload, self._kernel = library, workload, kernel
        self._data_shape = workload.data_shape(library.layout)
        self._out_shape = workload.out_shape(library.layout)
        self._data_bytes = 4 * math.prod(self._data_shape)
        self._out_bytes = 4 * math.prod(self._out_shape)
        self._run = library.function(kernel.function)
        weights = tensors.as_array(weight, workload.weight_shape, "weight")
        self._packed_array = aligned_empty(kernel.packed_shape, np.float32)
        self._packed = tvm_ffi.from_dlpack(self._packed_array)
        pool.use(library.threads)
        library.function(kernel.pack)(tvm_ffi.from_dlpack(weights), self._packed)
        zeros = np.zeros(workload.oc, np.float32)
        self._bias_array = (
            zeros if bias is None else tensors.as_array(bias, (workload.oc,), "bias").copy()
        )
        self._bias = tvm_ffi.from_dlpack(self._bias_array)

    @property
    def algorithm(self) -> str:
        return self._kernel.algorithm

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of a call, in bytes; TVM's pool keeps it for the next call."""
        return self._kernel.workspace_bytes

    @property
    def run_secs(self) -> float | None:
        """Seconds a call, as measured while tuning."""
        return self._kernel.run_secs

    @property
    def max_error(self) -> float | None:
        return self._kernel.max_error

    def __call__(self, data: Any, out: Any = None) -> Any:
        """The convolution of `data`, as the same kind of tensor; with `out`, into it, allocating
        nothing.

        Raises ArrayError if a shape, dtype or device does not fit.
        """
        if isinstance(data, np.ndarray):
            source = tensors.as_array(data, self._data_shape, "data")
            result = np.empty(self._out_shape, np.float32) if out is None else out
            tensor = tvm_ffi.from_dlpack(source)
        else:
            tensor = tensors.as_tensor(data, self._data_shape, "data")
            result = tensors.empty_like(data, self._out_shape) if out is None else out
        target = tensors.writable(result, self._out_shape)
        if out is not None:
            tensors.check_apart(tensor, target, self._data_bytes, self._out_bytes)
        pool.use(self.library.threads)
        self._run(tensor, self._packed, self._bias, target)
        return result
