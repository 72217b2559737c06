"""Operators beside ONNX's reference implementation: those that ONNX Runtime lacks, or has with
other results for infinities and for rows of which a mask leaves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")  # `models` has networks of its

from models import compile_files  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

RANDOM = np.random.default_rng(11)
node = helper.make_node


def model_of(
    nodes: list[Any], outputs: Sequence[str], *inputs: np.ndarray, opset: int = 23, **weights: Any
) -> tuple[Any, dict[str, np.ndarray]]:
    """A model of x0, x1 ..., and these inputs by name."""
    given = {f"x{i}": array for i, array in enumerate(inputs)}
    kinds = {n: helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in given.items()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kinds[n], a.shape) for n, a in given.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), given


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype("float32")


def attention(mask: Any, outputs: int = 1, opset: int = 23, **attributes: Any) -> Any:
    """Two heads of 3 queries and 5 keys, with a constant mask."""
    names = ["y", "", "", "inner"][: 4 if outputs > 1 else 1]
    return model_of(
        [node("Attention", ["x0", "x1", "x2", "mask"], names, **attributes)],
        [name for name in names if name],
        floats(1, 2, 3, 8), floats(1, 2, 5, 8), floats(1, 2, 5, 4), opset=opset, mask=mask,
    )  # fmt: skip


def without_mask(**attributes: Any) -> Any:
    """What was attended to before comes after an operand that is left out."""
    return model_of(
        [node("Attention", ["x0", "x1", "x2", "", "x3", "x4"], ["y", "k", "v"], **attributes)],
        ["y", "k", "v"],
        floats(1, 2, 3, 8), floats(1, 2, 3, 8), floats(1, 2, 3, 4), floats(1, 2, 2, 8),
        floats(1, 2, 2, 4),
    )  # fmt: skip


def rotary(width: int, **attributes: Any) -> Any:
    """All of the head is turned, or the first part of it."""
    turned = attributes.get("rotary_embedding_dim") or width
    angles = RANDOM.random((7, turned // 2))
    return model_of(
        [node("RotaryEmbedding", ["x0", "cosine", "sine", "places"], ["y"], **attributes)], ["y"],
        floats(2, 3, 4, width), cosine=np.cos(angles).astype("float32"),
        sine=np.sin(angles).astype("float32"), places=np.array([[0, 2, 4, 6], [1, 1, 3, 5]]),
    )  # fmt: skip


BOXES = np.array(
    [[0, 0, 9, 7], [2.5, 1, 3.25, 6], [-4, -3, 30, 5], [6, 5, 2, 2], [40, 40, 50, 60]], "float32"
)


def regions(opset: int = 16, **attributes: Any) -> Any:
    """Regions of two images, some beyond the edge, one turned around, one outside."""
    return model_of(
        [node("RoiAlign", ["x0", "x1", "images"], ["y"], **attributes)], ["y"],
        floats(2, 3, 7, 9), BOXES, opset=opset, images=np.array([0, 1, 1, 0, 1]),
    )  # fmt: skip


MASKED = np.array([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]], bool)
LOW, HIGH = -np.inf, np.inf
ROWS = np.array(
    [[LOW, LOW, LOW], [HIGH, HIGH, HIGH], [LOW, 2, LOW], [1, HIGH, 3], [-4, -5, LOW]], "float32"
)
TRUTH = np.array([[True, True], [True, False], [False, False]])
EDGE = np.where(RANDOM.random((1, 16, 6, 7)) < 0.8, -np.inf, floats(1, 16, 6, 7)).astype("float32")
# From nothing to what overflows, more than a vector of each.
SIZES = [0, 1e-30, 1e-4, 0.3, 0.9999, 1, 1.0001, 3, 20, 60, 88, 89, 200, 1e4, 1e30, np.inf]
NUMBERS = np.array([*SIZES, *(-size for size in SIZES), 0.5, -0.5, 7], "float32")
AXIS = {"axes": np.array([1])}
KINDS = {
    "float32": floats(3, 5), "int32": RANDOM.integers(-9, 9, (3, 5)).astype("int32"),
    "int8": np.array([-128, -1, 0, 127], "int8"), "bool": np.array([True, False, True]),
    "float64": RANDOM.standard_normal((2, 3)),
}  # fmt: skip
MODELS = {
    "attention, a row masked": attention(MASKED),
    "attention, a row masked by a sum": attention(np.where(MASKED, 0, LOW).astype("float32")),
    "attention, all masked": attention(np.zeros((3, 5), bool)),
    "attention, a row masked, causal": attention(MASKED, is_causal=1),
    "attention, a row masked, its weights": attention(MASKED, 2, qk_matmul_output_mode=3),
    "attention, a row masked, opset 24": attention(MASKED, 2, opset=24, qk_matmul_output_mode=3),
    "attention to what was before": without_mask(),
    "attention to what was before, causal": without_mask(is_causal=1),
    "rotary embedding": rotary(8),
    "rotary embedding, in turns": rotary(8, interleaved=1),
    "rotary embedding of a part": rotary(12, rotary_embedding_dim=8),
    **{
        f"{operator} of infinities": model_of(
            [node(operator, ["x0", "axes"], ["y"], keepdims=keep)], ["y"], ROWS, opset=18, **AXIS
        )
        for operator, keep in (("ReduceMax", 0), ("ReduceMin", 1))
    },
    **{
        f"{operator} of all": model_of(
            [node(operator, ["x0"], ["y"], keepdims=0)], ["y"], ROWS[:1], opset=18
        )
        for operator in ("ReduceMax", "ReduceMin")
    },
    **{
        f"{operator} of infinities": model_of(
            [node(operator, ["x0"], ["y"], axis=axis, keepdims=keep)], ["y"], ROWS, opset=13
        )
        for operator, axis, keep in (("ArgMax", 1, 0), ("ArgMin", 0, 1))
    },
    "ArgMax, the last": model_of(
        [node("ArgMax", ["x0"], ["y"], axis=1, select_last_index=1)], ["y"], ROWS, opset=13
    ),
    "Hardmax of infinities": model_of([node("Hardmax", ["x0"], ["y"])], ["y"], ROWS, opset=13),
    **{
        f"{operator} of truth values": model_of(
            [node(operator, ["x0", "axes"], ["y"], keepdims=0)], ["y"], TRUTH, opset=20, **AXIS
        )
        for operator in ("ReduceMax", "ReduceMin")
    },
    "MaxPool of infinities": model_of(
        [node("MaxPool", ["x0"], ["y"], kernel_shape=[3, 3], pads=[1] * 4)], ["y"], EDGE,
        opset=13,
    ),
    "GlobalMaxPool of infinities": model_of(
        [node("GlobalMaxPool", ["x0"], ["y"])], ["y"], np.full((1, 16, 3, 5), LOW, "float32"),
        opset=13,
    ),
    **{
        f"bits of {kind} as {wanted}": model_of(
            [node("BitCast", ["x0"], ["y"], to=TensorProto.DataType.Value(wanted.upper()))], ["y"],
            KINDS[kind], opset=26,
        )
        for kind, wanted in (
            ("float32", "int32"), ("int32", "uint32"), ("int8", "uint8"), ("bool", "uint8"),
        )
    },
    "bits of float64 as int64": model_of(
        [node("BitCast", ["x0"], ["y"], to=TensorProto.INT64)], ["y"], KINDS["float64"], opset=26
    ),
    "regions": regions(output_height=2, output_width=3, sampling_ratio=2),
    "regions, scaled": regions(output_height=3, output_width=2, spatial_scale=0.25),
    "regions, scaled, of so many samples": regions(
        output_height=3, output_width=2, spatial_scale=0.5, sampling_ratio=3
    ),
    "regions, the largest": regions(
        output_height=2, output_width=2, mode="max", spatial_scale=0.75, sampling_ratio=2
    ),
    "regions, the largest of all samples": regions(output_height=2, output_width=2, mode="max"),
    "regions by output pixels": regions(
        output_height=2, output_width=3, spatial_scale=0.5,
        coordinate_transformation_mode="output_half_pixel",
    ),
    **{
        operator: model_of([node(operator, ["x0"], ["y"])], ["y"], NUMBERS, opset=22)
        for operator in (
            *("Sinh", "Cosh", "Tan", "Asinh", "Atanh", "Softplus", "Mish", "Gelu", "Sigmoid"),
            *("Exp", "Softsign", "Erf", "Tanh", "HardSwish"),
        )
    },
    "split off nothing": model_of(
        [
            node("Split", ["x0", "sizes"], ["a", "b", "c"], axis=1),
            node("Concat", ["c", "b", "a"], ["y"], axis=1),
        ],
        ["y"], floats(2, 5), opset=13, sizes=np.array([3, 0, 2]),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("reference")
    return compile_files({name: model for name, (model, _) in MODELS.items()}, folder)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_the_specification_says(compiled: dict[str, Any], name: str) -> None:
    model, given = MODELS[name]
    _, run = compiled[name]
    with np.errstate(all="ignore"):
        expected = ReferenceEvaluator(model).run(None, given)
    found = run(given)
    assert len(found) == len(expected)
    for have, want in zip(found, map(np.asarray, expected), strict=True):
        assert have.shape == want.shape and have.dtype == want.dtype
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)


def test_regions_before_pixels_had_a_middle(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As ONNX Runtime has them; the reference implementation knows the later rule alone."""
    pytest.importorskip("onnxruntime")
    model, given = regions(10, output_height=3, output_width=3, spatial_scale=0.5)
    folder = tmp_path_factory.mktemp("regions")
    imported, run = compile_files({"regions": model}, folder)["regions"]
    np.testing.assert_allclose(run(given)[0], imported.reference(given)[0], rtol=1e-5, atol=1e-6)


