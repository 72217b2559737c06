"""Nodes that hold graphs: branches and loops, written out, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")  # `models` has networks of its

from models import compile_files, compile_together  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from convtvm import compile_model, load_model  # noqa: E402
from convtvm.errors import ModelError  # noqa: E402
from convtvm.models.importing import import_model  # noqa: E402
from convtvm.models.onnx import subgraphs  # noqa: E402

FLOAT, BOOL, INT = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
SHAPE = [3, 5]
node = helper.make_node


def value(name: str, kind: int = FLOAT, shape: Sequence[Any] | None = None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(nodes: list[Any], inputs: list[Any], outputs: list[Any], **weights: Any) -> Any:
    arrays = [numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()]
    return helper.make_graph(nodes, "g", inputs, outputs, arrays)


def whole(nodes: list[Any], outputs: list[str], **weights: Any) -> Any:
    """A model of x, by these nodes."""
    made = graph(nodes, [value("x", FLOAT, SHAPE)], [value(name) for name in outputs], **weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def branches(then: list[Any], other: list[Any]) -> dict[str, Any]:
    """Two graphs of outer values, each with the output b."""
    return {
        "then_branch": graph(then, [], [value("b")], two=np.float32(2)),
        "else_branch": graph(other, [], [value("b")], two=np.float32(3)),
    }


DOUBLED = [node("Mul", ["x", "two"], ["b"])]
ADDED = [node("Add", ["x", "two"], ["b"])]
IS_POSITIVE = [
    node("ReduceSum", ["x"], ["sum"], keepdims=0),
    node("Greater", ["sum", "zero"], ["flag"]),
]


def loop(body_nodes: list[Any], carried: list[str], scanned: list[str], **weights: Any) -> Any:
    """A body that carries values, in and out as name and name_, and collects `scanned`."""
    inputs = [value("i", INT, []), value("go", BOOL, []), *(value(name) for name in carried)]
    outputs = [value("goes", BOOL, []), *(value(f"{n}_") for n in carried), *map(value, scanned)]
    return graph(body_nodes, inputs, outputs, **weights)


GOES_ON = node("Identity", ["go"], ["goes"])
GROWING = loop(
    [
        GOES_ON,
        node("Cast", ["i"], ["turn"], to=FLOAT),
        node("Mul", ["s", "half"], ["small"]),
        node("Add", ["small", "turn"], ["s_"]),
        node("Add", ["s_", "x"], ["seen"]),
    ],
    ["s"], ["seen"], half=np.float32(0.5),
)  # fmt: skip
# Until the counter, which no data touches, reaches its end.
COUNTING = loop(
    [
        node("Add", ["n", "one"], ["n_"]),
        node("Less", ["n_", "end"], ["goes"]),
        node("Mul", ["s", "x"], ["s_"]),
    ],
    ["n", "s"], [], one=np.float32(1), end=np.float32(4),
)  # fmt: skip
ALWAYS = loop(
    [node("Add", ["s", "x"], ["s_"]), node("Identity", ["true"], ["goes"])],
    ["s"], [], true=np.array(True),
)  # fmt: skip
IN_TURN = loop(
    [GOES_ON, node("Loop", ["many", "", "s"], ["s_"], body=ALWAYS, name="n7")],
    ["s"], [], many=np.array(9999),
)  # fmt: skip
EMPTY = graph(
    [], [value("i", INT, []), value("go", BOOL, []), value("s")], [value("go", BOOL), value("s")]
)
OUTER = graph(
    [node("Add", ["s", "x"], ["s_"])],
    [value("i", INT, []), value("go", BOOL, []), value("s")], [value("yes", BOOL, []), value("s_")],
)  # fmt: skip
FEW = loop(
    [GOES_ON, node("Loop", ["few", "", "s"], ["s_"], body=ALWAYS, name="n7")],
    ["s"], [], few=np.array(5),
)  # fmt: skip
COUNTING_FEW = loop(
    [
        node("Add", ["n", "one"], ["n_"]),
        node("Less", ["n_", "end"], ["goes"]),
        node("Loop", ["few", "", "s"], ["s_"], body=ALWAYS),
    ],
    ["n", "s"], [], one=np.float32(1), end=np.float32(9), few=np.array(5),
)  # fmt: skip
COUNTING_FAR = loop(
    [
        node("Mul", ["s", "x"], ["s_"]),
        node("Add", ["n", "one"], ["n_"]),
        node("Less", ["n_", "end"], ["goes"]),
    ],
    ["n", "s"], [], one=np.array(1), end=np.array(10**12),
)  # fmt: skip
RUNNING = graph(
    [node("Add", ["s", "row"], ["s_"]), node("Mul", ["s_", "row"], ["made"])],
    [value("s"), value("row")],
    [value("s_"), value("made")],
)
EACH = graph([node("Mul", ["part", "x"], ["y_"])], [value("part"), value("same")], [value("y_")])
TURNS = np.array(3, "int64")
MODELS = {
    "decided at run time": whole(
        [*IS_POSITIVE, node("If", ["flag"], ["y"], **branches(DOUBLED, ADDED))],
        ["y"], zero=np.float32(0),
    ),
    "decided before": whole(
        [node("If", ["flag"], ["y"], **branches(DOUBLED, ADDED))], ["y"], flag=np.array([False])
    ),
    "one in the other": whole(
        [
            *IS_POSITIVE,
            node(
                "If", ["flag"], ["y"],
                **branches([node("If", ["no"], ["b"], **branches(DOUBLED, ADDED))], DOUBLED),
            ),
        ],
        ["y"], zero=np.float32(0), no=np.array(False),
    ),
    "turns and what they collect": whole(
        [node("Loop", ["turns", "", "x"], ["y", "all"], body=GROWING)], ["y", "all"], turns=TURNS
    ),
    "until a number": whole(
        [node("Loop", ["", "yes", "none", "x"], ["n", "y"], body=COUNTING)],
        ["y"], yes=np.array(True), none=np.float32(0),
    ),
    "rows": whole(
        [node("Scan", ["zeros", "x"], ["s", "y"], body=RUNNING, num_scan_inputs=1)],
        ["s", "y"], zeros=np.zeros(5, "float32"),
    ),
    "columns backwards": whole(
        [
            node(
                "Scan", ["zeros", "x"], ["s", "y"], body=RUNNING, num_scan_inputs=1,
                scan_input_axes=[-1], scan_input_directions=[1], scan_output_axes=[1],
                scan_output_directions=[1],
            )
        ],
        ["s", "y"], zeros=np.zeros(3, "float32"),
    ),
    "each of a sequence": whole(
        [
            node("SplitToSequence", ["x"], ["parts"], axis=0),
            node("SequenceMap", ["parts", "x"], ["mapped"], body=EACH),
            node("ConcatFromSequence", ["mapped"], ["y"], axis=0),
        ],
        ["y"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("subgraphs")
    return compile_files(MODELS, folder)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_written_out(compiled: dict[str, Any], name: str, sign: int) -> None:
    model, run = compiled[name]
    x = sign * np.random.default_rng(0).random(SHAPE, "float32")
    for have, want in zip(run({"x": x}), model.reference({"x": x}), strict=True):
        assert have.shape == want.shape and have.dtype == want.dtype
        assert np.allclose(have, want, rtol=1e-5, atol=1e-6)


def test_a_branch_that_cannot_be(tmp_path: Path) -> None:
    """With a shape that only one branch takes, that is the one."""
    flag = [
        node("ReduceMax", ["x"], ["largest"], keepdims=0),
        node("Less", ["largest", "much"], ["flag"]),
    ]
    other = branches(DOUBLED, [node("MatMul", ["x", "x"], ["b"])])
    model = whole([*flag, node("If", ["flag"], ["y"], **other)], ["y"], much=np.float32(9))
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    for dimension, name in zip(dimensions, "hw", strict=True):
        dimension.dim_param = name
    onnx.save(model, tmp_path / "model.onnx")
    imported = import_model(tmp_path / "model.onnx", shapes={"x": (3, 5)})
    (run,) = compile_together([imported], tmp_path)
    x = np.random.default_rng(0).random(SHAPE, "float32")
    assert np.array_equal(run({"x": x})[0], imported.reference({"x": x})[0])


RATE = np.array(16000, "int64")
# By an input of one number, the first branch or the second.
DECISIONS = {
    "equal": ([node("Equal", ["rate", "bound"], ["flag"])], 0, INT),
    "not equal": (
        [node("Equal", ["bound", "rate"], ["same"]), node("Not", ["same"], ["flag"])], 1, INT
    ),
    "below": ([node("Less", ["rate", "bound"], ["flag"])], 0, INT),
    "not below": ([node("Less", ["rate", "bound"], ["flag"])], 1, INT),
    "above": ([node("Less", ["bound", "rate"], ["flag"])], 0, INT),
    "at least": ([node("GreaterOrEqual", ["rate", "bound"], ["flag"])], 1, INT),
    "another type": (
        [
            node("Cast", ["rate"], ["number"], to=FLOAT),
            node("Cast", ["bound"], ["limit"], to=FLOAT),
            node("Equal", ["number", "limit"], ["flag"]),
        ],
        0, INT,
    ),
    "itself": ([node("Identity", ["rate"], ["flag"])], 1, BOOL),
}  # fmt: skip


def decided_by(kind: str, folder: Path) -> Path:
    """A model of x and rate of which one branch does not fit the shape of x."""
    condition, branch, dtype = DECISIONS[kind]
    pair = [DOUBLED, [node("MatMul", ["x", "x"], ["b"])]]
    made = graph(
        [*condition, node("If", ["flag"], ["y"], **branches(*(pair[::-1] if branch else pair)))],
        [value("x", FLOAT, ["h", "w"]), value("rate", dtype, [])], [value("y")], bound=RATE,
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("kind", DECISIONS)
def test_an_input_that_decides(tmp_path: Path, kind: str) -> None:
    """The original computes what was imported when the input is what the importer says."""
    imported = import_model(decided_by(kind, tmp_path), shapes={"x": (3, 5)})
    assert list(imported.decided) == ["rate"]
    dtype = imported.inputs[1].dtype
    inputs = {"x": np.ones((3, 5), "float32"), "rate": np.array(imported.decided["rate"], dtype)}
    factor = 3 if DECISIONS[kind][1] else 2
    assert np.array_equal(imported.reference(inputs)[0], factor * inputs["x"])


def test_it_is_compared_as_it_was_decided(tmp_path: Path) -> None:
    """On random numbers the original would compute something else, or fail."""
    path = decided_by("equal", tmp_path)
    model = compile_model(path, shapes={"x": (3, 5)}, threads=1)
    assert model.facts["max_error"] == 0 and not model.problems
    model.export(tmp_path / "model.so")
    assert load_model(tmp_path / "model.so").random_inputs()["rate"] == RATE


BY_DATA = [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Cast", ["m"], ["turns"], to=INT)]
REFUSED = {
    "turns by data": (
        whole([*BY_DATA, node("Loop", ["turns", "", "x"], ["y", "all"], body=GROWING, name="n7")],
              ["y"]),
        ["number of turns is computed at run time"],
    ),
    "an end by data": (
        whole([node("Loop", ["", "yes", "x", "x"], ["n", "y"], body=COUNTING, name="n7")],
              ["y"], yes=np.array(True)),
        ["condition is computed at run time"],
    ),
    "without an end": (
        whole([node("Loop", ["", "yes", "x"], ["y", "all"], body=GROWING, name="n7")],
              ["y"], yes=np.array(True)),
        ["never ends", "no number of turns"],
    ),
    "a great many turns": (
        whole([node("Loop", ["turns", "", "x"], ["y", "all"], body=GROWING, name="n7")],
              ["y"], turns=np.array(10**12)),
        ["body of 5 nodes and 1000000000000 turns", "at most 20000 nodes"],
    ),
    "a condition that is always true": (
        whole([node("Loop", ["turns", "yes", "x"], ["y"], body=ALWAYS, name="n7")],
              ["y"], turns=np.array(10**12), yes=np.array(True)),
        ["body of 2 nodes and 1000000000000 turns"],
    ),
    "a condition around it that is always true": (
        whole([node("Loop", ["turns", "yes", "x"], ["y"], body=OUTER, name="n7")],
              ["y"], turns=np.array(10**12), yes=np.array(True)),
        ["body of 1 nodes and 1000000000000 turns"],
    ),
    "turns of nothing": (
        whole([node("Loop", ["turns", "", "x"], ["y"], body=EMPTY, name="n7")],
              ["y"], turns=np.array(10**12)),
        ["body of 0 nodes and 1000000000000 turns"],
    ),
    "a condition that ends it at last": (
        whole([node("Loop", ["", "yes", "none", "x"], ["n", "y"], body=COUNTING_FAR, name="n7")],
              ["y"], yes=np.array(True), none=np.array(0)),
        ["body of 3 nodes and 6667 turns or more"],
    ),
    "turns within turns": (
        whole([node("Loop", ["turns", "", "x"], ["y"], body=IN_TURN)],
              ["y"], turns=np.array(9999)),
        ["body of 2 nodes and 9999 turns or more in loops of 9999 turns"],
    ),
    "no turn": (
        whole([node("Loop", ["turns", "", "x"], ["y", "all"], body=GROWING, name="n7")],
              ["y"], turns=np.array(0, "int64")),
        ["no turn", "empty"],
    ),
    "branches of two shapes": (
        whole(
            [
                *IS_POSITIVE,
                node("If", ["flag"], ["y"], name="n7",
                     **branches(DOUBLED, [node("ReduceSum", ["x"], ["b"], keepdims=0)])),
            ],
            ["y"], zero=np.float32(0),
        ),
        ["3x5 and a scalar"],
    ),
    "no tensors to take in turn": (
        whole([node("SequenceMap", ["x", "x"], ["y"], body=EACH, name="n7")], ["y"]),
        ["expected a sequence"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: before more than a few turns are written out."""
    model, words = REFUSED[kind]
    turns, written = [0], subgraphs._results

    def counted(*args: Any) -> Any:
        turns[0] += 1
        assert turns[0] < 5
        return written(*args)

    monkeypatch.setattr(subgraphs, "_results", counted)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError) as caught:
        import_model(tmp_path / "model.onnx")
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and "node n7" in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("turns", [5, 6])
@pytest.mark.parametrize("is_counted", [False, True])
def test_all_turns_count(
    turns: int, is_counted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of loops in loops, the outer one's known beforehand or not."""
    monkeypatch.setattr("convtvm.models.onnx.subgraphs._MOST_NODES", 5 * 5 * 2 + 5 * is_counted * 3)
    first = node("Loop", ["turns", "", "x"], ["y"], body=FEW)
    if is_counted:
        first = node("Loop", ["turns", "yes", "none", "x"], ["n", "y"], body=COUNTING_FEW)
    two = [first, node("Loop", ["turns", "", "x"], ["z"], body=ALWAYS)]  # which is not in the first
    model = whole(two, ["y", "z"], turns=np.array(turns), yes=np.array(True), none=np.float32(0))
    onnx.save(model, tmp_path / "model.onnx")
    if turns == 5:
        assert len(import_model(tmp_path / "model.onnx").outputs) == 2
    else:
        with pytest.raises(ModelError, match=r"nodes and [56] turns or more"):
            import_model(tmp_path / "model.onnx")
