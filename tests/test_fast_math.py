"""Exponential functions: as accurate as float32 allows, in vectors and alone, at the limits too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tvm_ffi
from tvm import te, tirx
from tvm.s_tir import Schedule

from convtvm.kernels import codegen
from convtvm.machine.targets import resolve

NATIVE = resolve("native", 1)
EXACT = {
    "exp": math.exp,
    "tanh": math.tanh,
    "erf": math.erf,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
}


def computed(name: str, values: np.ndarray, vector: bool) -> np.ndarray:
    x = te.placeholder(values.shape, "float32", name="x")
    y = te.compute(values.shape, lambda i: getattr(tirx, name)(x[i]), name="y")
    sch = Schedule(te.create_prim_func([x, y]))
    if vector:
        _, lane = sch.split(sch.get_loops(sch.get_sblock("y"))[0], [None, 8])
        sch.vectorize(lane)
    func = codegen.accept_unaligned(sch.mod["main"])
    out = np.empty_like(values)
    codegen.build(func, "f", NATIVE).module["f"](*map(tvm_ffi.from_dlpack, (values, out)))
    return out


@pytest.mark.parametrize("vector", [True, False])
@pytest.mark.parametrize("name", EXACT)
def test_relative_error(name: str, vector: bool) -> None:
    rng = np.random.default_rng(0)
    wide = rng.uniform(-87, 87, 4000), rng.uniform(-4, 4, 4000), rng.uniform(-0.01, 0.01, 2000)
    values = np.concatenate(wide).astype(np.float32)
    expected = np.array([EXACT[name](float(v)) for v in values])
    found = computed(name, values, vector)
    assert np.max(np.abs(found - expected) / np.abs(expected)) < 1e-6


@pytest.mark.parametrize("name", EXACT)
def test_limits(name: str) -> None:
    limits = np.array([0, -0.0, 1e-30, 200, -200, np.inf, -np.inf, np.nan], np.float32)
    found = computed(name, limits, True)
    ends = {"exp": (np.inf, 0), "tanh": (1, -1), "erf": (1, -1), "sigmoid": (1, 0)}
    high, low = ends[name]
    zero = {"exp": 1, "sigmoid": 0.5}.get(name, 0)
    expected = np.array([zero, zero, zero, high, low, high, low])
    np.testing.assert_allclose(found[:-1], expected, atol=2e-30 if zero == 0 else 1e-37)
    assert np.isnan(found[-1])
