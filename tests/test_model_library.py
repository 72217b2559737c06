"""Model libraries: called as functions, kept in one file, refused where they do not fit."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import programs
import pytest
import torch
import tvm_ffi
from programs import W, content, expected, inputs, model
from tvm import te

import convtvm
from convtvm.dispatch import container, execution, model_file
from convtvm.dispatch.model import Model
from convtvm.dispatch.model_manifest import from_json, to_json
from convtvm.errors import ArrayError, LibraryError
from convtvm.library.build import compile as compile_library
from convtvm.measure.client import Zygote
from convtvm.models.building import assemble
from convtvm.models.program import Program, Step, Tensor


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("model") / "m.so"
    model().export(file)
    return file


# ---- calls ---------------------------------------------------------------------------------------


def test_every_way_to_call(path: Path) -> None:
    loaded = convtvm.load_model(path)
    x, r = inputs()
    ways: list[Callable[[], tuple[np.ndarray, np.ndarray]]] = [
        lambda: loaded(x, r),
        lambda: loaded(x, r=r),
        lambda: loaded(r=r, x=x),
        lambda: loaded({"r": r, "x": x}),
        lambda: loaded(x[:, :, ::-1][:, :, ::-1], np.asfortranarray(r)),
        lambda: loaded(x.astype(np.float64), r),
    ]
    for way in ways:
        y, again = way()
        assert type(y) is np.ndarray and y.dtype == np.float32
        np.testing.assert_array_equal(y, expected(x, r))
        np.testing.assert_array_equal(again, y.reshape(again.shape))
    assert [str(p) for p in (loaded.inputs["x"], loaded.outputs["again"])] == [
        "x: float32 1x5x9x9",
        "again: float32 7x81",
    ]


def test_torch_in_torch_out() -> None:
    x, r = inputs(2)
    y, again = model()(torch.from_numpy(x), torch.from_numpy(r))
    assert isinstance(y, torch.Tensor) and isinstance(again, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), expected(x, r))


def test_out_is_written_in_place() -> None:
    made = model()
    x, r = inputs(3)
    out = (np.empty(W.out_shape(), np.float32), np.empty((W.oc, 81), np.float32))
    assert made(x, r, out=out)[1] is out[1]
    np.testing.assert_array_equal(out[0], expected(x, r))
    # Other memory at the next call, then the first again.
    for seed in (4, 3):
        x, r = inputs(seed)
        np.testing.assert_array_equal(made(x, r)[0], expected(x, r))


def test_what_follows_an_interrupted_call_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a call binds its memory, at each place: the next call does not take that for its
    own."""
    made = model()
    mine, others = (
        (*inputs(seed), np.empty(W.out_shape(), np.float32), np.empty((W.oc, 81), np.float32))
        for seed in (3, 4)
    )
    bound = 0

    def interrupted(array: np.ndarray) -> Any:
        nonlocal bound
        bound += 1
        if bound == place:
            raise KeyboardInterrupt
        return tvm_ffi.from_dlpack(array)

    for place in range(1, 100):
        made(*mine[:2], out=mine[2:])
        bound = 0
        with monkeypatch.context() as patched:
            patched.setattr(execution, "tvm_ffi", SimpleNamespace(from_dlpack=interrupted))
            with suppress(KeyboardInterrupt):
                made(*others[:2], out=others[2:])
        others[2][...] = mine[2][...] = 7
        made(*mine[:2], out=mine[2:])
        np.testing.assert_array_equal(mine[2], expected(*mine[:2]))
        assert (others[2] == 7).all()
        if bound < place:
            break
    assert place > 2


X, R = inputs()
REFUSED: list[tuple[tuple[object, ...], dict[str, object], str]] = [
    ((X,), {}, "input 'r' is missing, expected x: float32 1x5x9x9, r: float32 1x7x9x9"),
    ((X, R, R), {}, "found 3 inputs, expected 2"),
    ((X,), {"x": X}, "input 'x' is given twice"),
    ((X, R), {"z": X}, "there is no input 'z', expected x: float32"),
    ((X[:, :4], R), {}, r"x has shape \(1, 4, 9, 9\), expected \(1, 5, 9, 9\)"),
    ((X.astype(np.int32), R), {}, "x has dtype int32, expected float32"),
    ((torch.from_numpy(X).double(), R), {}, "x has dtype float64, expected float32"),
    (("text", R), {}, "x is a str, expected an array"),
    ((X, R), {"out": np.empty(W.out_shape(), np.float32)}, "out has 1 tensors, expected 2"),
    ((X, R), {"out": (R, np.empty((W.oc, 81), np.float32))}, "y overlaps r, expected memory"),
    ((X, R), {"out": (np.empty(3), np.empty(3))}, r"y has shape \(3,\)"),
]


