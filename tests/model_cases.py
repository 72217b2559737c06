"""ONNX operators at odd sizes, each as a model of its own: alone, and between two convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray | None
_GENERATOR = np.random.default_rng(7)


@dataclass(frozen=True)
class Case:
    """One operator on data of `shape`; `rest` are its other operands, constant, None if missing.

    `twin` gives the data as the second operand too, by a second path. `outputs` are the ones that
    are outputs of the model. `bound` is the error allowed, relative to the largest value.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    rest: tuple[Array, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    twin: bool = False
    first: bool = True  # the data is the first operand; else the last
    bound: float = 2e-6

    def __str__(self) -> str:
        return self.name


def case(
    name: str, operator: str, shape: tuple[int, ...], *rest: Array, opset: int = 17,
    outputs: int = 1, twin: bool = False, first: bool = True, bound: float = 2e-6,
    **attributes: Any,
) -> Case:  # fmt: skip
    """A case with the operator's attributes as keywords."""
    return Case(name, operator, shape, rest, attributes, opset, outputs, twin, first, bound)


def normal(*shape: int) -> np.ndarray:
    """Constant weights."""
    return _GENERATOR.standard_normal(shape).astype("float32")


def whole(*numbers: int) -> np.ndarray:
    """Constant integers, as shapes, axes and pads are given."""
    return np.array(numbers, "int64")


def floats(*numbers: float) -> np.ndarray:
    """Constant scales."""
    return np.array(numbers, "float32")


def places_in(c: int, h: int, w: int) -> np.ndarray:
    """Of each channel of an image twelve different places, [1, c, 3, 4]."""
    chosen = [_GENERATOR.choice(h * w, 12, replace=False) + i * h * w for i in range(c)]
    return np.array(chosen, "int64").reshape(1, c, 3, 4)


IMAGE = (1, 6, 7, 9)
NOTHING = np.zeros(0, "float32")


def alone(it: Case) -> onnx.ModelProto:
    """data -> operator."""
    nodes, weights, made = _operator(it, "data")
    values = [helper.make_empty_tensor_value_info(name) for name in made[: it.outputs]]
    return _model(it, nodes, weights, list(it.shape), values)


def between(it: Case) -> onnx.ModelProto:
    """data -> convolution -> operator -> convolution; reshaped where the operator needs it."""
    n, c, h, w = image = _as_image(it.shape)
    first = {"pads": [1, 1, 1, 1], "name": "c0"}
    nodes = [helper.make_node("Conv", ["data", "w0", "b0"], ["before"], **first)]
    weights = {"w0": normal(c, 3, 3, 3), "b0": normal(c)}
    data = "before"
    if image != it.shape:
        nodes.append(helper.make_node("Reshape", [data, "to"], ["shaped"], name="r0"))
        weights["to"], data = whole(*it.shape), "shaped"
    more, operands, made = _operator(it, data)
    nodes, weights = [*nodes, *more], {**weights, **operands}
    ends = []
    for i, output in enumerate(made[: it.outputs]):
        # Whatever the operator makes is an image of one channel for the second convolution.
        nodes += [
            helper.make_node("Cast", [output], [f"f{i}"], to=TensorProto.FLOAT, name=f"f{i}"),
            helper.make_node("Reshape", [f"f{i}", "flat"], [f"s{i}"], name=f"s{i}"),
        ]
        weights["flat"] = whole(1, 1, 1, -1)
        source = f"s{i}"
        if it.operator in IMAGES_STAY and len(it.shape) == 4 and i == 0:
            nodes = nodes[:-2]
            channels = _channels_after(it)
            source = output
        else:
            channels = 1
        weights[f"w1{i}"], weights[f"b1{i}"] = normal(5, channels, 1, 1), normal(5)
        nodes.append(
            helper.make_node("Conv", [source, f"w1{i}", f"b1{i}"], [f"end{i}"], name=f"c1{i}")
        )
        ends.append(helper.make_empty_tensor_value_info(f"end{i}"))
    return _model(it, nodes, weights, [n, 3, h, w], ends)


def _as_image(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The shape of an image with as many elements."""
    if len(shape) == 4:
        return shape  # type: ignore[return-value]
    return (1, 1, 1, math.prod(shape))


def _operator(it: Case, data: str) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[str]]:
    """The operator's nodes, its constants, and the names of its outputs."""
    nodes, weights = [], {}
    operands = [data]
    if it.twin:
        nodes.append(helper.make_node("Neg", [data], ["twin"], name="neg"))
        operands.append("twin")
    for i, array in enumerate(it.rest):
        operands.append("" if array is None else f"k{i}")
        if array is not None:
            weights[f"k{i}"] = array
    if not it.first:
        operands = [*operands[1:], operands[0]]
    count = it.attributes.get("outputs_made", it.outputs)
    made = [f"out{i}" for i in range(count)]
    attributes = {k: v for k, v in it.attributes.items() if k != "outputs_made"}
    nodes.append(helper.make_node(it.operator, operands, made, name="it", **attributes))
    return nodes, weights, made


def _model(
    it: Case,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    shape: Sequence[int],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        it.operator,
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", it.opset)], ir_version=8
    )
    # Outputs need types: those that the operators' schemas give.
    inferred = onnx.shape_inference.infer_shapes(model)
    for declared, found in zip(graph.output, inferred.graph.output, strict=True):
        declared.CopyFrom(found)
    model.graph.CopyFrom(graph)
    return model


# Operators whose first result is an image with channels, which the second convolution reads.
IMAGES_STAY = {
    *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "Relu", "Clip", "PRelu"),
    *("LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Elu", "Selu", "Resize"),
    *("Upsample", "BatchNormalization", "InstanceNormalization", "LRN", "DepthToSpace"),
    *("SpaceToDepth", "Add", "Sub", "Mul", "Div", "Max", "Min", "Softplus", "Mish", "Gelu"),
}


def _channels_after(it: Case) -> int:
    shape = onnx.shape_inference.infer_shapes(alone(it)).graph.output[0].type.tensor_type.shape
    return shape.dim[1].dim_value


C6 = (1, 6, 1, 1)
CASES = [
    # Activations.
    case("relu", "Relu", IMAGE),
    case("relu6 by operands", "Clip", IMAGE, floats(0)[0], floats(6)[0]),
    case("clip by attributes", "Clip", IMAGE, opset=6, min=-0.5, max=0.75),
    case("clip below only", "Clip", IMAGE, floats(-0.25)[0]),
    case("clip above only", "Clip", IMAGE, None, floats(0.25)[0]),
    case("clip by not a number", "Clip", IMAGE, floats(math.nan)[0], floats(0.5)[0]),
    case("leaky relu", "LeakyRelu", IMAGE, alpha=0.2),
    case("prelu of channels", "PRelu", IMAGE, normal(6, 1, 1)),
    case("prelu of one", "PRelu", IMAGE, normal(1)),
    case("prelu of pixels", "PRelu", IMAGE, normal(1, 7, 9)),
    case("prelu of the last axis", "PRelu", IMAGE, normal(9)),
    case("sigmoid", "Sigmoid", IMAGE),
    case("tanh", "Tanh", IMAGE),
    case("hard swish", "HardSwish", IMAGE),
    case("hard sigmoid", "HardSigmoid", IMAGE, alpha=1 / 6),
    case("hard sigmoid by default", "HardSigmoid", IMAGE),
    case("elu", "Elu", IMAGE, alpha=0.7),
    case("selu", "Selu", IMAGE),
    case("celu", "Celu", IMAGE, alpha=0.5),
    case("thresholded relu", "ThresholdedRelu", IMAGE, alpha=0.3),
    case("softplus", "Softplus", IMAGE),
    case("softsign", "Softsign", IMAGE),
    case("mish", "Mish", IMAGE, opset=18),
    case("gelu", "Gelu", IMAGE, opset=20),
    case("gelu by tanh", "Gelu", IMAGE, opset=20, approximate="tanh"),
    case("silu", "Mul", IMAGE, twin=True),
    case("erf", "Erf", IMAGE),
    case("softmax of channels", "Softmax", IMAGE, axis=1),
    case("softmax of the last axis", "Softmax", (3, 11), axis=-1),
    case("softmax of all from an axis", "Softmax", IMAGE, axis=2, opset=11),
    case("log softmax", "LogSoftmax", IMAGE, axis=1),
    # Two operands.
    case("add a channel's", "Add", IMAGE, normal(*C6)),
    case("add a number", "Add", IMAGE, floats(0.5)[0]),
    case("add itself, negated", "Add", IMAGE, twin=True),
    case("multiply a channel's", "Mul", IMAGE, normal(*C6)),
    case("multiply a row's", "Mul", IMAGE, normal(9)),
    case("a number minus", "Sub", IMAGE, floats(1)[0], first=False),
    case("divide a channel's", "Div", IMAGE, normal(*C6) + 3),
    case("power 2", "Pow", IMAGE, floats(2)[0]),
    case("power 3 of an integer", "Pow", IMAGE, whole(3)[0]),
    case("maximum of three", "Max", IMAGE, normal(*C6), normal(7, 9)),
    case("minimum", "Min", IMAGE, normal(1)),
    case("sum of three", "Sum", IMAGE, normal(*C6), normal(7, 9)),
    case("mean of three", "Mean", IMAGE, normal(*C6), normal(7, 9)),
    case("where greater", "Greater", IMAGE, floats(0.1)[0]),
    case("equal", "Equal", IMAGE, floats(0)[0]),
    # Unary.
    *(case(op, op, IMAGE) for op in ("Abs", "Neg", "Exp", "Floor", "Ceil", "Round", "Sign")),
    case("square root of a square", "ReduceL2", IMAGE, axes=[1]),
    case("reciprocal", "Reciprocal", IMAGE, bound=1e-3),
    case("cast to integers", "Cast", IMAGE, to=TensorProto.INT32),
    # Convolutions.
    case("convolution", "Conv", IMAGE, normal(5, 6, 3, 3), normal(5), pads=[1, 1, 1, 1]),
    case("strided, padded more at the end", "Conv", IMAGE, normal(5, 6, 3, 3), strides=[2, 2],
         pads=[0, 0, 1, 1]),
    case("convolution, same upper", "Conv", IMAGE, normal(4, 6, 4, 2), strides=[2, 3],
         auto_pad="SAME_UPPER"),
    case("convolution, same lower", "Conv", IMAGE, normal(4, 6, 4, 2), strides=[2, 2],
         auto_pad="SAME_LOWER"),
    case("convolution, valid", "Conv", IMAGE, normal(4, 6, 3, 1), auto_pad="VALID"),
    case("dilated groups", "Conv", IMAGE, normal(4, 3, 3, 3), group=2, dilations=[2, 3],
         pads=[2, 3, 2, 3]),
    case("depthwise, two a channel", "Conv", IMAGE, normal(12, 1, 5, 5), group=6,
         pads=[2, 2, 2, 2]),
    case("of a volume", "Conv", (1, 4, 5, 6, 7), normal(4, 2, 2, 3, 2), group=2, strides=[2, 1, 2]),
    case("one-dimensional", "Conv", (1, 6, 13), normal(4, 6, 3), normal(4), pads=[1, 1]),
    case("transposed", "ConvTranspose", IMAGE, normal(6, 5, 2, 2), normal(5), strides=[2, 2]),
    case("transposed, overlapping", "ConvTranspose", IMAGE, normal(6, 5, 3, 4), strides=[2, 3],
         pads=[1, 0, 0, 1], output_padding=[1, 2]),
    case("transposed groups", "ConvTranspose", IMAGE, normal(6, 2, 3, 3), group=3, strides=[2, 2],
         pads=[1, 1, 1, 1]),
    case("transposed to a size", "ConvTranspose", IMAGE, normal(6, 4, 3, 3), strides=[2, 2],
         output_shape=[14, 19]),
    case("transposed, same upper", "ConvTranspose", IMAGE, normal(6, 4, 3, 4), strides=[2, 3],
         auto_pad="SAME_UPPER"),
    case("transposed, dilated", "ConvTranspose", IMAGE, normal(6, 4, 3, 3), dilations=[2, 2],
         pads=[1, 1, 1, 1]),
    case("bent by offsets", "DeformConv", IMAGE, normal(5, 6, 3, 2), normal(1, 12, 5, 8),
         normal(5), opset=19, bound=1e-5),
    case("bent by groups of offsets, masked", "DeformConv", IMAGE, normal(4, 3, 3, 3),
         normal(1, 54, 4, 5) * 3, None, np.abs(normal(1, 27, 4, 5)), strides=[2, 2],
         pads=[1, 1, 1, 2], dilations=[1, 1], group=2, offset_group=3, opset=19, bound=1e-5),
    case("bent far out", "DeformConv", (2, 4, 5, 6), normal(3, 4, 1, 1),
         normal(2, 2, 5, 6) * 1e10, opset=19),
    # Pooling.
    case("max pool", "MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("max pool, ceiling", "MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    case("max pool, ceiling over the padding", "MaxPool", (1, 6, 6, 5), kernel_shape=[2, 2],
         strides=[3, 3], pads=[0, 0, 1, 1], ceil_mode=1),
    case("max pool, dilated", "MaxPool", IMAGE, kernel_shape=[3, 2], dilations=[2, 2]),
    case("max pool, same lower", "MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 2],
         auto_pad="SAME_LOWER"),
    case("average pool", "AveragePool", IMAGE, kernel_shape=[3, 2], strides=[2, 1],
         pads=[1, 0, 1, 1]),
    case("average pool with its padding", "AveragePool", IMAGE, kernel_shape=[3, 3],
         strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
    case("average pool, ceiling", "AveragePool", IMAGE, kernel_shape=[2, 2], strides=[2, 2],
         ceil_mode=1),
    case("average pool, ceiling, with its padding", "AveragePool", (1, 6, 8, 9),
         kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0], ceil_mode=1,
         count_include_pad=1, opset=19),
    case("average pool, same upper", "AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2],
         auto_pad="SAME_UPPER"),
    case("p-norm pool", "LpPool", IMAGE, kernel_shape=[2, 3], strides=[2, 2], p=3, bound=1e-5),
    case("p-norm pool, ceiling over the padding", "LpPool", IMAGE, kernel_shape=[2, 2],
         strides=[2, 2], pads=[0, 1, 0, 1], ceil_mode=1, opset=18, bound=1e-5),
    case("max pool with its places", "MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 2],
         pads=[1, 0, 1, 1], outputs=2),
    case("max pool with places by column", "MaxPool", IMAGE, kernel_shape=[2, 3], dilations=[2, 2],
         storage_order=1, outputs=2),
    case("max pool of a volume with its places", "MaxPool", (2, 3, 5, 6, 7),
         kernel_shape=[2, 3, 2], strides=[2, 1, 2], ceil_mode=1, outputs=2),
    case("max unpool", "MaxUnpool", (1, 6, 3, 4), places_in(6, 7, 9), kernel_shape=[3, 3],
         strides=[2, 2]),
    case("max unpool to a size", "MaxUnpool", (1, 6, 3, 4), places_in(6, 8, 9), whole(1, 6, 8, 9),
         kernel_shape=[2, 2], strides=[2, 2]),
    case("max pool of a volume", "MaxPool", (1, 3, 5, 6, 7), kernel_shape=[2, 3, 2],
         strides=[2, 1, 2]),
    case("global average", "GlobalAveragePool", IMAGE),
    case("global maximum", "GlobalMaxPool", IMAGE),
    # Reductions.
    case("mean of rows", "ReduceMean", IMAGE, axes=[2, 3], keepdims=0),
    case("mean by operand", "ReduceMean", IMAGE, whole(-1, 1), opset=18),
    case("sum of all", "ReduceSum", IMAGE, keepdims=0),
    case("maximum of channels", "ReduceMax", IMAGE, axes=[1]),
    case("minimum, negative axis", "ReduceMin", IMAGE, axes=[-2], keepdims=0),
    case("product", "ReduceProd", IMAGE, axes=[1]),
    case("sum of absolutes", "ReduceL1", IMAGE, axes=[3]),
    case("sum of squares", "ReduceSumSquare", IMAGE, axes=[2]),
    case("log of summed exponentials", "ReduceLogSumExp", IMAGE, axes=[1]),
    case("argmax", "ArgMax", IMAGE, axis=1, keepdims=0),
    case("argmin", "ArgMin", IMAGE, axis=-1),
    case("top of three", "TopK", IMAGE, whole(3), axis=1, outputs=2),
    case("top before opset 11", "TopK", (3, 100), whole(5), outputs=2, opset=10),
    case("top by attribute", "TopK", (3, 100), k=100, outputs=2, opset=9),
    case("smallest of rows", "TopK", IMAGE, whole(2), axis=2, largest=0, outputs=2),
    case("cumulative sum", "CumSum", IMAGE, np.array(2, "int32")),
    case("cumulative sum, backwards, before", "CumSum", IMAGE, np.array([-1], "int64"), reverse=1,
         exclusive=1),
    case("hardmax", "Hardmax", (3, 11)),
    case("hot by data", "OneHot", (2,), np.array([[1, -2], [7, 0]], "int64"), whole(5)[0],
         first=False, axis=1),
    case("sequences turned around", "ReverseSequence", (6, 3, 5), whole(4, 6, 1)),
    case("rows turned around", "ReverseSequence", (3, 5, 4), whole(1, 5, 2), batch_axis=0,
         time_axis=1),
    # Signals.
    case("fourier", "DFT", (2, 15, 1), onesided=1, bound=1e-5),
    case("fourier, complex, padded", "DFT", (2, 5, 3, 2), whole(8)[0], axis=-3, bound=1e-5),
    case("fourier, backwards, cut", "DFT", (2, 9, 2), whole(7)[0], whole(1)[0], inverse=1,
         opset=20, bound=1e-5),
    case("fourier by frames", "STFT", (2, 70, 1), whole(8)[0], np.hanning(16).astype("float32"),
         whole(16)[0], bound=1e-5),
    case("fourier by frames, both sides", "STFT", (1, 41, 1), whole(5)[0], None, whole(9)[0],
         onesided=0, bound=1e-5),
    # Shapes.
    case("reshape", "Reshape", IMAGE, whole(0, -1, 9)),
    case("reshape to rows", "Reshape", IMAGE, whole(7, 54)),
    case("flatten", "Flatten", IMAGE),
    case("flatten from the last", "Flatten", IMAGE, axis=-1),
    case("squeeze", "Squeeze", (1, 6, 1, 9), whole(0, 2)),
    case("squeeze by attribute", "Squeeze", (1, 6, 1, 9), opset=11, axes=[-2]),
    case("squeeze all", "Squeeze", (1, 6, 1, 9)),
    case("unsqueeze", "Unsqueeze", IMAGE, whole(0, -1)),
    case("unsqueeze by attribute", "Unsqueeze", (6, 7), opset=11, axes=[1, 3]),
    case("transpose", "Transpose", IMAGE, perm=[0, 2, 3, 1]),
    case("transpose, reversed", "Transpose", IMAGE),
    case("concat", "Concat", IMAGE, normal(1, 3, 7, 9), axis=1),
    case("concat of rows", "Concat", IMAGE, normal(1, 6, 2, 9), axis=-2),
    case("split", "Split", IMAGE, whole(1, 2, 3), axis=1, outputs=3),
    case("split by attribute", "Split", IMAGE, opset=11, axis=3, split=[4, 5], outputs=2),
    case("split with a remainder", "Split", IMAGE, opset=18, axis=3, num_outputs=2, outputs=2),
    case("slice", "Slice", IMAGE, whole(1, 2), whole(-1, 2**31 - 1), whole(1, 3), whole(2, 3)),
    case("slice backwards", "Slice", IMAGE, whole(-1), whole(-(2**63)), whole(2), whole(-2)),
    case("slice by attributes", "Slice", IMAGE, opset=9, axes=[1, 2], starts=[1, -3],
         ends=[5, 1000]),
    case("gather one", "Gather", IMAGE, whole(-2)[0], axis=1),
    case("gather several", "Gather", IMAGE, np.array([[0, 5], [-1, 2]], "int64"), axis=1),
    case("gather elements", "GatherElements", (3, 4), np.array([[0, -1], [2, 1]], "int64"),
         axis=1),
    case("gather by places", "GatherND", IMAGE, np.array([[0, -1], [0, 2]], "int64")),
    case("scatter by places", "ScatterND", (5, 4), np.array([[-1], [0]], "int64"), normal(2, 4)),
    case("scatter elements", "ScatterElements", (3, 4), np.array([[0, -1]], "int64"), normal(1, 2),
         axis=1),
    case("from columns", "Col2Im", (1, 12, 20), whole(5, 6), whole(2, 2), opset=18),
    case("from columns, strided", "Col2Im", (2, 18, 12), whole(7, 9), whole(3, 2),
         strides=[2, 3], dilations=[1, 2], pads=[1, 0, 1, 2], opset=18),
    case("compress", "Compress", IMAGE, np.array([1, 0, 1, 1], bool), axis=1),
    case("compress all", "Compress", (3, 4), np.arange(11) % 3 == 0),
    case("expand", "Expand", (1, 6, 1, 9), whole(2, 1, 7, 1)),
    case("tile", "Tile", IMAGE, whole(1, 2, 1, 3)),
    case("pad", "Pad", IMAGE, whole(0, 0, 1, 2, 0, 1, 3, 0), floats(0.5)[0]),
    case("pad with zeros", "Pad", IMAGE, whole(0, 0, 1, 2, 0, 0, 3, 0)),
    case("pad with less than nothing", "Pad", IMAGE, whole(0, 0, -1, 2, 0, -1, 3, -2)),
    case("pad by reflection", "Pad", IMAGE, whole(0, 0, 1, 2, 0, 0, 3, 0), mode="reflect"),
    case("pad by the edge", "Pad", IMAGE, whole(0, 0, 1, 2, 0, 0, 3, 0), mode="edge"),
    case("pad chosen axes", "Pad", IMAGE, whole(1, 2, 3, 4), None, whole(-1, 2), opset=18),
    case("pad by attribute", "Pad", IMAGE, opset=10, pads=[0, 0, 1, 2, 0, 0, 3, 0], value=1.5),
    case("depth to space", "DepthToSpace", (1, 12, 3, 5), blocksize=2),
    case("depth to space, columns first", "DepthToSpace", (1, 12, 3, 5), blocksize=2, mode="CRD"),
    case("space to depth", "SpaceToDepth", (1, 3, 4, 6), blocksize=2),
    # Resizing.
    case("twice as large", "Resize", IMAGE, None, floats(1, 1, 2, 2),
         coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    case("nearest to a size", "Resize", IMAGE, None, None, whole(1, 6, 5, 13)),
    case("nearest, halves as float32 has them", "Resize", IMAGE, None, floats(1, 1, 1.6, 0.7)),
    case("nearest, symmetric", "Resize", IMAGE, None, floats(1, 1, 1.6, 0.7), opset=19,
         coordinate_transformation_mode="half_pixel_symmetric"),
    case("cropped", "Resize", IMAGE, floats(0, 0, 0.1, 0.2, 1, 1, 0.9, 1.3), None,
         whole(1, 6, 13, 5), mode="linear", coordinate_transformation_mode="tf_crop_and_resize",
         extrapolation_value=2.5),
    case("nearest, ceiling", "Resize", IMAGE, None, floats(1, 1, 1.7, 0.6), nearest_mode="ceil"),
    case("linear", "Resize", IMAGE, None, floats(1, 1, 2, 2), mode="linear"),
    case("linear by an odd scale", "Resize", IMAGE, NOTHING, floats(1, 1, 1.3, 0.7),
         mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    case("linear to a size", "Resize", IMAGE, None, None, whole(1, 6, 15, 4), mode="linear"),
    case("linear with corners", "Resize", IMAGE, None, floats(1, 1, 3, 2), mode="linear",
         coordinate_transformation_mode="align_corners"),
    case("linear, asymmetric", "Resize", IMAGE, None, floats(1, 1, 2, 2.5), mode="linear",
         coordinate_transformation_mode="asymmetric"),
    case("cubic", "Resize", IMAGE, None, floats(1, 1, 1.5, 2), mode="cubic"),
    case("cubic inside", "Resize", IMAGE, None, floats(1, 1, 2.2, 1.4), mode="cubic",
         exclude_outside=1, cubic_coeff_a=-0.5),
    case("linear without aliases", "Resize", IMAGE, None, floats(1, 1, 0.5, 0.4), mode="linear",
         antialias=1, opset=18),
    case("resize chosen axes", "Resize", IMAGE, None, None, whole(14, 12), axes=[2, 3],
         opset=18),
    case("resize before roi", "Resize", IMAGE, floats(1, 1, 2, 2), opset=10),
    case("upsample", "Upsample", IMAGE, floats(1, 1, 2, 3), opset=9),
    case("upsample linearly", "Upsample", IMAGE, floats(1, 1, 2, 2), opset=9, mode="linear"),
    case("upsample by attribute", "Upsample", IMAGE, opset=7, scales=[1.0, 1.0, 2.0, 2.0]),
    # Normalisations.
    case("batch norm", "BatchNormalization", IMAGE, normal(6), normal(6), normal(6),
         np.abs(normal(6)) + 0.5),
    case("instance norm", "InstanceNormalization", IMAGE, normal(6), normal(6), bound=1e-5),
    case("layer norm", "LayerNormalization", IMAGE, normal(9), normal(9), bound=1e-5),
    case("layer norm of an image", "LayerNormalization", IMAGE, normal(6, 7, 9), axis=1,
         bound=1e-5),
    case("group norm", "GroupNormalization", IMAGE, normal(6), normal(6), num_groups=3, opset=21,
         bound=1e-5),
    case("p-norm 1", "LpNormalization", IMAGE, axis=1, p=1),
    case("p-norm 2", "LpNormalization", IMAGE),
    case("local response", "LRN", IMAGE, size=3, alpha=0.3),
    case("local response of all", "LRN", IMAGE, size=11, alpha=0.3, beta=0.6, bias=2.0),
    case("mean and variance", "MeanVarianceNormalization", IMAGE, bound=1e-5),
    # Products.
    case("dense", "Gemm", (3, 11), normal(7, 11), normal(7), transB=1),
    case("dense, scaled", "Gemm", (3, 11), normal(11, 7), normal(3, 1), alpha=0.5, beta=2.0),
    case("dense, transposed", "Gemm", (11, 3), normal(11, 7), transA=1),
    case("matrix product", "MatMul", (2, 5, 11), normal(11, 7)),
    case("product with a vector", "MatMul", (5, 11), normal(11)),
    case("product of batches", "MatMul", IMAGE, normal(6, 9, 4)),
    case("einsum", "Einsum", IMAGE, normal(6, 4), equation="nchw,cd->ndhw"),
    # Recurrent layers: steps, batch, features.
    case("lstm", "LSTM", (6, 2, 5), normal(1, 16, 5), normal(1, 16, 4), normal(1, 32),
         hidden_size=4, outputs=3),
    case("lstm, both ways", "LSTM", (6, 2, 5), normal(2, 76, 5), normal(2, 76, 19),
         normal(2, 152), np.array([6, 6], "int32"), normal(2, 2, 19), normal(2, 2, 19),
         hidden_size=19, direction="bidirectional", outputs=3, bound=1e-5),
    case("lstm with peepholes", "LSTM", (6, 2, 5), normal(1, 16, 5), normal(1, 16, 4), None, None,
         None, None, normal(1, 12), hidden_size=4, clip=1.5),
    case("gru, both ways", "GRU", (6, 1, 5), normal(2, 51, 5), normal(2, 51, 17), normal(2, 102),
         hidden_size=17, direction="bidirectional", outputs=2, bound=1e-5),
    case("gru, reset after", "GRU", (6, 2, 5), normal(1, 12, 5), normal(1, 12, 4), normal(1, 24),
         None, normal(1, 2, 4), hidden_size=4, linear_before_reset=1, direction="reverse",
         activations=["HardSigmoid", "Softsign"], outputs=2),
    case("rnn", "RNN", (6, 2, 5), normal(1, 4, 5), normal(1, 4, 4), normal(1, 8), hidden_size=4,
         activations=["LeakyRelu"], activation_alpha=[0.3], outputs=2),
    # Of the first files.
    case("image scaler", "ImageScaler", IMAGE, scale=0.5, bias=[0.1, -2.0, 0.0, 1.0, 3.0, 0.5],
         opset=7),
    case("affine", "Affine", IMAGE, alpha=0.5, beta=2.0, opset=7),
    case("scaled tanh", "ScaledTanh", IMAGE, alpha=1.7, beta=0.6, opset=7),
    case("parametric softplus", "ParametricSoftplus", IMAGE, alpha=0.7, beta=1.3, opset=7),
    case("crop", "Crop", IMAGE, border=[1, 2, 3, 0], opset=7),
    case("crop to a size", "Crop", IMAGE, border=[2, 1, 0, 0], scale=[4, 5], opset=7),
    # Others.
    case("identity", "Identity", IMAGE),
    case("dropout", "Dropout", IMAGE, floats(0.3)[0]),
    case("dropout with its mask", "Dropout", IMAGE, outputs=2),
    case("grid sample", "GridSample", IMAGE, (normal(1, 5, 4, 2) / 2), opset=16, bound=1e-5),
    case("modulus", "Mod", IMAGE, floats(0.7)[0], fmod=1, bound=1e-5),
    case("one minus nothing", "Sub", IMAGE, np.zeros(C6, "float32")),
    case("last of the largest", "ArgMax", (4, 9), axis=1, select_last_index=1),
    case("lower triangle", "Trilu", (2, 5, 7), whole(1)[0], upper=0),
    case("crop and pad", "CenterCropPad", IMAGE, whole(5, 11), axes=[2, 3], opset=18),
    # Last, since the weights of all cases are drawn in turn.
    case("transposed, dilated by strides", "ConvTranspose", IMAGE, normal(6, 4, 3, 2), normal(8),
         dilations=[2, 3], strides=[2, 3], pads=[1, 3, 2, 0], output_padding=[1, 2], group=2),
    case("transposed, dilated, more cut than reached", "ConvTranspose", IMAGE, normal(6, 4, 2, 1),
         dilations=[2, 3], pads=[4, 2, 1, 0]),
    case("transposed, dilated, of a row", "ConvTranspose", (1, 6, 13), normal(6, 4, 3),
         dilations=[3], strides=[2], pads=[1, 2]),
    case("transposed, dilated, of a volume", "ConvTranspose", (1, 4, 3, 4, 5),
         normal(4, 2, 2, 3, 2), dilations=[2, 1, 3], strides=[1, 2, 1]),
    case("dropout of none, in training", "Dropout", IMAGE, floats(0)[0], np.array(True)),
]  # fmt: skip
