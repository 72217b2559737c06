"""Whole models on the command line: compile, run, bench, tune, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from models import small_resnet  # noqa: E402

import convtvm  # noqa: E402
from convtvm.cli import main  # noqa: E402
from convtvm.dispatch import Model  # noqa: E402
from convtvm.kernels.algorithms import ALGORITHMS  # noqa: E402
from convtvm.kernels.task import Task  # noqa: E402
from convtvm.logs import records  # noqa: E402
from convtvm.machine.targets import resolve  # noqa: E402
from convtvm.measure.client import Zygote  # noqa: E402
from convtvm.models import compiling, differences  # noqa: E402
from convtvm.models.building import assemble  # noqa: E402
from convtvm.models.graph import convolutions, make_program  # noqa: E402
from convtvm.models.importing import import_model  # noqa: E402
from convtvm.models.remembered import compile_model  # noqa: E402
from convtvm.models.workloads import to_tune  # noqa: E402

EXAMPLE = torch.zeros(2, 3, 33, 31)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """open.onnx, whose batch and height are open, and m.so, compiled from it for batches of 2."""
    made = tmp_path_factory.mktemp("models")
    torch.onnx.export(
        small_resnet(), (EXAMPLE,), made / "open.onnx", dynamo=False, input_names=["image"],
        output_names=["logits"], dynamic_axes={"image": {0: "n", 2: "h"}, "logits": {0: "n"}},
    )  # fmt: skip
    command = ["compile", str(made / "open.onnx"), "-o", str(made / "m.so"), "--threads", "1"]
    assert main([*command, "--shape", "image=2x3x33x31", "--batched"]) == 0
    return made


def document(capsys: pytest.CaptureFixture[str], *command: object) -> dict[str, Any]:
    """What a command prints as JSON."""
    capsys.readouterr()
    assert main([*map(str, command), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def original(folder: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(folder / "open.onnx"))
    (result,) = session.run(["logits"], {"image": image})
    return np.asarray(result)


def test_run_by_the_names_of_the_graph(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.random.default_rng(0).standard_normal((6, 3, 33, 31), np.float32)
    np.savez(tmp_path / "in.npz", image=image)
    command = ["run", folder / "m.so", "--inputs", tmp_path / "in.npz"]
    found = document(capsys, *command, "--outputs", tmp_path / "out.npz", "--repeat", 2)
    assert found["inputs"] == [{"name": "image", "dtype": "float32", "shape": [2, 3, 33, 31]}]
    assert found["batch"] == 2 and found["repeat"] == 2 and found["median_secs"] > 0
    assert found["facts"]["source"] == "open.onnx" and found["facts"]["max_error"] < 1e-5
    assert found["peak_bytes"] >= found["arena_bytes"] > 0
    with np.load(tmp_path / "out.npz") as outputs:
        assert outputs.files == ["logits"] and outputs["logits"].shape == (6, 7)
        np.testing.assert_allclose(outputs["logits"], original(folder, image), atol=1e-5)


def test_check_and_profile(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", folder / "m.so", "--check", "--original", folder / "open.onnx", "--profile"]
    found = document(capsys, *command)
    assert found["correct"] and found["error"] < 1e-5
    labels = " ".join(step["label"] for step in found["profile"])
    assert "/0/Conv" in labels and "max_pool2d" in labels
    assert sum(step["share"] for step in found["profile"]) == pytest.approx(1)
    assert all(0 < step["least"] <= step["seconds"] for step in found["profile"])
    assert main([*map(str, command)]) == 0
    printed = capsys.readouterr().out
    assert "operators by time" in printed and "least" in printed
    assert printed.split("operators by time")[1].splitlines()[-2].startswith("sum ")


def test_a_wrong_model_is_named(folder: Path, tmp_path: Path, capsys: Any) -> None:
    model = onnx.load(folder / "open.onnx")
    for tensor in model.graph.initializer:
        if tensor.dims == [10]:
            values = onnx.numpy_helper.to_array(tensor) + 1
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "other.onnx")
    command = ["run", folder / "m.so", "--check", "--original", tmp_path / "other.onnx"]
    assert main([*map(str, command)]) == 1
    assert "wrong answer: output 'logits'" in capsys.readouterr().err


def test_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Computed in float32 and no further from the original than its own rounding; inputs and
    outputs stay as they are."""
    path, half = tmp_path / "half.onnx", EXAMPLE[:1].half()
    torch.onnx.export(
        small_resnet().half(), (half,), path, dynamo=False, input_names=["image"],
        output_names=["logits"],
    )  # fmt: skip
    found = document(capsys, "compile", path, "--threads", 1, "-o", tmp_path / "half.so")
    assert found["problems"] == [] and found["facts"]["max_error"] < 1e-2
    for kind, name in (("inputs", "image"), ("outputs", "logits")):
        assert [(port["name"], port["dtype"]) for port in found[kind]] == [(name, "float16")]
    image = np.random.default_rng(0).standard_normal((1, 3, 33, 31)).astype("float16")
    exact = small_resnet()(torch.from_numpy(image.astype("float32"))).detach().numpy()
    logits = np.asarray(convtvm.load_model(tmp_path / "half.so")(image))
    assert logits.dtype == np.float16
    assert np.abs(logits - exact).max() <= 2e-3 * np.abs(exact).max()


