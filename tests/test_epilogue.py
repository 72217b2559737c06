"""Epilogues: every algorithm bounds and adds as the reference does, and NaN stays NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tvm_ffi
from support import compiled, pack_weight

from convtvm.compute.epilogue import EPILOGUES
from convtvm.kernels.algorithms import ALGORITHMS
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.workload import ConvWorkload

NATIVE = resolve("native", 1)
# One template each; the tile size of Winograd changes nothing at the end.
CASES = [
    ("direct", "mb2ic5ih7oc9kh3ph1"),
    ("direct:depthwise", "g9mb2ic9ih7oc9kh3ph1"),
    ("direct:pointwise", "mb2ic5ih7oc9kh1"),
    ("im2col", "mb2ic5ih7oc9kh3ph1"),
    ("mec:a", "mb2ic9ih9oc8kh3"),
    ("mec:b", "mb1ic5ih7oc9kh3ph1"),
    ("winograd:2", "mb2ic5ih7oc9kh3ph1"),
]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("algorithm", "key"), CASES)
def test_epilogues(algorithm: str, key: str, layout: str) -> None:
    w = ConvWorkload.parse(key)
    assert ALGORITHMS[algorithm].inapplicable(w) is None
    data, weight, bias = random_inputs(w, 3, layout, "integer")
    residual = np.random.default_rng(1).integers(-9, 9, w.out_shape(layout)).astype(np.float32)
    sums = conv2d_reference(w, data, weight, bias, layout)
    bounds = [(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0), (-3.0, math.inf)]
    expected = {"clip": sums, "add": sums + residual}
    for epilogue in EPILOGUES[1:]:
        task = Task(w, algorithm, NATIVE, layout, epilogue)
        kernel, packed = compiled(task, task.space.default)["main"], pack_weight(task, weight)
        for low, high in bounds:
            out = np.full(w.out_shape(layout), np.nan, np.float32)
            last = (residual,) if epilogue == "add" else ()
            tensors = map(tvm_ffi.from_dlpack, (data, packed, bias, out))
            kernel(*tensors, low, high, *map(tvm_ffi.from_dlpack, last))
            assert relative_error(out, np.clip(expected[epilogue], low, high)) < 1e-5
        poison = np.full_like(data, np.nan)
        tensors = map(tvm_ffi.from_dlpack, (poison, packed, bias, out))
        kernel(*tensors, 0.0, 6.0, *map(tvm_ffi.from_dlpack, last))
        assert np.isnan(out).all()


def test_records_do_not_know_epilogues() -> None:
    w = ConvWorkload.parse("mb1ic4ih4oc4kh3")
    assert len({Task(w, "direct", NATIVE, "NCHW", e).key for e in EPILOGUES}) == 1
