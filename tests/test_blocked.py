"""Blocked layouts at the interface: every algorithm, channels that fill no block, chains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import run_task

import convtvm
from convtvm.errors import WorkloadError
from convtvm.kernels import codegen
from convtvm.kernels.task import Task, tasks_of
from convtvm.machine.targets import resolve
from convtvm.measure.verify import EXACT_FAMILIES
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.workload import BLOCKED_LAYOUTS, ConvWorkload, channel_block

make = ConvWorkload.make
TARGET = resolve("native", 1)
SHAPES = {
    "padded, batch 2": make(16, 16, 9, 11, 3, padding=1, n=2),
    "half blocks in and out": make(19, 21, 8, kh=3, padding=(1, 0, 2, 1)),
    "pointwise": make(16, 16, 7),
    "stride 2": make(17, 8, 9, kh=3, stride=2, padding=1),
    "groups": make(24, 24, 6, kh=3, groups=3),
    "depthwise": make(24, 24, 9, kh=3, groups=24, padding=1),
}


@pytest.mark.parametrize("w", SHAPES.values(), ids=SHAPES)
def test_answers(w: ConvWorkload) -> None:
    """Channels that only fill a block hold NaN on the way in and zero on the way out."""
    layout = "NCHW8c"
    for task in tasks_of([w], TARGET, layout, ["direct", "im2col", "mec", "winograd:2"]):
        exact = task.algorithm.family in EXACT_FAMILIES
        data, weight, bias = random_inputs(w, 5, layout, "integer" if exact else "normal")
        reference = conv2d_reference(w, data, weight, bias, layout)
        data[:, w.ic // 8 :, ..., w.ic % 8 :] = np.nan if w.ic % 8 else data[:, w.ic // 8 :]
        out = run_task(task, task.space.default, data, weight, bias)
        error = relative_error(out, reference)
        assert error <= (0 if exact else task.algorithm.tolerance), task.algorithm_name
        assert not out[:, w.oc // 8 :, ..., w.oc % 8 :].any() or w.oc % 8 == 0


@pytest.mark.parametrize("w", SHAPES.values(), ids=SHAPES)
def test_entries(w: ConvWorkload) -> None:
    """Data in NCHW, output in blocks."""
    layout, names = "NCHW-NCHW8c", ["direct", "im2col", "mec", "winograd:2"]
    for task in tasks_of([w], TARGET, layout, names):
        data, weight, bias = random_inputs(w, 5, layout)
        assert data.shape == w.data_shape("NCHW")
        out = run_task(task, task.space.default, data, weight, bias)
        plain = conv2d_reference(w, data, weight, bias)
        reference = conv2d_reference(w, data, weight, bias, layout)
        assert out.shape == reference.shape == w.out_shape("NCHW8c")
        assert np.array_equal(reference[:, 0, ..., 0], plain[:, 0])
        assert relative_error(out, reference) <= task.algorithm.tolerance, task.algorithm_name


@pytest.mark.parametrize("layout", ["NCHW8c", "NCHW-NCHW8c"])
def test_a_library_file(layout: str, tmp_path: Path) -> None:
    w, file = SHAPES["half blocks in and out"], tmp_path / "x.so"
    convtvm.compile([w], threads=1, logs=[], layout=layout, algorithms="direct").export(file)
    data, weight, bias = random_inputs(w, 5, layout, "integer")
    out = convtvm.load(file).plan(w, weight, bias)(data)
    assert np.array_equal(out, conv2d_reference(w, data, weight, bias, layout))


@pytest.mark.parametrize("layout", BLOCKED_LAYOUTS)
def test_the_reference_is_that_of_nchw(layout: str) -> None:
    w, block = SHAPES["half blocks in and out"], channel_block(layout)
    plain, blocked = random_inputs(w, 1), random_inputs(w, 1, layout)
    assert blocked[0].shape == w.data_shape(layout) == (1, -(-19 // block), 8, 8, block)
    expected = conv2d_reference(w, *plain)
    found = conv2d_reference(w, *blocked, layout)
    assert found.shape == w.out_shape(layout)
    for c in range(found.shape[1] * block):
        channel = found[:, c // block, ..., c % block]
        assert np.array_equal(channel, expected[:, c] if c < w.oc else np.zeros_like(channel))


def test_a_chain_of_layers_needs_no_conversion() -> None:
    first, second = make(8, 16, 10, kh=3, padding=1), make(16, 8, 10, kh=3, padding=1)
    lib = convtvm.compile([first, second], threads=1, logs=[], layout="NCHW8c", keep="best")
    data, weight, bias = random_inputs(first, 2, "NCHW8c", "integer")
    _, weight2, _ = random_inputs(second, 3, "NCHW8c", "integer")
    out = lib.plan(second, weight2)(lib.plan(first, weight, bias)(data))
    middle = conv2d_reference(first, data, weight, bias, "NCHW8c")
    expected = conv2d_reference(second, middle, weight2, None, "NCHW8c")
    assert relative_error(out, expected) < 1e-5


def test_refusals() -> None:
    with pytest.raises(WorkloadError, match="expected one of NCHW, NHWC, NCHW4c"):
        make(8, 8, 9).data_shape("NCHW3c")
    for w in (make(8, 8, 9), make(24, 24, 9, groups=3)):
        layout = "NCHW16c"
        if TARGET.lanes < 16 or w.groups > 1:
            with pytest.raises(WorkloadError, match="choose smaller blocks"):
                Task(w, "direct", TARGET, layout).compute()


@pytest.mark.parametrize("threads", [1, 2])
def test_workspace_of_depthwise_layers(threads: int) -> None:
    """The formula against what lowered kernels allocate."""
    target = resolve("native", threads)
    for key in ("g16mb1ic16ih30oc16oh30kh3ph1", "g8mb1ic8ih57oc8oh29kh3sh2ph1"):
        task = Task(ConvWorkload.parse(key), "direct:depthwise", target, "NCHW8c")
        points = task.space.points
        for d in (points[0], points[len(points) // 2], points[-1]):
            needed = task.algorithm.workspace_bytes(task.workload, task.layout, task.device, d)
            assert codegen.build(task.instantiate(d)["main"], "f", target).workspace == needed
