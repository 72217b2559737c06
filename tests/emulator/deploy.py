"""Compile a library for a GPU, load it in this process, run it: for a process with the emulator.

python -m emulator.deploy FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import tvm
import tvm_ffi

import convtvm
from convtvm.errors import ArrayError
from convtvm.problem.reference import conv2d_reference, random_inputs

folder = sys.argv[1]
w = convtvm.ConvWorkload.parse("mb2ic5ih9oc8oh9kh3ph1")
half, brain = (replace(w, dtype=dtype) for dtype in ("float16", "bfloat16"))
library = convtvm.compile(
    [w, half, brain],
    target="cuda:sm_80,sm_90",
    logs=[],
    algorithms=["direct", "im2col"],
    epilogues=["add"],
)
library.export(f"{folder}/gpu.so")
library = convtvm.load(f"{folder}/gpu.so")
data, weight, bias = random_inputs(w, 0, "NCHW", "integer")
reference = conv2d_reference(w, data, weight, bias, "NCHW")

plan = library.plan(w, weight, bias, "direct")
assert np.array_equal(plan(data), reference), "host arrays"

# CUDA's own maximum makes a number of it.
odd = bias.copy()
odd[:3] = np.nan, np.inf, -np.inf
for name in ("direct", "im2col"):
    bounded = library.plan(w, weight, odd, name, activation="relu6", residual=True)
    out = bounded(data, residual=np.zeros_like(reference))
    right = np.clip(conv2d_reference(w, data, weight, odd, "NCHW"), 0, 6)
    assert np.array_equal(out, right, equal_nan=True), f"NaN by {name}"

device = tvm.cuda(0)
there, out = tvm.runtime.tensor(data, device), tvm.runtime.empty(reference.shape, "float32", device)
for _ in range(2):
    plan(there, out=out)
assert np.array_equal(out.numpy(), reference), "tensors on the GPU"

# Whole numbers, so that sums are exact, and the outputs' rounding is all there is in 16 bits.
residual = np.arange(reference.size).reshape(reference.shape) % 7 - 3
for kind in (w, half, brain):
    arrays = [a.astype(kind.dtype) for a in (data, residual)]
    right = np.maximum(reference + residual, 0).astype(kind.dtype)
    for name, scratch in (("direct", 0), ("im2col", 1)):
        fused = library.plan(kind, weight, bias, name, activation="relu", residual=True)
        assert len(fused.choice.kernel.scratch) == scratch
        out = fused(arrays[0], residual=arrays[1])
        assert out.dtype == kind.dtype and np.array_equal(out, right), f"{name} {kind.dtype}"
        there = [tvm.runtime.tensor(a, device) for a in (*arrays, np.zeros_like(right))]
        fused(there[0], out=there[2], residual=there[1])
        assert np.array_equal(there[2].numpy(), right), f"{name} {kind.dtype} on the GPU"
there, out = tvm.runtime.tensor(data, device), tvm.runtime.empty(reference.shape, "float32", device)

# Channels in an order of their own, stored by 16 bytes: bias and residual come in theirs.
many = replace(w, oc=64)
halves = [replace(many, dtype=dtype) for dtype in ("float16", "bfloat16")]
options = {"target": "cuda:sm_90", "logs": [], "algorithms": ["direct"], "epilogues": ["add"]}
wide = convtvm.compile(halves, layout="NHWC", **options)
arrays = random_inputs(many, 1, "NHWC", "integer")
sums = conv2d_reference(many, *arrays, "NHWC")
residual = np.arange(sums.size).reshape(sums.shape) % 7 - 3
for kind in halves:
    inputs = [a.astype(kind.dtype) for a in (arrays[0], residual)]
    for activation, right in (("relu", np.maximum(sums + residual, 0)), (None, sums + residual)):
        fused = wide.plan(kind, *arrays[1:], activation=activation, residual=True)
        out = fused(inputs[0], residual=inputs[1])
        assert np.array_equal(out, right.astype(kind.dtype)), f"{kind.dtype} {activation}"
out = tvm.runtime.empty(reference.shape, "float32", device)

host = tvm_ffi.from_dlpack(np.empty(reference.shape, np.float32))
for wrong in (host, tvm.runtime.empty((2, 8, 9, 8), "float32", device)):
    try:
        plan(there, out=wrong)
    except ArrayError as error:
        print(error)
    else:
        raise AssertionError("a wrong output was taken")

# Overlap on the device, whole and partial, is refused before anything is written.
adding = library.plan(w, weight, bias, "direct", residual=True)
memory = tvm.runtime.tensor(np.ones(2 * reference.size, np.float32), device)
size = 4 * reference.size
first, shifted = (
    memory._create_view(reference.shape, "float32", offset) for offset in (0, size // 2)
)
shared = memory._create_view(data.shape, "float32", 0)
other = tvm.runtime.tensor(np.zeros(reference.shape, np.float32), device)
for read, added, name in (
    (there, first, "residual"),
    (there, shifted, "residual"),
    (shared, other, "data"),
):
    try:
        adding(read, out=first, residual=added)
    except ArrayError as error:
        assert f"out overlaps {name}" in str(error), error
    else:
        raise AssertionError(f"an output over the {name} was taken")
assert np.all(memory.numpy() == 1)
