"""Nodes and modules that cannot be imported: each says in one line what is wrong and what to do."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from models import build_together, operators, random_inputs, small_resnet  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from onnx_files import FLOAT, model_of, one, refusal  # noqa: E402
from torch import nn  # noqa: E402

from convtvm.errors import ModelError  # noqa: E402
from convtvm.models.importing import import_model  # noqa: E402

EXAMPLE = torch.zeros(1, 3, 9, 9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


NODES = {
    "unknown operator": (helper.make_node("Frob", ["x"], ["y"], name="n7"), ["n7", "Frob"]),
    "unknown domain": (
        helper.make_node("Relu", ["x"], ["y"], name="n7", domain="my.own"),
        ["n7", "my.own.Relu"],
    ),
    "no name": (helper.make_node("Loop", ["x", "x", "x"], ["y"]), ["output y", "Loop"]),
    "weights by data": (helper.make_node("LSTM", ["x", "x", "x"], ["y"], name="n7"), ["n7"]),
    "no sequence": (helper.make_node("SequenceAt", ["x"], ["y"], name="n7"), ["n7", "sequence"]),
    "a sequence at the end": (
        helper.make_node("SequenceConstruct", ["x"], ["y"], name="n7"), ["output y", "sequence"],
    ),
    "more than there is": (helper.make_node("TopK", ["x"], ["y"], name="n7", k=9), ["n7"]),
    "shape by data": (helper.make_node("NonZero", ["x"], ["y"], name="n7"), ["n7", "depends"]),
    "missing input": (helper.make_node("Add", ["x", "z"], ["y"], name="n7"), ["n7", "makes z"]),
    "shapes that do not fit": (
        helper.make_node("MatMul", ["x", "x"], ["y"], name="n7"), ["n7", "MatMul"],
    ),
    "random": (helper.make_node("RandomNormalLike", ["x"], ["y"], name="n7"), ["n7", "random"]),
    "no such output": (helper.make_node("Relu", ["x"], ["z"], name="n7"), ["output y"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", NODES)
def test_nodes(path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    node, words = NODES[kind]
    onnx.save(model_of([node], {"x": [3, 4]}, ["y"]), path)
    refusal(path, str(path), *words)
    assert capfd.readouterr() == ("", ""), "TVM's own words do not come through"


KERNEL = np.ones((4, 3, 3, 3), "float32")
INVALID = {
    "a kernel larger than the image": one("Conv", KERNEL, shape=(1, 3, 2, 2)),
    "negative padding": one("Conv", KERNEL, pads=[-1, 0, 0, 0]),
    "no stride": one("Conv", KERNEL, strides=[0, 1]),
    "another kernel": one("Conv", KERNEL, kernel_shape=[5, 5]),
    "two numbers for four": one("Conv", KERNEL, pads=[1, 1]),
    "whole weights": one("Conv", KERNEL.astype("int64")),
    "an image without axes": one("Conv", KERNEL, shape=(1, 3)),
    "a window larger than the image": one("MaxPool", kernel_shape=[9, 9]),
    "no kernel": one("MaxPool"),
    **{
        f"{operator} padded by a mode of its own": one(
            operator, *operands, auto_pad="SAME", **options
        )
        for operator, operands, options in (
            ("Conv", (KERNEL,), {}),
            ("ConvTranspose", (np.ones((3, 2, 3, 3), "float32"),), {}),
            ("MaxPool", (), {"kernel_shape": [2, 2]}),
        )
    },
    **{
        f"{operator} of padding alone": one(operator, kernel_shape=[2, 3], pads=[0, 1, 2, 1])
        for operator in ("MaxPool", "AveragePool", "LpPool")
    },
    "no groups": one("Conv", KERNEL, group=0),
    "groups that do not divide": one("Conv", KERNEL[:, :1], group=3),
    "channels of another weight": one("Conv", KERNEL, shape=(1, 5, 8, 8)),
    "channels of another weight, transposed": one("ConvTranspose", KERNEL, shape=(1, 3, 8, 8)),
    "a bias of another layer": one("Conv", KERNEL, np.ones(7, "float32")),
    "text": one("Cast", to=TensorProto.STRING),
    **{
        f"resized by {scale}": one("Resize", [], np.array([1, 1, scale, 2], "float32"))
        for scale in (np.nan, np.inf, -2, 0)
    },
    "nothing left": one("ConvTranspose", KERNEL, shape=(1, 4, 2, 2), pads=[9, 9, 9, 9]),
    "shapes that do not broadcast": one("Add", np.ones(5, "float32")),
    "an axis too far": one("Softmax", axis=7),
    "an axis twice": one("Transpose", perm=[0, 0, 1, 2]),
    "a label from nowhere": one("Einsum", np.ones((8, 4), "float32"), equation="nchw,wk->nchz"),
    "an unknown dtype": one("Cast", to=77),
    "nothing expanded": one("Expand", np.array([1, 0, 8, 8]), shape=(1, 1, 8, 8)),
    "a step of nothing": one("Slice", [0], [3], [1], [0]),
    "all cut away": one("Pad", np.array([0, 0, -5, 0, 0, 0, -5, 0])),
    "more mirrored than there is": one("Pad", np.array([0, 0, 8, 0, 0, 0, 0, 0]), mode="reflect"),
    "sizes that do not add up": one("Split", np.array([1, 1]), axis=1),
    "chosen beyond the end": one("Compress", np.ones(30, bool), axis=1),
    "a sum along no axis": one("CumSum", np.array(5)),
    "weights of another layer": one(
        "LSTM", np.ones((1, 16, 7), "float32"), np.ones((1, 16, 4), "float32"), hidden_size=4,
        shape=(5, 1, 3),
    ),
    "sequences of several lengths": one(
        "GRU", np.ones((1, 12, 3), "float32"), np.ones((1, 12, 4), "float32"),
        np.zeros((1, 24), "float32"), np.array([5, 3], "int32"), hidden_size=4, shape=(5, 2, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", INVALID)
def test_invalid_nodes(path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(INVALID[kind], path)
    refusal(path, str(path), "node n7")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("operator", ["Reshape", "Expand", "Tile", "ConstantOfShape"])
def test_shapes_by_data(path: Path, operator: str) -> None:
    operands = ["x"] if operator == "ConstantOfShape" else ["w", "x"]
    node = helper.make_node(operator, operands, ["y"], name="n7")
    weights = {"w": np.ones((3, 4), "float32")}
    onnx.save(model_of([node], {"x": [2]}, ["y"], weights, dtype=TensorProto.INT64), path)
    refusal(path, "n7", "at run time")


def test_too_large(path: Path) -> None:
    onnx.save(one("Relu", shape=(1, 3, 50_000, 50_000)), path)
    refusal(path, "x 1x3x50000x50000", "expected less than")
    onnx.save(one("Expand", np.array([50_000, 3, 50_000, 8]), shape=(1, 3, 1, 1)), path)
    refusal(path, "n7", "expected less than")


def test_results_and_weights_that_no_kernel_holds(path: Path) -> None:
    half = TensorProto.FLOAT8E5M2
    cast = helper.make_node("Cast", ["x"], ["y"], to=half, name="n7")
    path.write_bytes(model_of([cast], {"x": [3]}, ["y"], opset=19).SerializeToString())
    refusal(path, "n7", "float8_e5m2")
    end = helper.make_node("Shape", ["x"], ["y"], start=2, name="n7")
    path.write_bytes(model_of([end], {"x": [3]}, ["y"]).SerializeToString())
    refusal(path, "output y", "empty")
    kinds = {TensorProto.STRING: b"a text", TensorProto.COMPLEX64: 1j}
    for kind, value in kinds.items():
        odd = model_of([helper.make_node("Identity", ["w"], ["y"])], {"x": [3]}, ["y"])
        odd.graph.initializer.append(helper.make_tensor("w", kind, [1], [value]))
        path.write_bytes(odd.SerializeToString())
        refusal(path, "weight w holds")
    nodes = [
        helper.make_node("Cast", ["w"], ["t"], to=TensorProto.STRING, name="n7"),
        helper.make_node("Cast", ["t"], ["y"], to=FLOAT),
    ]
    onnx.save(model_of(nodes, {"x": [3]}, ["y"], {"w": np.ones(3, "float32")}), path)
    refusal(path, "n7")
    tensor = helper.make_tensor("w", TensorProto.INT4, [3], [1, 2, 3])
    for operator in ("Cast", "DequantizeLinear"):
        operands = ["w"] if operator == "Cast" else ["w", "s"]
        made = helper.make_node(operator, operands, ["f"], name="n7")
        if operator == "Cast":
            made.attribute.append(helper.make_attribute("to", FLOAT))
        add = helper.make_node("Add", ["x", "f"], ["y"])
        model = model_of([made, add], {"x": [3]}, ["y"], {"s": np.float32(0.5)}, opset=21)
        model.graph.initializer.append(tensor)
        path.write_bytes(model.SerializeToString())
        if operator == "Cast":
            refusal(path, "n7", "int4")
    (run,) = build_together([import_model(path)], path.parent)
    assert run({"x": np.zeros(3, "float32")})[0].tolist() == [0.5, 1, 1.5]


FAR = np.array([1, 10**15], "int64")
TOO_LARGE = {
    "ConstantOfShape": (FAR,),
    "Range": (np.array(0), np.array(10**15), np.array(1)),
    "Expand": (np.ones((1, 1), "float32"), FAR),
    "Tile": (np.ones((1, 1), "float32"), FAR),
    "Pad": (np.ones((1, 1), "float32"), np.array([0, 0, 0, 10**15])),
}


@pytest.mark.parametrize("operator", TOO_LARGE)
def test_constants_that_would_fill_the_memory(path: Path, operator: str) -> None:
    """Said before anything makes them."""
    weights = {f"k{i}": array for i, array in enumerate(TOO_LARGE[operator])}
    nodes = [
        helper.make_node(operator, list(weights), ["c"], name="n7"),
        helper.make_node("Cast", ["c"], ["f"], to=FLOAT),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    path.write_bytes(model_of(nodes, {"x": [1]}, ["y"], weights).SerializeToString())
    refusal(path, "n7", "1000000000000", "expected less than 536870912 elements")


def test_where_to_cut(path: Path) -> None:
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["y"], name="n7")
    model = model_of([node], {"boxes": [1, 5, 4], "scores": [1, 2, 5]}, ["y"])
    path.write_bytes(model.SerializeToString())
    refusal(path, "n7", "its outputs boxes and scores")


def test_odd_models_that_are_right(path: Path, tmp_path: Path) -> None:
    """Unused inputs, weights that are inputs too, outputs that are inputs or constants."""
    weight = np.array([[1.0, 2.0]], "float32")
    half = np.array([[0.5, 0.25]], "float16")
    add = helper.make_node("Add", ["x", "w"], ["y"])
    models = {
        "unused": model_of([add], {"x": [1, 2], "idle": [3], "w": [1, 2]}, ["y"], {"w": weight}),
        "same": model_of([add], {"x": [1, 2]}, ["x", "y", "w"], {"w": weight}),
        "half": model_of(
            [helper.make_node("Mul", ["x", "w"], ["y"])], {"x": [1, 2]}, ["y"], {"w": half},
            TensorProto.FLOAT16,
        ),
        "sequence": model_of(
            [
                helper.make_node("SplitToSequence", ["x"], ["s"], axis=1),
                helper.make_node("SequenceInsert", ["s", "x"], ["t"]),
                helper.make_node("SequenceAt", ["t", "two"], ["u"]),
                helper.make_node("SequenceConstruct", ["x", "u", "x"], ["v"]),
                helper.make_node("ConcatFromSequence", ["v"], ["y"], axis=1),
            ],
            {"x": [1, 3]}, ["y"], {"two": np.array(-2, "int64")},
        ),
        "old forms": model_of(
            [
                helper.make_node("Unsqueeze", ["w"], ["u"], axes=[0]),
                helper.make_node("Mul", ["x", "u"], ["y"]),
            ],
            {"x": [1, 3]}, ["y"], {"w": np.array([1, 2, 3], "float32")}, opset=9,
        ),
        "old forms of constants": model_of(
            [
                helper.make_node("Shape", ["x"], ["s"]),
                helper.make_node("Gather", ["s", "at"], ["n"]),
                helper.make_node("Mul", ["n", "n"], ["m"]),
                helper.make_node("Unsqueeze", ["m"], ["u"], axes=[0]),
                helper.make_node("Squeeze", ["u"], ["q"], axes=[0]),
                helper.make_node("Unsqueeze", ["q"], ["v"], axes=[0]),
                helper.make_node("Slice", ["v"], ["w"], axes=[0], starts=[0], ends=[1]),
                helper.make_node("ReduceProd", ["w"], ["p"], axes=[0], keepdims=1),
                helper.make_node("Div", ["p", "three"], ["d"]),
                helper.make_node("Cast", ["d"], ["c"], to=TensorProto.INT64),
                helper.make_node("Concat", ["one", "c"], ["t"], axis=0),
                helper.make_node("Reshape", ["x", "t"], ["y"]),
            ],
            {"x": [1, 3]}, ["y"],
            {
                "at": np.array(1, "int64"), "one": np.array([1], "int64"),
                "three": np.array([3], "int64"),
            },
            opset=9,
        ),
        "whole powers": model_of(
            [
                helper.make_node("Pow", ["x", "p"], ["a"]),
                helper.make_node("Pow", ["x", "q"], ["b"]),
                helper.make_node("Pow", ["x", "x"], ["c"]),
                helper.make_node("Add", ["a", "b"], ["d"]),
                helper.make_node("Add", ["d", "c"], ["y"]),
            ],
            {"x": [1, 3]}, ["y"], {"p": np.array(3, "int64"), "q": np.array([0, 5, 2], "int32")},
            TensorProto.INT64,
        ),
        "a diagonal": model_of(
            [
                helper.make_node("EyeLike", ["x"], ["e"], k=1, dtype=TensorProto.DOUBLE),
                helper.make_node("Cast", ["e"], ["f"], to=FLOAT),
                helper.make_node("Add", ["x", "f"], ["y"]),
            ],
            {"x": [3, 4]}, ["y"],
        ),
        "gather": model_of(
            [helper.make_node("Gather", ["x", "w"], ["y"], axis=1)], {"x": [1, 3]}, ["y"],
            {"w": np.array([-1, 0], "int64")},
        ),
    }  # fmt: skip
    imported = {}
    for name, model in models.items():
        onnx.save(model, tmp_path / f"{name}.onnx")
        imported[name] = import_model(tmp_path / f"{name}.onnx")
    assert [port.name for port in imported["unused"].inputs] == ["x", "idle"]
    assert imported["half"].inputs[0].dtype == imported["half"].outputs[0].dtype == "float16"
    runs = build_together(list(imported.values()), tmp_path)
    for model, run in zip(imported.values(), runs, strict=True):
        inputs = random_inputs(model)
        for have, want in zip(run(inputs), model.reference(inputs), strict=True):
            assert have.dtype == want.dtype and np.allclose(have, want, atol=1e-3)


# --- PyTorch -----------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor, factor: float) -> torch.Tensor:
        return x * factor


def in_training() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    model[1].train()
    return model


MODULES: dict[str, tuple[Callable[[], Any], Any, list[str]]] = {
    "training": (lambda: small_resnet().train(), EXAMPLE, ["training mode", "eval()"]),
    "a part in training": (in_training, EXAMPLE, ["module 1", "training mode"]),
    "no example": (small_resnet, None, ["example"]),
    "an array": (small_resnet, np.zeros((1, 3, 9, 9)), ["ndarray"]),
    "a number": (lambda: Scaled().eval(), (EXAMPLE, 2.0), ["float", "tensors only"]),
    "an empty example": (small_resnet, EXAMPLE[:0], ["empty"]),
    "a wrong example": (small_resnet, EXAMPLE[:, :1], ["torch.export"]),
    "half precision": (lambda: small_resnet().half(), EXAMPLE, ["float16", "model.float()"]),
    "control flow": (lambda: Branching().eval(), EXAMPLE, ["torch.export"]),
    "no module": (lambda: 3, EXAMPLE, ["int"]),
}


@pytest.mark.parametrize("kind", MODULES)
def test_modules(kind: str) -> None:
    make, example, words = MODULES[kind]
    with pytest.raises(ModelError) as caught:
        import_model(make(), example)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert all(word in message for word in words), message


def test_files_that_are_no_program(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.pt2"
    refusal(path, "no such file")
    path.write_bytes(b"no program")
    refusal(path, "torch.export.save")
    for content in ({"a": 1}, small_resnet().state_dict()):
        torch.save(content, path)
        refusal(path, str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is a thing of the past
        torch.jit.trace(small_resnet(), EXAMPLE).save(path)
    refusal(path, str(path))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "a")
    refusal(path, str(path))
    path.write_bytes(path.read_bytes()[:-9])
    refusal(path, "torch.export.save")
    path.unlink()
    path.mkdir()
    refusal(path, "no regular file")
    assert not caplog.records and capfd.readouterr().err == "", "nor does PyTorch's log"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_program_of_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "model.pt2"
    program = torch.export.export(small_resnet().to(dtype), (EXAMPLE.to(dtype),))
    torch.export.save(program, path)
    refusal(path, str(dtype), "model.float()")


def test_a_program_with_open_shapes(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    batch = torch.export.Dim("batch", min=1, max=8)
    example = (torch.zeros(2, 3, 17, 17),)
    program = torch.export.export(small_resnet(), example, dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    refusal(path, "input (?x3x17x17)", "--shape input=")
    refusal(path, "does not fit", shapes={"input": (3, 4, 17, 17)})
    model = import_model(path, shapes={"input": (3, 3, 17, 17)})
    assert model.inputs[0].shape == (3, 3, 17, 17) and model.outputs[0].shape == (3, 7)
    assert operators(model.module)["relax.nn.conv2d"] == 7
