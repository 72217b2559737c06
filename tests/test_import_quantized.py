"""Quantised models, as ONNX Runtime's own tool and hand-made nodes write them, and the operators
that its optimiser makes of several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
quantization = pytest.importorskip("onnxruntime.quantization")
torch = pytest.importorskip("torch")

from models import compile_files, compile_together, small_resnet  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from convtvm.models.differences import between  # noqa: E402
from convtvm.models.imported import ROUNDINGS, Imported, NotComparable, Port  # noqa: E402
from convtvm.models.importing import import_model  # noqa: E402

RANDOM = np.random.default_rng(3)
FLOAT = TensorProto.FLOAT


class Images(quantization.CalibrationDataReader):
    """A few images to find ranges by."""

    def __init__(self) -> None:
        shape = (1, 3, 33, 31)
        self._left: Iterator[np.ndarray] = iter(RANDOM.random((4, *shape), "float32") - 0.5)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._left, None)
        return None if image is None else {"image": image}


def exported(path: Path) -> None:
    torch.onnx.export(
        small_resnet(), (torch.zeros(1, 3, 33, 31),), path, dynamo=False,
        input_names=["image"], output_names=["logits"],
    )  # fmt: skip


def quantised(folder: Path) -> dict[str, Path]:
    """A network in the forms that the tool writes."""
    logging.disable(logging.WARNING)
    plain = folder / "plain.onnx"
    exported(plain)
    forms = quantization.QuantFormat
    kinds = quantization.QuantType
    made = {}
    for name, form, options in (
        ("qdq", forms.QDQ, {}),
        ("qdq by channel", forms.QDQ, {"per_channel": True}),
        ("operators", forms.QOperator, {}),
        ("operators by channel", forms.QOperator, {"per_channel": True}),
        ("signed", forms.QDQ, {"activation_type": kinds.QInt8}),
    ):
        made[name] = folder / f"{name}.onnx"
        quantization.quantize_static(
            str(plain), str(made[name]), Images(), quant_format=form, **options
        )
    made["dynamic"] = folder / "dynamic.onnx"
    quantization.quantize_dynamic(str(plain), str(made["dynamic"]), weight_type=kinds.QUInt8)
    logging.disable(logging.NOTSET)
    return made


NAMES = ("qdq", "qdq by channel", "operators", "operators by channel", "signed", "dynamic")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("quantised")
    paths = quantised(folder)
    assert tuple(paths) == NAMES
    models = [import_model(path) for path in paths.values()]
    runs = compile_together(models, folder)
    return dict(zip(paths, zip(models, runs, strict=True), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_network(networks: dict[str, Any], name: str) -> None:
    """A number halfway between two steps may fall to either side, and so a few steps at the end."""
    model, run = networks[name]
    assert model.rounding == ROUNDINGS["int8"], "it may differ by more than a float32 model"
    image = RANDOM.random((1, 3, 33, 31), "float32") - 0.5
    (want,), (have,) = model.reference({"image": image}), run({"image": image})
    assert have.shape == want.shape and have.dtype == want.dtype
    assert np.abs(have - want).max() <= 0.05 * np.abs(want).max()


class Result:
    """A model that returns what the original does, `off` more."""

    outputs = ("y",)

    def __init__(self, original: Callable[..., list[np.ndarray]], off: float) -> None:
        self.original, self.off = original, off

    def __call__(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self.original(inputs)[0] + np.float32(self.off)


def original(steepness: float) -> Imported:
    """One whose output moves by `steepness` times what its input is rounded by."""
    port = Port("y", (1000,), "float32")

    def compute(inputs: Any) -> list[np.ndarray]:
        x = inputs["y"].astype("float64")
        return [np.sin(steepness * (x - 1)).astype("float32") + (x > 1.5)]

    return Imported("it", None, [port], [port], compute, rounding=ROUNDINGS["int8"])


def test_how_far_a_quantised_model_may_be() -> None:
    """Twice what the last bits of the inputs move the original by; nothing where it stands still,
    and no verdict where it moves by as much as it is."""
    inputs = {"y": np.ones(1000, "float32") + np.eye(1, 1000, dtype="float32")[0]}
    still, calm, wild = original(0), original(1000), original(1e6)
    for off, wrong in ((0.0005, False), (0.002, True), (0.5, True)):
        found = between(Result(still.reference, off), still, inputs)  # type: ignore[arg-type]
        assert (found.error > 1e-3) == wrong
    moved = 1000 * ROUNDINGS["int8"]  # of a largest element of 1, or nearly 2
    for off, wrong in ((0.5 * moved, False), (4 * moved, True)):
        found = between(Result(calm.reference, off), calm, inputs)  # type: ignore[arg-type]
        assert (found.error > 0) == wrong
    with pytest.raises(NotComparable, match="hangs on the last bits"):
        between(Result(wild.reference, 0.3), wild, inputs)  # type: ignore[arg-type]


# --- single operators --------------------------------------------------------------------------


def model_of(nodes: list[Any], shape: list[int], **weights: Any) -> Any:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=8)


def of_opset(version: int, model: Any) -> Any:
    model.opset_import[0].version = version
    return model


def fused(operator: str, operands: list[str], shape: list[int], **options: Any) -> Any:
    """One of ONNX Runtime's own operators on x."""
    weights = options.pop("weights")
    nodes = [helper.make_node(operator, operands, ["y"], domain="com.microsoft", **options)]
    return model_of(nodes, shape, **weights)


