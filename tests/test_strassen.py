"""Strassen's product: its formulas in whole numbers, kernels on odd shapes, and what it refuses."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import tvm_ffi
from support import kernel_of, opt_level, pack_weight, run_kernel
from test_costs import executed
from test_im2col import allocated, stated_workspace

from convtvm.compute import strassen
from convtvm.kernels.algorithms import ALGORITHMS
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.workload import LAYOUTS, ConvWorkload

make = ConvWorkload.make
NAMES = ("strassen:1", "strassen:2")
TARGET = resolve("native", 1)


def test_the_sums_make_a_product() -> None:
    """sum_e OUTPUT[rc][e] WEIGHT[e][rk] DATA[e][kc] is 1 for the four products of a quarter of the
    output, 0 for all others."""
    for (c, out), (a, weight), (b, data) in itertools.product(
        enumerate(strassen.OUTPUT_QUARTERS),
        enumerate(strassen.WEIGHT_QUARTERS),
        enumerate(strassen.DATA_QUARTERS),
    ):
        terms = zip(strassen.OUTPUT[c], strassen.WEIGHT, strassen.DATA, strict=True)
        found = sum(o * u[a] * v[b] for o, u, v in terms)
        assert found == (out == (weight[0], data[1]) and weight[1] == data[0])


def test_what_two_levels_add() -> None:
    assert strassen.additions(1) == (7, 10)
    assert strassen.additions(2) == (77, 110)


def test_how_large_data_may_be() -> None:
    assert strassen.largest_data_of(1) == pytest.approx(8.5e37, rel=0.01)
    assert strassen.largest_data_of(2) == pytest.approx(2.1e37, rel=0.02)


# Sizes are odd in every part: terms, output channels and pixels.
SHAPES = {
    "pixels end within the second half": make(131, 137, 7, n=2),
    "whole parts": make(256, 256, 10),
    "rows differ": make(300, 263, 5, 21),
    "stride 2": make(261, 265, 19, stride=2),
    "strides differ, padding": make(259, 258, 17, 25, stride=(1, 3), padding=(1, 0, 0, 2)),
    "patches": make(17, 261, 40, kh=4, stride=4),
}
CASES = {
    f"{name}-{shape}": (name, w)
    for name, (shape, w) in itertools.product(NAMES, SHAPES.items())
    if ALGORITHMS[name].inapplicable(w) is None
}
any_case = pytest.mark.parametrize(("name", "w"), CASES.values(), ids=CASES)


def test_all_shapes_are_in_the_cases() -> None:
    assert len(CASES) >= 2 * len(SHAPES) - 1


@any_case
def test_answers(name: str, w: ConvWorkload) -> None:
    """Exact on small whole numbers: the default decisions in one layout, sometimes optimised, and
    one drawn at random in each; with the workspace that is stated."""
    draw = random.Random(f"{name} {w.key}")
    layouts = draw.sample(("NCHW", "NHWC", "NCHW8c"), 3)
    for i, layout in enumerate(layouts):
        task = Task(w, name, TARGET, layout)
        data, weight, bias = random_inputs(w, 5, layout, "integer")
        reference = conv2d_reference(w, data, weight, bias, layout)
        packed = pack_weight(task, weight)
        drawn = draw.choice(task.space.points)
        for decisions in (task.space.default, drawn) if i == 0 else (drawn,):
            level = opt_level(name, w.key) if i == 0 and decisions is not drawn else 0
            out = run_kernel(task, decisions, data, packed, bias, level)
            assert np.array_equal(out, reference), (layout, decisions)
            assert allocated(task, decisions) == stated_workspace(task, decisions)


@pytest.mark.parametrize("name", NAMES)
def test_workspace_of_two_threads(name: str) -> None:
    task = Task(make(256, 300, 12, n=2), name, resolve("native", 2))
    for decisions in random.Random(name).sample(task.space.points, 4):
        assert allocated(task, decisions) == stated_workspace(task, decisions), decisions


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_residual_and_bounds(name: str, layout: str) -> None:
    w = make(256, 260, 11)
    task = Task(w, name, TARGET, layout, "add")
    data, weight, bias = random_inputs(w, 7, layout, "integer")
    residual = random_inputs(w, 8, layout, "integer")[0]
    plain = conv2d_reference(w, data, weight, bias, layout)
    residual = np.resize(residual, plain.shape).astype(np.float32)
    out = np.full(plain.shape, np.nan, np.float32)
    packed = pack_weight(task, weight)
    kernel = kernel_of(task, task.space.default, opt_level=0)
    arrays = map(tvm_ffi.from_dlpack, (data, packed, bias, residual, out))
    first, second, third, fourth, fifth = arrays
    kernel(first, second, third, fifth, -100.0, 200.0, fourth)
    assert np.array_equal(out, np.clip(plain + residual, -100, 200))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_costs(name: str, layout: str) -> None:
    """Multiplications and additions that are stated are those of the lowered kernel."""
    w = make(256, 256, 12, n=2)
    task = Task(w, name, resolve("avx2", 1), layout)
    whole = [d for d in task.space.points if task.space.features(d)["useless"] == 1]
    count = executed(task, whole[0])
    assert count["multiplications"] == task.algorithm.multiplications(w)
    assert count["additions"] == task.algorithm.additions(w)
    assert task.algorithm.multiplications(w) == w.macs * 7 ** int(name[-1]) // 8 ** int(name[-1])


@pytest.mark.parametrize("name", NAMES)
def test_error_stays_near_direct(name: str) -> None:
    w = make(512, 256, 10)
    task = Task(w, name, TARGET)
    data, weight, bias = random_inputs(w, 1)
    out = run_kernel(task, task.space.default, data, pack_weight(task, weight), bias, opt_level=0)
    reference = conv2d_reference(w, data, weight, bias)
    assert relative_error(out, reference) < task.algorithm.tolerance / 3


@pytest.mark.parametrize(
    ("w", "name", "reason"),
    [
        (make(512, 512, 14, groups=2), "strassen:1", "groups is 2"),
        (make(512, 512, 14, kh=3), "strassen:1", "kernel is 3x3, of which Winograd saves more"),
        (make(512, 512, 14, kh=3, stride=2), "strassen:2", "kernel is 3x3"),
        (make(127, 512, 14), "strassen:1", "parts have 63, 256, 98 terms"),
        (make(512, 127, 14), "strassen:1", "parts have 256, 63, 98 terms"),
        (make(512, 512, 1, 47), "strassen:1", "parts have 256, 256, 23 terms"),
        (make(255, 512, 14), "strassen:2", "parts have 63, 128, 49 terms"),
        (make(512, 512, 7), "strassen:2", "parts have 128, 128, 12 terms"),
    ],
)
def test_refusals(w: ConvWorkload, name: str, reason: str) -> None:
    message = ALGORITHMS[name].inapplicable(w)
    assert message is not None and message.startswith(reason)
