"""Models that cannot be imported: each says in one line what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from models import build_together, operators, random_inputs, small_resnet  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

from convtvm.errors import ModelError  # noqa: E402
from convtvm.models.importing import import_model  # noqa: E402

FLOAT = TensorProto.FLOAT
EXAMPLE = torch.zeros(1, 3, 9, 9)


def model_of(
    nodes: list[Any],
    inputs: dict[str, list[Any]],
    outputs: list[str],
    weights: dict[str, np.ndarray] | None = None,
    dtype: int = FLOAT,
    opset: int = 17,
) -> Any:
    """An ONNX model, not checked."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def relu_of(shape: list[Any], **options: Any) -> Any:
    return model_of(
        [helper.make_node("Relu", ["x"], ["y"], name="it")], {"x": shape}, ["y"], **options
    )


def refusal(path: Path, *words: str, shapes: dict[str, tuple[int, ...]] | None = None) -> str:
    """The message with which a model is refused; one line that holds these words."""
    with pytest.raises(ModelError) as caught:
        import_model(path, shapes=shapes)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message, message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("content", [b"", b"no model", b"\x00" * 1000, b"PK\x03\x04" + b"a" * 99])
def test_what_is_no_model(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refusal(path, str(path))


@pytest.mark.parametrize("part", [0.2, 0.5, 0.95])
def test_a_truncated_file(path: Path, part: float) -> None:
    content = relu_of([1, 4], weights={"w": np.zeros(1000, "float32")}).SerializeToString()
    path.write_bytes(content[: int(len(content) * part)])
    refusal(path, str(path))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    refusal(tmp_path / "none.onnx", "No such file")
    (tmp_path / "folder.onnx").mkdir()
    refusal(tmp_path / "folder.onnx", "directory")
    refusal(tmp_path / "model.h5", ".onnx or .pt2")


def test_three_gigabytes(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 * 2**30)  # takes no room on the disk
    refusal(path, "3.2 GB", "save_as_external_data")


def test_weights_beside_the_file(path: Path) -> None:
    weight = np.arange(4096, dtype="float32").reshape(1, 4096)
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    model = model_of(nodes, {"x": [1, 4096]}, ["y"], {"w": weight})
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (run,) = build_together([import_model(path)], path.parent)
    assert np.array_equal(run({"x": np.ones((1, 4096), "float32")})[0], weight + 1)
    beside = path.with_name("weights.bin")
    beside.write_bytes(beside.read_bytes()[:100])
    refusal(path, "weights.bin", "cut short")
    beside.unlink()
    refusal(path, "weights.bin", "put that file beside the model")


@pytest.mark.parametrize(
    ("shape", "shapes", "words"),
    [
        (["n", 4], None, ["x (nx4)", "--shape x="]),
        ([None, 4], None, ["x (?x4)", "--shape x="]),
        ([0, 4], None, ["--shape x="]),
        (["n", 4], {"x": (1, 5)}, ["--shape x=1x5", "nx4"]),
        (["n", 4], {"x": (1, 4, 1)}, ["--shape x=1x4x1"]),
        (["n", 4], {"x": (0, 4)}, ["empty"]),
        (["n", 4], {"x": (-1, 4)}, ["empty"]),
        (["n", 4], {"z": (1, 4)}, ["no input z", "x"]),
        ([1, 4], {"x": (2, 4)}, ["--shape x=2x4", "1x4"]),
    ],
)
def test_shapes(
    path: Path, shape: list[Any], shapes: dict[str, tuple[int, ...]] | None, words: list[str]
) -> None:
    onnx.save(relu_of(shape), path)
    refusal(path, *words, shapes=shapes)


def test_open_shapes_are_pinned(path: Path) -> None:
    onnx.save(relu_of(["n", 4]), path)
    assert import_model(path, shapes={"x": (3, 4)}).outputs[0].shape == (3, 4)


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


def one(operator: str, *constants: Any, shape: Any = (1, 3, 8, 8), **attributes: Any) -> Any:
    """A model of one node n7, of data x and of constants."""
    names = [f"k{i}" for i in range(len(constants))]
    node = helper.make_node(operator, ["x", *names], ["y"], name="n7", **attributes)
    weights = {name: np.asarray(c) for name, c in zip(names, constants, strict=True)}
    return model_of([node], {"x": list(shape)}, ["y"], weights)


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
    "nothing left": one("ConvTranspose", KERNEL, shape=(1, 4, 2, 2), pads=[9, 9, 9, 9]),
    "shapes that do not broadcast": one("Add", np.ones(5, "float32")),
    "an axis too far": one("Softmax", axis=7),
    "an axis twice": one("Transpose", perm=[0, 0, 1, 2]),
    "a label from nowhere": one("Einsum", np.ones((8, 4), "float32"), equation="nchw,wk->nchz"),
    "an unknown dtype": one("Cast", to=77),
    "nothing expanded": one("Expand", np.array([1, 0, 8, 8]), shape=(1, 1, 8, 8)),
    "a step of nothing": one("Slice", [0], [3], [1], [0]),
    "all cut away": one("Pad", np.array([0, 0, -5, 0, 0, 0, -5, 0])),
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


def test_damaged_weights(path: Path) -> None:
    model = one("Add", np.ones((1, 3, 1, 1), "float32"))
    model.graph.initializer[0].raw_data = b"1234"
    onnx.save(model, path)
    refusal(path, str(path), "weight k0 is damaged")
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "abc")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    onnx.save(model, path)
    refusal(path, "weights.bin")


def test_a_name_twice(path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="n7")
    onnx.save(model_of([node], {"x": [3]}, ["y", "y"]), path)
    refusal(path, str(path), "output y twice")


def test_inputs_that_are_no_numbers(path: Path) -> None:
    onnx.save(relu_of([1], dtype=TensorProto.STRING), path)
    refusal(path, "x", "string")
    graph = relu_of([1])
    sequence = helper.make_tensor_sequence_value_info("x", FLOAT, [1])
    graph.graph.input[0].CopyFrom(sequence)
    onnx.save(graph, path)
    refusal(path, "x", "sequence")


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


def test_files_that_are_no_program(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    refusal(path, "no such file")
    path.write_bytes(b"no program")
    refusal(path, "torch.export.save")
    torch.save({"a": 1}, path)
    refusal(path, str(path))


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
