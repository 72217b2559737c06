"""Epilogues: every algorithm bounds and adds as the reference does, and NaN stays NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support import Unoptimised, compiled, kernel_of, pack_weight

import convtvm
from convtvm.compute.epilogue import EPILOGUES, operands_of
from convtvm.errors import ConvtvmError, WorkloadError
from convtvm.kernels.algorithms import ALGORITHMS
from convtvm.kernels.task import Task
from convtvm.library import build
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


# Text and the same in NumPy, of x, a residual r and a vector c over the channels.
EXPRESSIONS: dict[str, Callable[..., Any]] = {
    "max(0, x)": lambda x, r, c: np.maximum(x, 0),
    "min(6, max(0, x + r0))": lambda x, r, c: np.clip(x + r, 0, 6),
    "x * sigmoid(x)": lambda x, r, c: x / (1 + np.exp(-x)),
    "r0 + x * sigmoid(x)": lambda x, r, c: r + x / (1 + np.exp(-x)),
    "t = x + r0; t * sigmoid(t)": lambda x, r, c: (x + r) / (1 + np.exp(-x - r)),
    "x * min(6, max(0, x + 3)) / 6": lambda x, r, c: x * np.clip(x + 3, 0, 6) / 6,
    "min(1, max(0, 0.2 * x + 0.5))": lambda x, r, c: np.clip(0.2 * x + 0.5, 0, 1),
    "0.5 * x * (1 + erf(x * 0.70710678))": lambda x, r, c: x * 0.5 * (1 + ERF(x / math.sqrt(2))),
    "tanh(x)": lambda x, r, c: np.tanh(x),
    "max(0, x) + -0.1 * max(0, 0 - x)": lambda x, r, c: np.where(x > 0, x, 0.1 * x),
    "max(0, x) - c0 * max(0, 0 - x)": lambda x, r, c: np.where(x > 0, x, c * x),
    "where(x > 0, x, c0 * x)": lambda x, r, c: np.where(x > 0, x, c * x),
    "t = x < r0; where(t, x, r0)": lambda x, r, c: np.minimum(x, r),
    "(x + r0) * c0 + c1": lambda x, r, c: (x + r) * c + (c + 1),
    "x * tanh(log(1 + exp(x)))": lambda x, r, c: x * np.tanh(np.log1p(np.exp(x))),
}
ERF = np.vectorize(math.erf)


EVERYTHING = "t = (x + r0) * c0 + c1; t * sigmoid(t)"
EXPRESSIONS[EVERYTHING] = lambda x, r, c: _silu((x + r) * c + (c + 1))
SMALL = "mb2ic3ih5oc9kh3ph1"
# And LLVM's level: its optimiser sees every expression once.
COMBINATIONS = [
    ("direct", SMALL, text, layout, level)
    for text in EXPRESSIONS
    for layout, level in (("NCHW", 3), ("NCHW8c", 0))
]
COMBINATIONS += [(a, key, EVERYTHING, lay, 0) for a, key in CASES for lay in ("NCHW", "NHWC")]
COMBINATIONS += [("direct:depthwise", "g16mb2ic16ih7oc16kh3ph1", EVERYTHING, "NCHW8c", 0)]


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize(("algorithm", "key", "text", "layout", "level"), COMBINATIONS)
def test_expressions(algorithm: str, key: str, text: str, layout: str, level: int) -> None:
    """Channels that only fill a block of 8, as all but one of nine do, are never compared."""
    w = ConvWorkload.parse(key)
    data, weight, bias = random_inputs(w, 3, layout)
    rng = np.random.default_rng(1)
    shape = (w.n, w.oc, w.oh, w.ow)
    residual = rng.standard_normal(shape, np.float32)
    vector = rng.standard_normal(w.oc, np.float32)
    x = plain(conv2d_reference(w, data, weight, bias, layout), w, layout)
    expected = EXPRESSIONS[text](x, residual, vector[:, None, None])
    task = Task(w, algorithm, NATIVE, layout, text)
    kernel, packed = kernel_of(task, task.space.default, level), pack_weight(task, weight)
    out = np.full(w.out_shape(layout), np.nan, np.float32)
    wanted = operands_of(text)
    vectors = [vector, vector + 1][: len(wanted.vectors)]
    beside = [*vectors, *[ordered(residual, layout)] * len(wanted.tensors)]
    kernel(*map(tvm_ffi.from_dlpack, (data, packed, bias, out, *beside)))
    assert relative_error(plain(out, w, layout), expected) < 1e-5


def ordered(tensor: np.ndarray, layout: str) -> np.ndarray:
    """`tensor` [n, c, h, w] in `layout`, zeros where channels only fill a block."""
    if layout == "NCHW8c":
        n, c, h, w = tensor.shape
        full = np.zeros((n, -(-c // 8) * 8, h, w), np.float32)
        full[:, :c] = tensor
        tensor = full.reshape(n, -1, 8, h, w).transpose(0, 1, 3, 4, 2)
    elif layout == "NHWC":
        tensor = tensor.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(tensor)


def plain(tensor: np.ndarray, w: ConvWorkload, layout: str) -> np.ndarray:
    """`tensor` in `layout` as [n, c, h, w]."""
    if layout == "NCHW8c":
        n, _, h, wide, _ = tensor.shape
        return tensor.transpose(0, 1, 4, 2, 3).reshape(n, -1, h, wide)[:, : w.oc]
    return tensor.transpose(0, 3, 1, 2) if layout == "NHWC" else tensor


@pytest.mark.parametrize(
    "text",
    [
        "relu",
        "y",
        "x +",
        "x = 3",
        "x.y",
        "x ** 2",
        "import os",
        "max(x, key=3)",
        "open(x)",
        "0 < x < 1",
        "'a'",
        "",
    ],
)
def test_refusals(text: str) -> None:
    w = ConvWorkload.parse("mb1ic4ih4oc4kh3")
    with pytest.raises(WorkloadError, match="expected one of none, clip, add, or an expression"):
        Task(w, "direct", NATIVE, "NCHW", text).compute()


def test_records_do_not_know_epilogues() -> None:
    w = ConvWorkload.parse("mb1ic4ih4oc4kh3")
    assert len({Task(w, "direct", NATIVE, "NCHW", e).key for e in EPILOGUES}) == 1


# Activation -> the same in NumPy.
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "silu": _silu,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "gelu": lambda x: x * 0.5 * (1 + ERF(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / (1 + np.exp(-math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))),
    "hardswish": lambda x: x * np.clip((x + 3) / 6, 0, 1),
    "hardsigmoid": lambda x: np.clip((x + 3) / 6, 0, 1),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "leaky_relu": lambda x: np.maximum(x, 0.01 * x),
    "leaky_relu:0.25": lambda x: np.maximum(x, 0.25 * x),
    "leaky_relu:-1e-1": lambda x: np.where(x > 0, x, -0.1 * x),
}


@pytest.fixture(scope="module")
def libraries() -> list[convtvm.KernelLibrary]:
    """With every function in the kernels, and with none."""
    names = [*FUNCTIONS, *(f"add+{name}" for name in FUNCTIONS)]
    return [
        build.compile(SMALL, target, logs=[], algorithms="direct", epilogues=epilogues)
        for target, epilogues in ((Unoptimised.native(), names), (NATIVE, []))
    ]


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, adds: bool, libraries: list[convtvm.KernelLibrary]) -> None:
    w = ConvWorkload.parse(SMALL)
    data, weight, bias = random_inputs(w, 3, "NCHW")
    bias[0] = 200  # the exponential of it is no float32, nor that of its opposite
    bias[1] = -200
    residual = np.random.default_rng(1).standard_normal(w.out_shape("NCHW"), np.float32)
    sums = conv2d_reference(w, data, weight, bias, "NCHW").astype(np.float64)
    with np.errstate(over="ignore"):
        expected = FUNCTIONS[name](sums + residual if adds else sums)
    for library, where in zip(libraries, ("inside the kernel", "after it"), strict=True):
        plan = library.plan(w, weight, bias, activation=name, residual=adds)
        assert where in plan.explain()
        np.testing.assert_allclose(
            plan(data, residual=residual if adds else None), expected, rtol=1e-5, atol=3e-6
        )


@pytest.mark.parametrize("name", ["swish", "silu:2", "leaky_relu:", "leaky_relu:nan", "add+silu"])
def test_unknown_functions(name: str, libraries: list[convtvm.KernelLibrary]) -> None:
    with pytest.raises(ConvtvmError, match=r"activation is .*, expected relu, relu6, silu"):
        libraries[0].plan(SMALL, np.zeros((9, 3, 3, 3), np.float32), activation=name)


@pytest.mark.parametrize(
    "name", ["add+relu", "clip+silu", "add+", "+silu", "x * x", "leaky_relu:x"]
)
def test_unknown_epilogues(name: str) -> None:
    with pytest.raises(
        ConvtvmError, match=r"epilogue is .*, expected one of none, clip, add, silu"
    ):
        convtvm.compile(SMALL, threads=1, logs=[], epilogues=[name])
