"""ONNX files that are wrong as a whole: each says in one line what is wrong and what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from models import build_together  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_files import FLOAT, external, model_of, one, refusal, relu_of  # noqa: E402

from convtvm.models.importing import import_model  # noqa: E402


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


def test_what_is_no_regular_file(path: Path) -> None:
    """A pipe that nobody writes, and a device that never ends: neither is read."""
    os.mkfifo(path)
    refusal(path, str(path), "no regular file")
    path.unlink()
    path.symlink_to("/dev/zero")
    refusal(path, "no regular file")
    path.unlink()
    path.symlink_to(path.with_name("gone.onnx"))
    refusal(path, "No such file")


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


def test_weights_of_a_branch_beside_the_file(path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["z"])], "then", [],
        [helper.make_empty_tensor_value_info("z")],
        [numpy_helper.from_array(np.arange(4096, dtype="float32"), "w")],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["z"])], "else", [],
        [helper.make_empty_tensor_value_info("z")],
    )  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)
    model = model_of([node], {"x": [4096]}, ["y"], {"c": np.array(True)})
    (tensor,) = (a.g.initializer[0] for a in model.graph.node[0].attribute if a.g.initializer)
    beside = path.with_name("weights.bin")
    beside.write_bytes(tensor.raw_data)
    external(tensor, location="weights.bin", length=str(len(tensor.raw_data)))
    path.write_bytes(model.SerializeToString())
    (run,) = build_together([import_model(path)], path.parent)
    found = run({"x": np.ones(4096, "float32")})[0]
    assert np.array_equal(found, np.arange(4096, dtype="float32") + 1)
    beside.unlink()
    refusal(path, "weights.bin", "put that file beside the model")


def test_weights_of_another_folder(path: Path) -> None:
    """What lies outside of the model's folder is not read, whatever the file says."""
    outside = path.parent.parent / f"{path.parent.name}-outside.bin"
    outside.write_bytes(bytes(8))
    inside = path.with_name("link.bin")
    inside.symlink_to(outside)
    for location in (f"../{outside.name}", str(outside), "link.bin", ".", ""):
        model = model_of(
            [helper.make_node("Add", ["x", "w"], ["y"])], {"x": [2]}, ["y"],
            {"w": np.zeros(2, "float32")},
        )  # fmt: skip
        external(model.graph.initializer[0], location=location, length="8")
        path.write_bytes(model.SerializeToString())
        refusal(path, str(path))


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


def test_a_name_stands_for_one_size(path: Path) -> None:
    node = helper.make_node("Add", ["x", "h"], ["y"])
    onnx.save(model_of([node], {"x": ["n", 4, "t"], "h": [2, "n", "t"]}, ["y"]), path)
    refusal(path, "--shape x=1x4x16 --shape h=2x1x16")


def test_open_shapes_are_pinned(path: Path) -> None:
    onnx.save(relu_of(["n", 4]), path)
    assert import_model(path, shapes={"x": (3, 4)}).outputs[0].shape == (3, 4)


def test_damaged_weights(path: Path) -> None:
    model = one("Add", np.ones((1, 3, 1, 1), "float32"))
    model.graph.initializer[0].raw_data = b"1234"
    onnx.save(model, path)
    refusal(path, str(path), "weight k0 is damaged")
    model.graph.initializer[0].data_type = 77
    path.write_bytes(model.SerializeToString())
    refusal(path, str(path), "weight k0 is damaged", "type 77")
    model.graph.initializer[0].data_type = FLOAT
    model.graph.initializer[0].raw_data = bytes(12)
    model.graph.initializer[0].dims[0] = -4
    path.write_bytes(model.SerializeToString())
    refusal(path, str(path), "weight k0 is damaged", "[-4, 3, 1, 1]")
    model.graph.initializer[0].dims[0] = 1
    external(model.graph.initializer[0], location="weights.bin", offset="abc")
    onnx.save(model, path)
    refusal(path, "weights.bin")


def test_a_name_twice(path: Path) -> None:
    relu, neg = helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])
    weights = {"w": np.ones(3, "float32")}
    onnx.save(model_of([relu], {"x": [3]}, ["y", "y"]), path)
    refusal(path, str(path), "output y twice")
    for nodes in ([relu, neg], [helper.make_node("Relu", ["x"], ["x"])]):
        onnx.save(model_of(nodes, {"x": [3]}, ["y"], weights), path)
        refusal(path, str(path), "two nodes")
    onnx.save(model_of([helper.make_node("Relu", ["x"], ["w"])], {"x": [3]}, ["w"], weights), path)
    refusal(path, str(path), "weight")


def test_nodes_out_of_order(path: Path) -> None:
    """Nodes that read what later ones make, as edited files have them, also within a branch."""
    branch = helper.make_graph(
        [helper.make_node("Neg", ["u"], ["v"]), helper.make_node("Add", ["b", "b"], ["u"])],
        "then", [], [helper.make_empty_tensor_value_info("v")],
    )  # fmt: skip
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Mul", ["a", "a"], ["b"]),
        helper.make_node("Relu", ["x"], ["a"]),
    ]
    model = model_of(nodes, {"x": [3]}, ["y"], {"c": np.array(True)})
    path.write_bytes(model.SerializeToString())
    (run,) = build_together([import_model(path)], path.parent)
    assert run({"x": np.array([-1, 2, 3], "float32")})[0].tolist() == [0, -8, -18]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_nodes_in_a_circle(path: Path, length: int) -> None:
    names = [f"v{i}" for i in range(length)]
    nodes = [helper.make_node("Add", ["x", names[i - 1]], [name]) for i, name in enumerate(names)]
    path.write_bytes(model_of(nodes, {"x": [3]}, ["v0"]).SerializeToString())
    refusal(path, str(path), *names, "from each other")


def test_opsets(path: Path) -> None:
    for opset, words in ((0, "opset 0"), (999, "opset 999")):
        path.write_bytes(relu_of([3], opset=opset).SerializeToString())
        refusal(path, str(path), words)
    for domains in ([], [helper.make_opsetid("com.microsoft", 1)]):
        model = relu_of([3])
        del model.opset_import[:]
        model.opset_import.extend(domains)
        path.write_bytes(model.SerializeToString())
        refusal(path, str(path), "of which opset")


def test_inputs_that_are_no_numbers(path: Path) -> None:
    onnx.save(relu_of([1], dtype=TensorProto.STRING), path)
    refusal(path, "x", "string")
    graph = relu_of([1])
    sequence = helper.make_tensor_sequence_value_info("x", FLOAT, [1])
    graph.graph.input[0].CopyFrom(sequence)
    onnx.save(graph, path)
    refusal(path, "x", "sequence")
