"""Exponential functions: as accurate as float32 allows, in vectors and alone, of all magnitudes."""

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

LEAST, TINY = float(np.finfo(np.float32).smallest_subnormal), float(np.finfo(np.float32).tiny)


def exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


EXACT = {
    "exp": exp,
    "tanh": math.tanh,
    "erf": math.erf,
    "sigmoid": lambda x: 1 / (1 + exp(-x)),
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


def everywhere() -> np.ndarray:
    """Numbers of every magnitude, many where results begin and cease to be normal and finite."""
    powers = np.ldexp(np.float32([1, 1.1, 1.25, 1.5, 1.75])[:, None], np.arange(-149, 128)).ravel()
    edges = [np.linspace(a, b, 3001) for a, b in ((86, 90), (102, 105), (16, 18), (3, 5))]
    values = np.concatenate([powers, *edges, [math.inf, 0.0]]).astype(np.float32)
    return np.concatenate([values, -values, np.float32([math.nan])])


@pytest.mark.parametrize("vector", [True, False])
@pytest.mark.parametrize("name", EXACT)
def test_every_magnitude(name: str, vector: bool) -> None:
    """Infinite, denormal and zero where float64, rounded, is."""
    values = everywhere()
    found = computed(name, values, vector)
    exact = np.array([EXACT[name](float(v)) for v in values])
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    assert np.array_equal(np.isnan(found), np.isnan(values))
    rest = np.isfinite(rounded) & np.isfinite(found)
    # At the very end of the range the last digit decides.
    edge = np.abs(exact) > 0.999999 * float(np.finfo(np.float32).max)
    assert ((found == rounded) | rest | edge | np.isnan(values)).all()
    # 1 / inf is 0 where a sigmoid is denormal, as PyTorch has it, too.
    least = TINY if name == "sigmoid" else 2 * LEAST
    error, limit = np.abs(found[rest] - exact[rest]), 1e-6 * np.abs(exact[rest]) + least
    assert (error <= limit).all(), values[rest][error > limit]


def test_ends_are_exact() -> None:
    values = np.float32([math.inf, -math.inf, 1000, -1000, 0, -0.0])
    ends = {"exp": [math.inf, 0, math.inf, 0, 1, 1], "sigmoid": [1, 0, 1, 0, 0.5, 0.5]}
    for name in EXACT:
        expected = ends.get(name, [1, -1, 1, -1, 0, 0])
        assert computed(name, values, True).tolist() == expected, name