@pytest.mark.parametrize(("args", "named", "message"), REFUSED)
def test_refused_calls(args: tuple[object, ...], named: dict[str, object], message: str) -> None:
    with pytest.raises(ArrayError, match=message):
        model()(*args, **named)


def test_concurrent_calls() -> None:
    made = model()
    wrong: list[int] = []

    def work(seed: int) -> None:
        for step in range(30):
            x, r = inputs(100 * seed + step)
            if not np.array_equal(made(x, r)[0], expected(x, r)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_slices_of_a_batch() -> None:
    """Outputs are rows of batches here, as `again` is not, so it stays out."""
    program = programs.sound()
    del program.outputs["again"]
    with Zygote() as zygote:
        made = Model(assemble([(program, programs.TARGET)], zygote, batched=True))
    assert made.batch == 1 and model().batch is None
    x, r = inputs(5, batch=3)
    y = made(torch.from_numpy(x), torch.from_numpy(r))
    assert y.shape == (3, 7, 9, 9)
    for i in range(3):
        np.testing.assert_array_equal(y[i].numpy(), expected(x[i : i + 1], r[i : i + 1])[0])
    with pytest.raises(ArrayError, match=r"r has shape \(2, 7, 9, 9\), expected \(3, 7, 9, 9\)"):
        made(x, r[:2])
    with pytest.raises(ArrayError, match="x has a batch of 0, expected 1, which"):
        made(x[:0], r[:0])
    with pytest.raises(ArrayError, match=r"x has shape \(3, 5, 9, 9\), expected \(1"):
        model()(x, r)


def test_outputs_that_no_step_writes() -> None:
    """An input, a constant, an int64 result and one value under two names come out as they are."""
    x = te.placeholder((2, 3), name="x")
    halves = te.create_prim_func([x, te.compute((2, 3), lambda i, j: x[i, j].astype("int64"))])
    made = Program(
        values=[Tensor((2, 3)), Tensor((2,), "bool"), Tensor((2, 3), "int64"), Tensor((6,))],
        inputs={"in.put": 0},
        outputs={"same": 0, "flat": 3, "flags": 1, "whole": 2, "twice": 2},
        constants={1: np.array([True, False])},
        steps=[Step("cast", "cast", (0,), (2,))],
        functions={"cast": halves},
        aliases={3: 0},
    )
    with Zygote() as zygote:
        ready = Model(assemble([(made, programs.TARGET)], zygote))
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    for value in (data, torch.from_numpy(data)):
        same, flat, flags, whole, twice = map(np.asarray, ready({"in.put": value}))
        np.testing.assert_array_equal(same, data)
        np.testing.assert_array_equal(flat, data.reshape(-1))
        assert flags.tolist() == [True, False]
        for result in (whole, twice):
            assert result.dtype == np.int64 and result.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_profile_and_memory() -> None:
    made = model()
    steps = made.profile(repeat=3)
    assert [s.label for s in steps] == ["conv", "relu"]
    assert sum(s.share for s in steps) == pytest.approx(1) and steps[0].seconds > 0
    assert all(0 < s.least <= s.seconds for s in steps)
    assert steps[0].about == f"{W.key} by direct, NCHW"
    assert made.arena_bytes == 2304 and made.peak_bytes >= made.arena_bytes
    packed = 4 * 8 * 5 * 9
    assert made.weight_bytes == 4 * (W.oc * 5 * 9 + W.oc) + packed
    labels = [label for label, _ in made.steps(*inputs())]
    assert labels == ["conv", "relu"]


# ---- files ---------------------------------------------------------------------------------------


def test_bytes_are_deterministic_and_weights_are_stored_once(path: Path, tmp_path: Path) -> None:
    again = programs.content.__wrapped__()
    Model(again).export(tmp_path / "again.so")
    assert path.read_bytes() == (tmp_path / "again.so").read_bytes()
    read = model_file.read(path)
    assert len(read.targets) == 2
    assert read.weight_bytes == 4 * (W.oc * 5 * 9 + W.oc)  # both targets' at once


def test_every_damaged_byte_is_found(path: Path, tmp_path: Path) -> None:
    good = path.read_bytes()
    broken = tmp_path / "broken.so"
    length = len(good)
    places = {
        *range(0, length, 1009),
        *range(length - 60, length),
        *range(length - 6000, length, 97),
    }
    weights = json.loads(container.trailer(good, container.MODEL, path).text)["weights"]
    places |= {offset + size for offset, size, _ in weights} | {weights[0][0] - 1}
    for place in sorted(places):
        broken.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(LibraryError, match=r"broken.so (is damaged|is not a convtvm model)"):
            model_file.read(broken)
    for length in (0, 1, 60, len(good) // 2, len(good) - 1):
        broken.write_bytes(good[:length])
        with pytest.raises(LibraryError, match=r"is not a convtvm model, or is cut short"):
            model_file.read(broken)


def test_wrong_kinds_of_files_say_what_to_call(path: Path, tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"is a convtvm model, .* load it with convtvm.load_mod"):
        convtvm.load(path)
    library = compile_library([W], programs.TARGET, logs=[], algorithms=["direct"])
    library.export(tmp_path / "x.so")
    with pytest.raises(LibraryError, match=r"is a convtvm library, .* load it with convtvm.load$"):
        convtvm.load_model(tmp_path / "x.so")
    with pytest.raises(LibraryError, match=r"cannot read model .*: No such file"):
        convtvm.load_model(tmp_path / "none.so")
    with pytest.raises(LibraryError, match=r"cannot read model .*: Is a directory"):
        convtvm.load_model(tmp_path)
    with pytest.raises(LibraryError, match=r"cannot write model .*: No such file"):
        model().export(tmp_path / "no" / "m.so")
    with pytest.raises(LibraryError, match="threads is 0"):
        convtvm.load_model(path, threads=0)
    assert convtvm.load_model(path, threads=np.int64(1)).threads == 1  # as of convtvm.load


def test_foreign_formats_and_cpus_are_refused(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    lacking = [
        replace(m, features=("avx512fp16", "amx-int8", "avxvnni", "fma")) for m in content().targets
    ]
    model_file.write(other, replace(content(), targets=lacking, image=b"never loaded"))
    with pytest.raises(LibraryError, match=r"this CPU lacks .*amx-int8.*; compile it here"):
        convtvm.load_model(other)
    model_file.write(other, replace(content(), image=b"no ELF"))
    with pytest.raises(LibraryError, match="the library cannot be loaded"):
        convtvm.load_model(other)
    model_file.write(other, replace(content(), targets=[]))
    with pytest.raises(LibraryError, match="unreadable manifest: there is no target"):
        convtvm.load_model(other)


def test_the_first_target_that_runs_counts(tmp_path: Path) -> None:
    first, second = content().targets
    lacking = replace(first, features=("amx-int8",))
    model_file.write(tmp_path / "m.so", replace(content(), targets=[lacking, second]))
    loaded = convtvm.load_model(tmp_path / "m.so")
    assert "x86-64-v2" in loaded.target
    x, r = inputs()
    np.testing.assert_array_equal(loaded(x, r)[0], expected(x, r))


def test_a_file_may_be_replaced_while_it_runs(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.so"
    model().export(file)
    loaded = convtvm.load_model(file)
    x, r = inputs()
    before = loaded(x, r)[0]
    other = programs.sound()
    other.constants[2] = other.constants[2] + 1
    with Zygote() as zygote:
        Model(assemble([(other, programs.TARGET)], zygote)).export(file)
    np.testing.assert_array_equal(loaded(x, r)[0], before)
    assert not np.array_equal(convtvm.load_model(file)(x, r)[0], before)
    assert sorted(os.listdir(tmp_path)) == ["m.so"]


UNSOUND: dict[str, Callable[[dict], object]] = {
    "value": lambda e: e["inputs"].update(x=99),
    "negative": lambda e: e["offsets"].update({"4": -64}),
    "arena": lambda e: e.update(arena_bytes=64),
    "weight": lambda e: e["constants"].update({"1": 7}),
    "smaller weight": lambda e: e["constants"].update({"1": 1}),
    "function": lambda e: e["steps"][0].__setitem__(1, "system"),
    "no memory": lambda e: e["offsets"].clear(),
    "argument": lambda e: e["steps"][0].__setitem__(2, None),
    "circle": lambda e: e["aliases"].update({"7": 6, "6": 7}),
    "shape": lambda e: e["values"].__setitem__(0, ["float32", 1, 0]),
    "dtype": lambda e: e["values"].__setitem__(0, ["complex64", 1]),
    "batch": lambda e: e.update(batched=True),
    "unknown field": lambda e: e.update(more=1),
    "missing field": lambda e: e.pop("steps"),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_manifests_are_refused(name: str) -> None:
    sizes = [w.nbytes for w in content().weights]
    entry = json.loads(json.dumps(to_json(content().targets[0])))
    assert to_json(from_json(entry, sizes)) == to_json(content().targets[0])
    UNSOUND[name](entry)
    with pytest.raises((ValueError, TypeError, KeyError, IndexError, AttributeError)):
        from_json(entry, sizes)