def on_quantised(operator: str, operands: list[str], shape: list[int], **options: Any) -> Any:
    """The operator on x in steps of xs around xz, its output a float."""
    weights = options.pop("weights")
    weights |= {"xs": np.float32(0.03), "xz": np.uint8(120)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node(operator, operands, ["r"], **options),
        helper.make_node("Cast", ["r"], ["y"], to=FLOAT),
    ]
    return model_of(nodes, shape, **weights)


def bytes_of(*shape: int) -> np.ndarray:
    """Small enough that two of them times 255 are a number of 16 bits, in which ONNX Runtime adds
    them up on a CPU without dot products of bytes."""
    return RANDOM.integers(-60, 60, shape).astype("int8")


OUT = {"ys": np.float32(0.11), "yz": np.uint8(17)}
WEIGHT = {"w": bytes_of(5, 6, 3, 3), "ws": np.float32(0.02), "wz": np.int8(3)}
BY_CHANNEL = {
    "w": bytes_of(5, 6, 3, 3),
    "ws": (RANDOM.random(5, "float32") + 0.1) / 50,
    "wz": np.zeros(5, "int8"),
    "b": RANDOM.integers(-3000, 3000, 5).astype("int32"),
}
IMAGE, ROWS = [1, 6, 7, 9], [3, 13]
MATRIX = {"w": bytes_of(13, 5), "ws": np.float32(0.02), "wz": np.int8(-4)}
LINEAR = ["q", "xs", "xz", "w", "ws", "wz"]
MS = {"domain": "com.microsoft"}
OPERATORS = {
    "rounded": model_of(
        [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["y"]),
        ],
        IMAGE, xs=np.float32(0.25), xz=np.int8(-7),
    ),
    "rounded by channel": model_of(
        [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"], axis=-3),
            helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["y"], axis=1),
        ],
        IMAGE, xs=RANDOM.random(6, "float32") + 0.1, xz=RANDOM.integers(90, 160, 6).astype("uint8"),
    ),
    "rounded in blocks": of_opset(
        21,
        model_of(
            [
                helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"], axis=1, block_size=4),
                helper.make_node("DequantizeLinear", ["q", "xs"], ["y"], axis=1, block_size=4),
            ],
            ROWS, xs=RANDOM.random((3, 4), "float32") + 0.1, xz=np.zeros((3, 4), "uint8"),
        ),
    ),
    "by its range": model_of(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        IMAGE,
    ),
    "ConvInteger": on_quantised(
        "ConvInteger", ["q", "w", "xz", "wz"], IMAGE, weights=dict(WEIGHT), pads=[1, 0, 2, 1]
    ),
    "ConvInteger without zero points": on_quantised(
        "ConvInteger", ["q", "w"], IMAGE, weights=dict(WEIGHT)
    ),
    "MatMulInteger": on_quantised(
        "MatMulInteger", ["q", "w", "xz", "wz"], ROWS, weights=dict(MATRIX)
    ),
    "QLinearConv": on_quantised(
        "QLinearConv", [*LINEAR, "ys", "yz"], IMAGE, weights={**WEIGHT, **OUT}, strides=[2, 1]
    ),
    "QLinearConv by channel": on_quantised(
        "QLinearConv", [*LINEAR, "ys", "yz", "b"], IMAGE, weights={**BY_CHANNEL, **OUT},
        pads=[1, 1, 1, 1],
    ),
    "QLinearMatMul": on_quantised(
        "QLinearMatMul", [*LINEAR, "ys", "yz"], ROWS, weights={**MATRIX, **OUT}
    ),
    "QLinearAdd": on_quantised(
        "QLinearAdd", ["q", "xs", "xz", "q", "xs", "xz", "ys", "yz"], IMAGE, weights=dict(OUT), **MS
    ),
    "QLinearMul": on_quantised(
        "QLinearMul", ["q", "xs", "xz", "q", "xs", "xz", "ys", "yz"], IMAGE, weights=dict(OUT), **MS
    ),
    "QLinearSigmoid": on_quantised(
        "QLinearSigmoid", ["q", "xs", "xz", "ys", "yz"], IMAGE,
        weights={"ys": np.float32(1 / 256), "yz": np.uint8(0)}, **MS,
    ),
    "QLinearLeakyRelu": on_quantised(
        "QLinearLeakyRelu", ["q", "xs", "xz", "ys", "yz"], IMAGE, weights=dict(OUT), alpha=0.3, **MS
    ),
    "QLinearGlobalAveragePool": on_quantised(
        "QLinearGlobalAveragePool", ["q", "xs", "xz", "ys", "yz"], IMAGE, weights=dict(OUT), **MS
    ),
    "QLinearAveragePool": on_quantised(
        "QLinearAveragePool", ["q", "xs", "xz", "ys", "yz"], IMAGE, weights=dict(OUT),
        kernel_shape=[3, 2], strides=[2, 2], **MS,
    ),
    "QLinearConcat": on_quantised(
        "QLinearConcat", ["ys", "yz", "q", "xs", "xz", "q", "xs", "xz"], IMAGE, weights=dict(OUT),
        axis=1, **MS,
    ),
    "QGemm": on_quantised(
        "QGemm", [*LINEAR, "b", "ys", "yz"], ROWS,
        weights={**MATRIX, **OUT, "b": RANDOM.integers(-900, 900, 5).astype("int32")}, **MS,
    ),
    "QGemm to floats": on_quantised(
        "QGemm", [*LINEAR, "b"], ROWS, transB=1,
        weights={**MATRIX, "w": bytes_of(5, 13), "b": np.arange(5, dtype="int32")}, **MS,
    ),
    "MatMulIntegerToFloat": on_quantised(
        "MatMulIntegerToFloat", ["q", "w", "xs", "ws", "xz", "wz", "b"], ROWS,
        weights={
            **MATRIX, "ws": np.arange(1, 6, dtype="float32") / 50,
            "wz": np.arange(5, dtype="int8"), "b": np.arange(5, dtype="float32"),
        }, **MS,
    ),
    "DynamicQuantizeMatMul": fused(
        "DynamicQuantizeMatMul", ["x", "w", "ws", "wz", "b"], ROWS,
        weights={**MATRIX, "b": np.arange(5, dtype="float32")},
    ),
    **{
        f"DynamicQuantizeLSTM, {direction}": fused(
            "DynamicQuantizeLSTM",
            ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"], [4, 1, 13],
            hidden_size=5, direction=direction,
            weights={
                "w": bytes_of(count, 13, 20), "r": bytes_of(count, 5, 20),
                "b": RANDOM.random((count, 40), "float32") - 0.5,
                "ws": RANDOM.random((count, 20), "float32") / 100,
                "wz": np.zeros((count, 20), "int8"),
                "rs": RANDOM.random(count, "float32") / 100, "rz": np.full(count, 3, "int8"),
            },
        )
        for direction, count in (("forward", 1), ("bidirectional", 2))
    },
    "FusedConv": fused(
        "FusedConv", ["x", "w", "b"], IMAGE, activation="LeakyRelu", activation_params=[0.25],
        weights={
            "w": RANDOM.random((5, 6, 3, 3), "float32") - 0.5, "b": RANDOM.random(5, "float32"),
        },
    ),
    "FusedConv with a sum": fused(
        "FusedConv", ["x", "w", "", "x"], IMAGE, activation="Relu", pads=[1, 1, 1, 1],
        weights={"w": RANDOM.random((6, 6, 3, 3), "float32") - 0.5},
    ),
    "FusedGemm": fused(
        "FusedGemm", ["x", "w", "b"], ROWS, activation="LeakyRelu", activation_alpha=0.3, alpha=0.5,
        weights={"w": RANDOM.random((13, 5), "float32") - 0.5, "b": RANDOM.random(5, "float32")},
    ),
    "FusedMatMul": fused(
        "FusedMatMul", ["x", "w"], [2, 13, 3], transA=1, transB=1, alpha=0.25,
        weights={"w": RANDOM.random((5, 13), "float32") - 0.5},
    ),
    "TransposeMatMul": fused(
        "TransposeMatMul", ["x", "w"], ROWS, transB=1,
        weights={"w": RANDOM.random((5, 13), "float32") - 0.5},
    ),
    "QuickGelu": fused("QuickGelu", ["x"], IMAGE, alpha=1.3, weights={}),
}  # fmt: skip


