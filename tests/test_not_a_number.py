"""NaN, infinities, denormals and the largest numbers through every activation: eager PyTorch's
result, whichever kernel ends with it, and whatever else computes it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support import Unoptimised, kernel_of, opt_level, pack_weight
from tvm import tirx
from tvm_ffi import from_dlpack

from convtvm.kernels import codegen
from convtvm.kernels.cuda import codegen as gpu_codegen
from convtvm.kernels.task import Task
from convtvm.library import build
from convtvm.machine.targets import resolve
from convtvm.problem.activations import Activation
from convtvm.problem.workload import ConvWorkload

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from models import compile_files  # noqa: E402
from torch.nn import functional as F  # noqa: E402

NATIVE = resolve("native", 1)
HUGE = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
POSITIVE = [
    *(0.0, 1e-45, 1e-40, TINY, 1e-30, 1e-10, 0.01, 0.5, 1.0, 2.0, 2.9, 3.0, 6.0, 9.0, 15.9, 17.0),
    *(30.0, 86.9, 87.5, 88.3, 88.5, 88.72, 88.8, 103.0, 104.5, 1e3, 1e15, 1e30, 1e37, HUGE / 4),
    math.inf,
]
ODD = np.array([math.nan, *POSITIVE, *(-x for x in POSITIVE), -math.nan], np.float32)
assert ODD.size % 8 == 0  # whole blocks of channels
# Activation -> eager PyTorch's.
ACTIVATIONS: dict[Any, Callable[[Any], Any]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    (-1.0, 2.0): lambda x: x.clamp(-1, 2),
    (-math.inf, 0.5): lambda x: x.clamp(max=0.5),
    (0.25, math.inf): lambda x: x.clamp(min=0.25),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "mish": F.mish,
    "leaky_relu": F.leaky_relu,
    "leaky_relu:0.25": lambda x: F.leaky_relu(x, 0.25),
}
# One template each.
KERNELS = [
    ("direct", f"mb1ic2ih1iw9oc{ODD.size}kh3kw3ph1pw1"),
    ("direct:depthwise", f"g{ODD.size}mb1ic{ODD.size}ih3iw5oc{ODD.size}kh3kw3ph1pw1"),
    ("direct:pointwise", f"mb1ic2ih1iw9oc{ODD.size}kh1kw1"),
    ("im2col", f"mb1ic2ih3iw5oc{ODD.size}kh3kw3ph1pw1"),
    ("mec:a", f"mb1ic{ODD.size}ih5oc{ODD.size}kh3"),
    ("mec:b", f"mb1ic2ih3iw5oc{ODD.size}kh3kw3ph1pw1"),
    ("winograd:2", f"mb1ic2ih3iw5oc{ODD.size}kh3kw3ph1pw1"),
]


def eager(activation: Any, x: np.ndarray) -> np.ndarray:
    return ACTIVATIONS[activation](torch.from_numpy(x)).numpy()


def agree(found: np.ndarray, x: np.ndarray, expected: np.ndarray, what: Any) -> None:
    """The same NaN and infinities, and else the same but for rounding, which is relative to the
    larger of argument and result, and what is lost below the normal numbers."""
    assert found.shape == expected.shape
    for name, is_so in (("NaN", np.isnan), ("infinite", np.isinf)):
        wrong = is_so(found) != is_so(expected)
        assert not wrong.any(), f"{what} of {x[wrong]}: {found[wrong]}, {name}: {expected[wrong]}"
    finite = np.isfinite(expected)
    assert np.array_equal(found[~finite], expected[~finite], equal_nan=True)
    with np.errstate(invalid="ignore", over="ignore"):
        scale = np.maximum(np.minimum(np.abs(x), 10), np.abs(expected)).astype(float)
        wrong = finite & (np.abs(found.astype(float) - expected) > 1e-6 * scale + 2 * TINY)
    assert not wrong.any(), f"{what} of {x[wrong]}: {found[wrong]}, expected {expected[wrong]}"


@cache
def kernel(algorithm: str, key: str, layout: str, epilogue: str) -> tuple[Task, Any]:
    task = Task(ConvWorkload.parse(key), algorithm, NATIVE, layout, epilogue)
    level = opt_level(algorithm, layout, epilogue)
    return task, kernel_of(task, task.space.default, level)


def run_kernel(task: Task, run: Any, numbers: tuple[float, ...], residual: bool) -> np.ndarray:
    """The output [oc, pixels] for a bias of ODD, data of zeros and a residual of zeros."""
    w, layout = task.workload, task.layout
    data, weight = (np.zeros(s, np.float32) for s in (w.data_shape(layout), w.weight_shape))
    packed, out = pack_weight(task, weight), np.empty(w.out_shape(layout), np.float32)
    beside = [np.zeros_like(out)] * residual
    tensors = map(from_dlpack, (data, packed, ODD, out))
    run(*tensors, *numbers, *map(from_dlpack, beside))
    if layout == "NCHW8c":
        out = out.transpose(0, 1, 4, 2, 3)
    elif layout == "NHWC":
        out = out.transpose(0, 3, 1, 2)
    return out.reshape(w.oc, -1)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_every_kernel(activation: Any) -> None:
    """By each algorithm in one of the layouts, with a residual and without in turn."""
    made = Activation.of(activation)
    for number, (algorithm, key) in enumerate(KERNELS):
        adds = number % 2 > 0
        epilogue = made.epilogue(adds)
        turn = zlib.crc32(f"{epilogue} {number}".encode())
        layout = ("NCHW", "NHWC", "NCHW8c")[turn % (3 if algorithm.startswith("direct") else 2)]
        found = run_kernel(*kernel(algorithm, key, layout, epilogue), made.numbers, adds)
        x = np.repeat(ODD[:, None], found.shape[1], 1)
        agree(found, x, eager(activation, x), (activation, algorithm, layout, adds))


TWO = {
    "max(x, r0)": torch.maximum,
    "min(x, r0)": torch.minimum,
    "max(r0, x)": torch.maximum,
    "max(x, c0)": torch.maximum,
    "min(c0, x)": torch.minimum,
    "max(x + 0, 0.5)": lambda x, r: x.clamp(min=0.5),
    "min(x, 0.5)": lambda x, r: x.clamp(max=0.5),
    "abs(x)": lambda x, r: x.abs(),
}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NCHW8c"])
@pytest.mark.parametrize("text", TWO)
def test_of_two(text: str, layout: str) -> None:
    """A number and another, either of which may be NaN, as whole models have them."""
    w = ConvWorkload.parse(KERNELS[2][1])
    task = Task(w, "direct:pointwise", NATIVE, layout, text)
    data, weight = (np.zeros(s, np.float32) for s in (w.data_shape(layout), w.weight_shape))
    other = ODD[::-1].copy()
    expected = TWO[text](*(torch.from_numpy(a) for a in (ODD, other))).numpy()
    channels = other if "c0" in text else _spread(other, w, layout)
    out = np.empty(w.out_shape(layout), np.float32)
    beside = [channels] * ("r0" in text or "c0" in text)
    tensors = map(from_dlpack, (data, pack_weight(task, weight), ODD, out, *beside))
    kernel_of(task, task.space.default, opt_level(text, layout))(*tensors)
    assert np.array_equal(out, _spread(expected, w, layout), equal_nan=True)


def _spread(values: np.ndarray, w: ConvWorkload, layout: str) -> np.ndarray:
    """An output that has `values` in the channels of every pixel."""
    wide = {
        "NCHW": values[:, None, None],
        "NHWC": values,
        "NCHW8c": values.reshape(1, -1, 1, 1, 8),
    }
    return np.ascontiguousarray(np.broadcast_to(wide[layout], w.out_shape(layout)))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_after_the_kernel(activation: Any, plain: Any) -> None:
    """Where a library has no kernel that ends so."""
    w = plain.workloads[0]
    weight = np.zeros(w.weight_shape, np.float32)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        plan = plain.plan(w, weight, ODD, activation=activation)
        assert "after it" in plan.explain()
        out = plan(np.zeros(w.data_shape("NCHW"), np.float32))
    x = np.broadcast_to(ODD[None, :, None, None], out.shape)
    agree(out, x, eager(activation, np.ascontiguousarray(x)), activation)


@pytest.fixture(scope="module")
def plain() -> Any:
    return build.compile(KERNELS[2][1], Unoptimised.native(), logs=[], algorithms="direct")


# ---- GPUs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("epilogue", ["clip", "add", "hardswish", "add+hardsigmoid"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_cuda_has_no_maximum_of_floats(layout: str, epilogue: str) -> None:
    """Its `max` is the number where the other side is NaN; of whole numbers it may stand."""
    w = ConvWorkload.parse("mb1ic8ih9oc8kh3ph1")
    target = resolve("cuda:sm_80")
    for algorithm in ("direct", "im2col", "winograd:2", "direct:tf32"):
        task = Task(w, algorithm, target, layout, epilogue)
        mod = codegen.merge({"kernel": task.instantiate(task.space.default)["main"]})
        _, kernels = gpu_codegen.lower(mod, target)
        found = dict.fromkeys((tirx.Max, tirx.Min, tirx.Select), 0)
        for func in kernels.functions.values():
            for kind in found:
                tvm_ffi.structural_walk(func.body, (kind, partial(_count, found)), order="pre")
        assert found[tirx.Max] == found[tirx.Min] == 0 < found[tirx.Select]


def _count(found: dict[type, int], expr: Any) -> None:
    found[type(expr)] += "float" in str(expr.ty)


# ---- whole models --------------------------------------------------------------------------------


IMAGE = (1, ODD.size, 2, 3)
# An operator of x, its other operands and attributes, and the same by NumPy or PyTorch of x and y.
OPERATORS: dict[str, tuple[str, Sequence[Any], dict[str, Any], Callable[..., Any]]] = {
    "relu": ("Relu", (), {}, lambda x, y: F.relu(x)),
    "clip": ("Clip", (0.0, 6.0), {}, lambda x, y: x.clamp(0, 6)),
    "clip below": ("Clip", (-0.5,), {}, lambda x, y: x.clamp(min=-0.5)),
    "clip above": ("Clip", (None, 0.5), {}, lambda x, y: x.clamp(max=0.5)),
    "maximum": ("Max", (0.5,), {}, lambda x, y: x.clamp(min=0.5)),
    "minimum": ("Min", (0.5,), {}, lambda x, y: x.clamp(max=0.5)),
    "of two": ("Max", ("y",), {}, lambda x, y: torch.maximum(x, y)),
    "of two, the smaller": ("Min", ("y",), {}, lambda x, y: torch.minimum(x, y)),
    "of three": ("Max", ("y", 0.25), {}, lambda x, y: torch.maximum(x, y).clamp(min=0.25)),
    "leaky": ("LeakyRelu", (), {"alpha": 0.25}, lambda x, y: F.leaky_relu(x, 0.25)),
    "prelu": ("PRelu", (np.full((64, 1, 1), 0.25, "f4"),), {}, lambda x, y: F.leaky_relu(x, 0.25)),
    "elu": ("Elu", (), {}, lambda x, y: F.elu(x)),
    "selu": ("Selu", (), {}, lambda x, y: F.selu(x)),
    "celu": ("Celu", (), {}, lambda x, y: F.celu(x)),
    "hard swish": ("HardSwish", (), {}, lambda x, y: x * (x / 6 + 0.5).clamp(0, 1)),
    "hard sigmoid": ("HardSigmoid", (), {}, lambda x, y: (0.2 * x + 0.5).clamp(0, 1)),
    "sigmoid": ("Sigmoid", (), {}, lambda x, y: x.sigmoid()),
    "tanh": ("Tanh", (), {}, lambda x, y: x.tanh()),
    "softplus": ("Softplus", (), {}, lambda x, y: F.softplus(x)),
    "softsign": ("Softsign", (), {}, lambda x, y: F.softsign(x)),
    "mish": ("Mish", (), {}, lambda x, y: F.mish(x)),
    "gelu": ("Gelu", (), {}, lambda x, y: F.gelu(x)),
    "gelu by tanh": (
        "Gelu", (), {"approximate": "tanh"}, lambda x, y: F.gelu(x, approximate="tanh"),
    ),
    "exp": ("Exp", (), {}, lambda x, y: x.exp()),
    "erf": ("Erf", (), {}, lambda x, y: x.erf()),
    "abs": ("Abs", (), {}, lambda x, y: x.abs()),
    "sign": ("Sign", (), {}, lambda x, y: torch.where(x.isnan(), x, x.sign())),
    "softmax": ("Softmax", (), {"axis": 3}, lambda x, y: x.softmax(3)),
    "log softmax": ("LogSoftmax", (), {"axis": 3}, lambda x, y: x.log_softmax(3)),
    "max pool": ("MaxPool", (), {"kernel_shape": [2, 2]}, lambda x, y: F.max_pool2d(x, 2, 1)),
    "maximum of all": ("GlobalMaxPool", (), {}, lambda x, y: x.amax((2, 3), True)),
    "of channels": ("ReduceMax", (np.array([1]),), {}, lambda x, y: x.amax(1, True)),
    "of pixels": ("ReduceMin", (np.array([2, 3]),), {}, lambda x, y: x.amin((2, 3), True)),
    "place": ("ArgMax", (), {"axis": 3}, lambda x, y: x.argmax(3, True)),
    "place of the least": ("ArgMin", (), {"axis": 2}, lambda x, y: x.argmin(2, True)),
}  # fmt: skip
# Where ONNX Runtime drops NaN, or has the largest number for infinity.
NOT_AS_RUNTIME = {"max pool", "maximum of all", "clip below", "clip above", "place of the least"}


@pytest.mark.parametrize("after", ["alone", "after a layer"])
def test_models(after: str, tmp_path: Path) -> None:
    """Operators of whole models, fused with a convolution that leaves its data as they are or by
    themselves: as PyTorch has them, and ONNX Runtime."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    x = np.broadcast_to(ODD[None, :, None, None], IMAGE).copy()
    x[0, :, 1, 2] = 0.5
    y = x[:, ::-1].copy()
    path = tmp_path / "operators.onnx"
    ((_, run),) = compile_files({"operators": _model(onnx, after != "alone")}, tmp_path).values()
    theirs = runtime.InferenceSession(str(path)).run(None, {"x": x, "y": y})
    found = run({"x": x, "y": y})
    for (name, (*_, function)), out, other in zip(OPERATORS.items(), found, theirs, strict=True):
        expected = function(torch.from_numpy(x), torch.from_numpy(y)).numpy()
        # exp(x) - 1 and the like are right to the last digits of 1.
        agree(out, np.ones_like(out, np.float32), expected, name)
        if name not in NOT_AS_RUNTIME:
            agree(out, np.ones_like(out, np.float32), other, f"{name} of ONNX Runtime")


def _model(onnx: Any, after_a_layer: bool) -> Any:
    """Every operator on x itself, or on what a depthwise convolution by ones makes of it."""
    helper, nodes, weights = onnx.helper, [], {"ones": np.ones((ODD.size, 1, 1, 1), np.float32)}
    for number, (operator, rest, attributes, _) in enumerate(OPERATORS.values()):
        data = f"x{number}" if after_a_layer else "x"
        names = [data]
        for place, operand in enumerate(rest):
            names.append(operand if isinstance(operand, str) else f"w{number}_{place}")
            if operand is None:
                names[-1] = ""
            elif not isinstance(operand, str):
                kind = np.float32 if isinstance(operand, float) else None
                weights[names[-1]] = np.asarray(operand, kind)
        if after_a_layer:
            nodes.append(helper.make_node("Conv", ["x", "ones"], [data], group=ODD.size))
        nodes.append(helper.make_node(operator, names, [f"out{number}"], **attributes))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, IMAGE) for n in "xy"],
        [helper.make_empty_tensor_value_info(f"out{i}") for i in range(len(OPERATORS))],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