def test_a_file_is_compiled_to_be_run(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "small.pt2"
    torch.export.save(torch.export.export(small_resnet(), (EXAMPLE[:1],)), path)
    found = document(capsys, "run", path, "--check")
    assert found["correct"] and found["facts"]["source"] == "small.pt2"


def test_a_file_is_compiled_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file with the same options comes from the cache, byte for byte; no other does."""

    def compiled(path: Path, **options: Any) -> Model:
        settings = {"shapes": {"image": (1, 3, 33, 31)}, "threads": 1, "logs": [], **options}
        return compile_model(path, **settings)

    class Anew(Exception):
        pass

    def refuse(*_: object) -> None:
        raise Anew

    first = compiled(folder / "open.onnx")
    first.export(tmp_path / "first.so")
    monkeypatch.setattr(compiling, "compile_anew", refuse)
    again = compiled(folder / "open.onnx")
    again.export(tmp_path / "again.so")
    assert (tmp_path / "again.so").read_bytes() == (tmp_path / "first.so").read_bytes()
    image = np.random.default_rng(0).standard_normal((1, 3, 33, 31), np.float32)
    np.testing.assert_allclose(again(image), original(folder, image), atol=1e-5)
    for options in ({"threads": 2}, {"max_error": 1e-3}, {"batched": True}, {"logs": None}):
        with pytest.raises(Anew):
            compiled(folder / "open.onnx", **options)
    with pytest.raises(Anew):
        compiled(folder / "open.onnx", shapes={"image": (2, 3, 33, 31)})
    changed = onnx.load(folder / "open.onnx")
    changed.producer_version += "+"
    onnx.save(changed, tmp_path / "open.onnx")
    with pytest.raises(Anew):
        compiled(tmp_path / "open.onnx")


def test_weights_beside_a_file_are_not_remembered(folder: Path, tmp_path: Path) -> None:
    """The file is the same when they change."""
    model, image = onnx.load(folder / "open.onnx"), np.ones((1, 3, 33, 31), np.float32)
    results = []
    for factor in (1, 2):
        for tensor in model.graph.initializer:
            if tensor.name.endswith("bias") and factor == 2:
                values = onnx.numpy_helper.to_array(tensor) * factor + 1
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        path = tmp_path / "beside.onnx"
        for old in tmp_path.iterdir():
            old.unlink()
        onnx.save(
            model, path, save_as_external_data=True, location="w.bin", size_threshold=0,
            convert_attribute=False,
        )  # fmt: skip
        model = onnx.load(path)
        made = compile_model(path, shapes={"image": image.shape}, threads=1, logs=[])
        results.append(made(image))
    assert np.abs(results[0] - results[1]).max() > 0.1


def test_a_live_module() -> None:
    module, image = small_resnet(), torch.randn(1, 3, 33, 31)
    model = compile_model(module, image, threads=1, logs=[])
    with torch.no_grad():
        torch.testing.assert_close(model(image), module(image), rtol=0, atol=1e-5)
    assert model.facts["max_error"] < 1e-5 and model.problems == []
    assert convtvm.compile_model is compile_model


def test_the_first_operator_that_differs_is_named() -> None:
    """A weight that is not the original's, of the projection in the first block."""
    imported, target = import_model(small_resnet(), EXAMPLE[:1]), resolve("native", 1)
    program = make_program(imported, target, [])
    step = next(s for s in program.steps if " 12x9x8 1x1 " in s.label)
    (pack,) = [p for p in program.packs if step.inputs[1] in p.outputs]
    program.constants[pack.inputs[0]] = 1.5 * program.constants[pack.inputs[0]]  # type: ignore[index]
    with Zygote() as zygote:
        model = Model(assemble([(program, target)], zygote))
    inputs = model.random_inputs()
    found = differences.between(model, imported, inputs)
    assert found.error > 0.01
    said = str(differences.complaint(model, program, imported, inputs, found))
    assert said.startswith("output 'output_0' differs from the original's by ")
    assert said.endswith(f"the first operator that differs is {step.label}")


def test_no_workspace(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compile", folder / "open.onnx", "-o", tmp_path / "x.so", "--threads", 1]
    command += ["--shape", "image=2x3x33x31", "--workspace-limit", 0]
    found = document(capsys, *command)
    assert found["peak_bytes"] == found["arena_bytes"] and found["facts"]["max_error"] < 1e-5
    made = convtvm.load_model(tmp_path / "x.so")
    assert not any(made.manifest.functions[s.function].workspace_bytes for s in made.manifest.steps)


class Steep(torch.nn.Module):
    """A convolution whose Winograd by large tiles is a hundred times less exact than it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


@pytest.fixture(scope="module")
def steep(folder: Path) -> Path:
    """steep.onnx, and steep.jsonl, by which Winograd takes no time and has an error of 2e-6."""
    path = folder / "steep.onnx"
    torch.onnx.export(
        Steep().eval(), (torch.zeros(1, 16, 20, 20),), path, dynamo=False, input_names=["x"]
    )
    target, lines = resolve("native", 1), []
    ((workload, _),) = convolutions(import_model(path))
    for name, secs, error in (("winograd:6", 1e-9, 2e-6), ("direct", 1e-3, 5e-8)):
        task = Task(workload, name, target)
        record = records.TuningRecord(
            workload=workload.key, algorithm=name, target=target.name, threads=1, layout="NCHW",
            device="any", decisions=task.space.default, template=task.template_version,
            run_secs=[secs], max_error=error,
        )  # fmt: skip
        lines.append(record.to_line())
    path.with_suffix(".jsonl").write_text("\n".join([*lines, ""]))
    return path


@pytest.mark.parametrize(
    ("bound", "kernel"), [("1e-4", "winograd:6"), ("1e-6", "direct"), ("3e-6", "direct")]
)
def test_a_bound_chooses_kernels(
    steep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], bound: str, kernel: str
) -> None:
    """And holds for the whole: by the log 3e-6 lets Winograd pass, the result does not."""
    command = ["compile", steep, "-o", tmp_path / "x.so", "--threads", 1, "--max-error", bound]
    found = document(capsys, *command, "--log", steep.with_suffix(".jsonl"))
    assert found["facts"]["max_error"] <= float(bound)
    functions = convtvm.load_model(tmp_path / "x.so").manifest.functions.values()
    assert any(f" by {kernel}," in f.about and "packs" not in f.about for f in functions)


def test_a_bound_that_nothing_keeps(steep: Path, tmp_path: Path, capsys: Any) -> None:
    command = ["compile", steep, "-o", tmp_path / "x.so", "--threads", 1, "--log"]
    command += [steep.with_suffix(".jsonl"), "--max-error"]
    assert main([*map(str, command), "1e-9"]) == 2
    assert "direct has an error of" in capsys.readouterr().err
    assert main([*map(str, command), "6e-8"]) == 2
    assert "differs from the original's by" in capsys.readouterr().err
    assert not (tmp_path / "x.so").exists()


IMAGE_SHAPE = "image=2x3x33x31"
REFUSED: list[tuple[list[str], str]] = [
    (["compile", "open.onnx", "-o", "x.so"], "the shape of image"),
    (["compile", "open.onnx", "-o", "x.so", "--shape", "image=0x3"], "is no shape, expected NAME="),
    (["compile", "open.onnx", "-o", "x.so", "--shape", "image"], "is no shape, expected NAME="),
    (["compile", "open.onnx", "-o", "x.so", "--layout", "NHWC"], "--layout is not for models"),
    (["compile", "open.onnx", "-o", "x.so", "--keep", "all"], "--keep is not for models"),
    (["compile", "open.onnx", "-o", "no/x.so"], "there is no folder no"),
    (["compile", "open.onnx", "-o", "open.onnx", "--shape", IMAGE_SHAPE], "the model itself"),
    (["compile", "scalar.onnx", "-o", "x.so", "--batched"], "multiples of the batch"),
    (["compile", "rows.onnx", "-o", "x.so", "--batched"], "x 3x4 float32, y scalar float32"),
    (["compile", "resnet18", "-o", "x.so", "--batched"], "--batched is not for layers"),
    (["compile", "resnet18", "-o", "x.so", "--shape", "x=1"], "--shape is not for layers"),
    (["compile", "none.onnx", "-o", "x.so"], "none.onnx"),
    (["compile", "open.onnx", "-o", "x.so", "--target", "cuda:sm_90"], "compiled for CPUs only"),
    (["run", "m.so", "--workload", "x"], "--workload is not for models"),
    (["run", "m.so", "--check"], "needs --original MODEL"),
    (["run", "m.so", "--shape", "image=1x3x33x31"], "m.so has its shapes"),
    (["run", "m.so", "--inputs", "none.npz"], "cannot read none.npz"),
    (["run", "m.so", "--inputs", "wrong.npz"], "unknown array 'picture', expected image: float32"),
    (["run", "m.so", "--inputs", "size.npz"], "image has a batch of 3, expected 2"),
    (["run", "none.so"], "cannot read library none.so"),
    (["bench", "open.onnx", "--layout", "NHWC"], "--layout is not for models"),
    (["bench", "open.onnx", "--peers", "tensorrt"], "unknown peer 'tensorrt'"),
    (["tune", "open.onnx"], "the shape of image"),
    (["tune", "open.onnx", "--layout", "NCHW"], "--layout is not for models"),
]


@pytest.mark.parametrize(("command", "message"), REFUSED)
def test_refusals(
    folder: Path,
    command: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    np.savez("wrong.npz", picture=np.zeros(3, np.float32))
    for name, operator, shape in (("scalar", "Exp", []), ("rows", "ReduceSum", [3, 4])):
        options = {} if operator == "Exp" else {"keepdims": 0}
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(operator, ["x"], ["y"], **options)], "g",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
            [onnx.helper.make_empty_tensor_value_info("y")],
        )  # fmt: skip
        onnx.save(onnx.helper.make_model(graph), f"{name}.onnx")
    np.savez("size.npz", image=np.zeros((3, 3, 33, 31), np.float32))
    before = sorted(path.name for path in folder.iterdir())
    assert main(command) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.startswith("convtvm: error: ")
    assert said.err.count("\n") == 1 and said.out == ""
    assert sorted(path.name for path in folder.iterdir()) == before


def test_tune_measures_the_layers_of_a_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every convolution is in the log, in the layout that the graph has it in, and a library that
    is compiled with the log has the kernels that were measured."""
    log, shape = tmp_path / "log.jsonl", ["--shape", "image=1x3x33x31"]
    command = ["tune", folder / "open.onnx", *shape, "--threads", 1, "--log", log, "--quiet"]
    found = document(capsys, *command, "--total-trials", 12, "--no-confirm")
    assert found["model"].endswith("open.onnx")
    history, damaged = records.load([log])
    assert not damaged and 8 <= len(history) <= 20
    imported = import_model(folder / "open.onnx", shapes={"image": (1, 3, 33, 31)})
    wanted = to_tune(imported, resolve("native", 1), [])
    tuned = {(r.layout, r.workload) for r in history}
    assert tuned == {(layout, w.key) for layout, workloads in wanted.items() for w in workloads}
    made = compile_model(
        folder / "open.onnx", shapes={"image": (1, 3, 33, 31)}, threads=1, logs=[log]
    )
    best = {(r.layout, r.workload, r.algorithm) for r in history if not r.error}
    abouts = [f.about for f in made.manifest.functions.values() if f.about]
    kernels = [about for about in abouts if not about.startswith("packs")]
    said = {f"{workload} by {algorithm}, {layout}" for layout, workload, algorithm in best}
    assert kernels and set(kernels) <= said


def test_tune_with_algorithms_that_some_layouts_have_no_use_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = import_model(folder / "open.onnx", shapes={"image": (1, 3, 33, 31)})
    groups = to_tune(imported, resolve("native", 1), [])
    fits = {
        name: {layout for layout, ws in groups.items() if any(not a.inapplicable(w) for w in ws)}
        for name, a in ALGORITHMS.items()
    }
    name = next(name for name, layouts in fits.items() if 0 < len(layouts) < len(groups))
    command = ["tune", folder / "open.onnx", "--shape", "image=1x3x33x31", "--threads", 1]
    command += ["--log", tmp_path / "log.jsonl", "--total-trials", 1, "--no-confirm", "--quiet"]
    found = document(capsys, *command, "--algorithms", name)
    assert {part["layout"] for part in found["layouts"]} == fits[name]


def test_bench_beside_a_peer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", folder / "open.onnx", "--shape", "image=2x3x33x31", "--threads", 1]
    found = document(capsys, *command, "--peers", "onnxruntime,torch", "--repeat", 3)
    assert set(found["peers"]) == {"onnxruntime"} and found["best_peer"] == "onnxruntime"
    assert found["speedup"] > 0 and found["ours"]["max_error"] < 1e-5
    assert found["absent"] == {"torch": "PyTorch reads no ONNX files; give a .pt2 file"}
