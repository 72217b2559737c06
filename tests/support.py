"""What several test files need: kernels compiled and run in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray

from convtvm import codegen
from convtvm.task import Task

Array = NDArray[Any]


def compiled(task: Task, decisions: Mapping[str, int] | None) -> tvm.runtime.Module:
    """The kernel of these decisions, or the packing function for None, as the function `main`."""
    func = task.pack() if decisions is None else task.instantiate(decisions)["main"]
    target = task.target.tvm
    return codegen.compile_lowered(codegen.lower(codegen.merge({"main": func}), target), target)


def pack_weight(task: Task, weight: Array) -> Array:
    """`weight` as the kernels of `task` read it."""
    packed = np.full(task.packed_shape(), np.nan, np.float32)
    compiled(task, None)["main"](tvm_ffi.from_dlpack(weight), tvm_ffi.from_dlpack(packed))
    return packed


def run_kernel(
    task: Task, decisions: Mapping[str, int], data: Array, packed: Array, bias: Array
) -> Array:
    """The output of one kernel on a packed weight; elements that it leaves out are NaN."""
    out = np.full(task.workload.out_shape(task.layout), np.nan, np.float32)
    compiled(task, decisions)["main"](*map(tvm_ffi.from_dlpack, (data, packed, bias, out)))
    return out


def run_task(
    task: Task, decisions: Mapping[str, int], data: Array, weight: Array, bias: Array
) -> Array:
    """The output of one kernel, with the weight packed by the task's own function."""
    return run_kernel(task, decisions, data, pack_weight(task, weight), bias)