# Of results that are no whole numbers.
STEPS = {
    **{"rounded": 0.25, "rounded by channel": 1.1, "by its range": 0.05, "rounded in blocks": 1.1},
    **dict.fromkeys(
        (
            *("QGemm to floats", "MatMulIntegerToFloat", "FusedConv", "FusedConv with a sum"),
            *("FusedGemm", "FusedMatMul", "TransposeMatMul", "QuickGelu"),
        ),
        0,
    ),
    **{f"DynamicQuantizeLSTM, {d}": 2e-3 for d in ("forward", "bidirectional")},
    "DynamicQuantizeMatMul": 0.03,  # a step of x times that of the weight times its largest
}


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("operators")
    return compile_files(OPERATORS, folder)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator(operators: dict[str, Any], name: str) -> None:
    """The same whole numbers, but for those halfway between two steps, which averages of a few are
    more often than others: a few in a hundred, by one step. A state of an LSTM that is rounded to
    the other side moves all that follow."""
    model, run = operators[name]
    shape = model.inputs[0].shape
    x = RANDOM.standard_normal(shape).astype("float32")
    (want,), (have,) = model.reference({"x": x}), run({"x": x})
    assert have.shape == want.shape and have.dtype == want.dtype
    off, near = np.abs(have - want), 1e-5 * np.abs(want).max()
    step = STEPS.get(name, 1)
    assert off.max() <= 1.01 * step + near
    if "LSTM" not in name:
        assert (off > near).mean() <= (0.05 if "Average" in name else 0.01)
