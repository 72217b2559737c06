"""Kernels with planted faults, as jobs for a helper process that sees the emulated GPU."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import numpy as np
import tvm
from tvm import te
from tvm.s_tir import Schedule

from convtvm.kernels import codegen
from convtvm.kernels.cuda import codegen as gpu_codegen
from convtvm.machine.targets import resolve
from convtvm.measure.gpu_verify import GpuCheck
from convtvm.problem.reference import Array, conv2d_reference, random_inputs, relative_error


@dataclass(frozen=True)
class FaultyCheck(GpuCheck):
    """A check of a kernel in whose source the `index`-th match of `pattern` was replaced."""

    pattern: str = ""
    replacement: str = ""
    index: int = 0

    def __call__(self) -> float:
        os.environ["EMULATOR_FAULT"] = json.dumps([self.pattern, self.replacement, self.index])
        try:
            return super().__call__()
        finally:
            del os.environ["EMULATOR_FAULT"]


@dataclass(frozen=True)
class Tf32Check(GpuCheck):
    """A check on inputs that TF32 has to round; the reference is of inputs rounded here."""

    def __call__(self) -> float:
        task, w = self.task, self.task.workload
        data, weight, bias = random_inputs(w, self.seed, task.layout)
        rounded = [_as_tf32(a) for a in (data, weight)]
        reference = conv2d_reference(w, *rounded, bias, task.layout)
        return relative_error(self.run(data, weight, bias), reference)


def _as_tf32(array: Array) -> Array:
    """The nearest number with 10 bits of fraction, away from zero if halfway, by arithmetic."""
    fraction, exponent = np.frexp(array.astype(np.float64))
    away = np.copysign(np.floor(np.abs(fraction) * 2**11 + 0.5), fraction)
    return np.ldexp(away, exponent - 11).astype(np.float32)


@dataclass(frozen=True)
class Scaled:
    """Doubles an 8 x 64 matrix through registers. With `crossed`, another thread than the one that
    filled them copies them out; with `mismatched`, a thread axis has two extents."""

    crossed: bool = False
    mismatched: bool = False

    def __call__(self) -> bool:
        a = te.placeholder((8, 64), name="a")
        sch = Schedule(te.create_prim_func([a, te.compute((8, 64), lambda i, j: 2 * a[i, j], "b")]))
        block = sch.get_sblock("b")
        held = sch.cache_write(block, 0, "local")
        i, j = sch.get_loops(held)
        sch.bind(i, "blockIdx.x")
        sch.compute_at(block, i)
        source, target = sch.get_loops(block)[-1], j
        sch.bind(source, "threadIdx.x")
        if self.crossed:
            left, right = sch.split(target, [8, 8])
            sch.reorder(right, left)
            target = sch.fuse(right, left)
        if self.mismatched:
            target = sch.split(target, [2, 32])[1]
        sch.bind(target, "threadIdx.x")
        return _doubles(sch.mod["main"])


def _doubles(func: tvm.tirx.PrimFunc) -> bool:
    """Whether the kernel doubles a matrix."""
    target = resolve("cuda:sm_90")
    with TemporaryDirectory() as folder:  # the dynamic loader knows a path that it has seen
        gpu_codegen.build(func, "main", target).write(f"{folder}/kernel.o")
        codegen.link_objects([f"{folder}/kernel.o"], f"{folder}/kernel.so", target)
        kernel = tvm.runtime.load_module(f"{folder}/kernel.so")["main"]
    x = np.arange(512, dtype=np.float32).reshape(8, 64)
    args = [tvm.runtime.tensor(v, tvm.cuda(0)) for v in (x, np.zeros_like(x))]
    kernel(*args)
    return bool(np.array_equal(args[1].numpy(), 2 * x))