def test_infinities_by_definition(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where the reference implementation has NaN for what its own definition says, or nothing: the
    logarithm of a sum of exponentials; and of a window the first place that is one of the image,
    not of what is around it."""
    image = np.full((1, 2, 4, 4), LOW, "float32")
    summed, rows = model_of(
        [node("ReduceLogSumExp", ["x0", "axes"], ["y"], keepdims=0)], ["y"], ROWS, opset=18, **AXIS
    )
    pooled, images = model_of(
        [node("MaxPool", ["x0"], ["y", "at"], kernel_shape=[2, 2], strides=[2, 2], pads=[1] * 4)],
        ["y", "at"], image, opset=13,
    )  # fmt: skip
    made = compile_files({"sum": summed, "pool": pooled}, tmp_path_factory.mktemp("infinities"))
    with np.errstate(all="ignore"):
        expected = np.log(np.exp(ROWS.astype("float64")).sum(1))
    np.testing.assert_allclose(made["sum"][1](rows)[0], expected, rtol=1e-5)
    values, places = made["pool"][1](images)
    assert (values == LOW).all()
    grid = np.meshgrid([0, 1, 3], [0, 1, 3], indexing="ij")
    first = np.stack([16 * channel + 4 * grid[0] + grid[1] for channel in (0, 1)])[None]
    assert np.array_equal(places, first)
