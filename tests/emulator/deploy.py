"""Compile a library for a GPU, load it in this process, run it: for a process with the emulator.

python -m emulator.deploy FOLDER
"""

from __future__ import annotations

import sys

import numpy as np
import tvm
import tvm_ffi

import convtvm
from convtvm.errors import ArrayError
from convtvm.reference import conv2d_reference, random_inputs

folder = sys.argv[1]
w = convtvm.ConvWorkload.parse("mb2ic5ih9oc8oh9kh3ph1")
library = convtvm.compile(
    [w], target="cuda:sm_80,sm_90", logs=[], algorithms=["direct"], epilogues=["add"]
)
library.export(f"{folder}/gpu.so")
library = convtvm.load(f"{folder}/gpu.so")
data, weight, bias = random_inputs(w, 0, "NCHW", "integer")
reference = conv2d_reference(w, data, weight, bias, "NCHW")

plan = library.plan(w, weight, bias)
assert np.array_equal(plan(data), reference), "host arrays"

device = tvm.cuda(0)
there, out = tvm.runtime.tensor(data, device), tvm.runtime.empty(reference.shape, "float32", device)
for _ in range(2):
    plan(there, out=out)
assert np.array_equal(out.numpy(), reference), "tensors on the GPU"

fused = library.plan(w, weight, bias, activation="relu", residual=True)
added = np.maximum(reference + data.mean(), 0).astype(np.float32)
residual = np.full(reference.shape, data.mean(), np.float32)
assert np.allclose(fused(data, residual=residual), added), "epilogue"

host = tvm_ffi.from_dlpack(np.empty(reference.shape, np.float32))
for wrong in (host, tvm.runtime.empty((2, 8, 9, 8), "float32", device)):
    try:
        plan(there, out=wrong)
    except ArrayError as error:
        print(error)
    else:
        raise AssertionError("a wrong output was taken")
