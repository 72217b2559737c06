"""Check GPU kernels against float64, on the device or on an emulated one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import tvm

from convtvm.kernels import codegen
from convtvm.kernels.cuda import codegen as gpu_codegen
from convtvm.kernels.task import Task
from convtvm.machine.targets import CudaTarget
from convtvm.problem.dtypes import numpy_dtype
from convtvm.problem.reference import (
    conv2d_reference,
    random_inputs,
    relative_error,
    rounded_reference,
)

# Algorithms that only multiply and add the inputs: on small integers they must be exact.
EXACT_FAMILIES = ("direct", "im2col", "mec")


@dataclass(frozen=True)
class GpuCheck:
    """One kernel to build, run once and compare with the reference, by calling this object.

    Call it in a child of a helper (`Zygote.call("run", [check], limits)`): a kernel that writes
    where it must not costs the process. Exact algorithms get small integers and have to match bit
    by bit; the others have their algorithm's tolerance. `decisions` are the default ones for None.
    """

    task: Task
    decisions: Mapping[str, int] | None = None
    seed: int = 0
    device: ClassVar[str] = "cuda"  # for the helper: what a child needs

    def __call__(self) -> float:
        """The error relative to the largest output. Raises ValueError if that is too large."""
        task, w = self.task, self.task.workload
        exact = task.algorithm.family in EXACT_FAMILIES
        arrays = random_inputs(w, self.seed, task.layout, "integer" if exact else "normal")
        reference = conv2d_reference(w, *arrays, task.layout)
        right = rounded_reference(w, reference) if exact else reference
        error = relative_error(self.run(*arrays), right)
        tolerance = 0.0 if exact else task.tolerance
        if not error <= tolerance:
            raise ValueError(f"relative error {error:.1e}, at most {tolerance:.0e} is right")
        return error

    def run(self, data: Any, weight: Any, bias: Any) -> np.ndarray:
        """The kernel's output; elements that it leaves out are NaN."""
        task, device = self.task, tvm.cuda(0)
        decisions = self.task.space.default if self.decisions is None else self.decisions
        module = self._library(decisions)
        dtype = task.workload.dtype
        packed = tvm.runtime.empty(task.packed_shape(), dtype)
        module["pack"](tvm.runtime.tensor(weight), packed)
        out = np.full(task.workload.out_shape(task.layout), np.nan, numpy_dtype(dtype))
        operands = [tvm.runtime.tensor(a, device) for a in (data, packed.numpy(), bias, out)]
        scratch = [tvm.runtime.empty(s, kind, device) for kind, *s in task.scratch(decisions)]
        module["main"](*operands, *scratch)
        result: np.ndarray = operands[3].numpy()
        return result

    def _library(self, decisions: Mapping[str, int]) -> Any:
        task, target = self.task, self.task.target
        assert isinstance(target, CudaTarget)
        kernel = gpu_codegen.build(task.instantiate(decisions)["main"], "main", target)
        packing = codegen.build(task.pack(), "pack", target)
        with TemporaryDirectory(prefix="convtvm-") as folder:
            objects = [f"{folder}/kernel.o", f"{folder}/pack.o"]
            kernel.write(objects[0])
            packing.write(objects[1])
            codegen.link_objects(objects, Path(folder, "library.so"), target)
            return tvm.runtime.load_module(f"{folder}/library.so")

    def __str__(self) -> str:
        return f"{self.task.workload} by {self.task.algorithm_name}, {self.task.layout}"
