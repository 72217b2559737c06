"""im2col + GEMM on odd shapes, and the workspace that every algorithm states by formula."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from support import opt_level, pack_weight, run_kernel

from convtvm.compute.im2col import has_columns
from convtvm.kernels import codegen, lowering, workspace
from convtvm.kernels.algorithms import ALGORITHMS, applicable
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import LAYOUTS, ConvWorkload

make = ConvWorkload.make

SHAPES = {
    "1x1 image": make(19, 17, 1, n=3),
    "1x1 image, 3x3": make(17, 3, 1, kh=3, padding=1, n=2),
    "one channel": make(1, 1, 11, kh=3, padding=1),
    "pointwise": make(70, 19, 6, 9, n=2),
    "pointwise, padded": make(3, 17, 5, padding=1),
    "pointwise, padded at the end": make(3, 17, 5, 7, padding=(0, 0, 0, 2)),
    "pointwise, stride 2": make(19, 17, 9, stride=2),
    "pointwise, groups": make(6, 38, 5, groups=2),
    "row of 7": make(3, 19, 4, 17, 1, 7, padding=(0, 3), stride=(1, 2), n=3),
    "column of 5": make(17, 3, 13, 4, 5, 1, padding=(2, 0), stride=(3, 1)),
    "asymmetric padding": make(19, 70, 7, 10, 3, padding=(2, 0, 1, 3)),
    "padding beyond the window": make(3, 5, 4, 3, 2, padding=(3, 2, 3, 4), n=2),
    "stride 3 and 2": make(70, 17, 13, 11, 3, stride=(3, 2), padding=1),
    "stride 4 beyond the kernel": make(3, 19, 18, kh=3, stride=4, padding=(1, 1, 2, 0)),
    "dilation 2 and 3": make(17, 19, 12, 13, 3, dilation=(2, 3), padding=(2, 3)),
    "dilation 3, stride 2, batch 2": make(3, 17, 15, kh=3, dilation=3, stride=2, padding=2, n=2),
    "stem": make(3, 19, 23, kh=7, stride=2, padding=3),
    "kernel as large as the image": make(17, 70, 5, 4, 5, 4, n=3),
    "even kernel": make(19, 1, 9, 8, 2, 4, padding=(1, 2)),
    "groups": make(51, 57, 8, kh=3, padding=1, groups=3),
    "groups, dilation, batch 2": make(38, 6, 11, kh=3, dilation=2, groups=2, n=2),
    "depthwise": make(17, 17, 9, kh=3, padding=1, groups=17),
    "depthwise, two outputs, stride 2": make(19, 38, 9, kh=5, stride=2, padding=2, groups=19),
}
any_shape = pytest.mark.parametrize("w", SHAPES.values(), ids=SHAPES)


def check_answers(w: ConvWorkload, name: str) -> None:
    """Exact answers: by the default decisions in both layouts, one of them optimised for every
    third case, and by some drawn at random."""
    packed, draw = None, random.Random(f"{name} {w.key}")
    drawn = draw.choice(LAYOUTS)
    for layout in LAYOUTS:
        task = Task(w, name, resolve("native", 1), layout)
        data, weight, bias = random_inputs(w, 3, layout, "integer")
        reference = conv2d_reference(w, data, weight, bias, layout)
        packed = pack_weight(task, weight) if packed is None else packed
        others = draw.sample(task.space.points, 1) if layout == drawn else []
        for i, decisions in enumerate([task.space.default, *others]):
            level = opt_level(name, w.key) if i == 0 and layout == drawn else 0
            out = run_kernel(task, decisions, data, packed, bias, level)
            assert np.array_equal(out, reference), (layout, decisions)


def check_every_decision(w: ConvWorkload, name: str) -> None:
    """All that is valid in a small space, worthwhile or not, gives the exact answer."""
    task = Task(w, name, resolve("native", 1), "NCHW")
    data, weight, bias = random_inputs(w, 4, "NCHW", "integer")
    reference = conv2d_reference(w, data, weight, bias)
    packed = pack_weight(task, weight)
    every = itertools.product(*task.space.knobs.values())
    points = [dict(zip(task.space.knobs, values, strict=True)) for values in every]
    valid = [decisions for decisions in points if task.space.is_valid(decisions)]
    assert len(valid) >= 12
    for decisions in valid:
        out = run_kernel(task, decisions, data, packed, bias, opt_level=0)
        assert np.array_equal(out, reference), decisions


def stated_workspace(task: Task, decisions: Mapping[str, int]) -> int:
    return task.algorithm.workspace_bytes(task.workload, task.layout, task.device, decisions)


def allocated(task: Task, decisions: Mapping[str, int]) -> int:
    """What the lowered kernel allocates."""
    lowered = lowering.lower(task.instantiate(decisions), task.target.tvm)
    return codegen.workspace_bytes(lowered, task.target.threads)


@any_shape
def test_answers(w: ConvWorkload) -> None:
    check_answers(w, "im2col")


def test_every_decision_of_a_small_space() -> None:
    check_every_decision(make(2, 17, 3, 2, kh=2), "im2col")


@any_shape
def test_applies_to_everything(w: ConvWorkload) -> None:
    algorithm = ALGORITHMS["im2col"]
    assert algorithm.inapplicable(w) is None
    assert algorithm.multiplications(w) == w.macs


# ---- workspace -----------------------------------------------------------------------------------


def test_columns_are_the_whole_workspace() -> None:
    w = make(64, 64, 56, kh=3, padding=1, n=2)
    task = Task(w, "im2col", resolve("native", 2))
    whole, ragged = ({**task.space.default, "tile_ow": t} for t in (4, 5))
    assert stated_workspace(task, whole) == 4 * 2 * (3 * 3 * 64) * (56 * 56)
    assert stated_workspace(task, ragged) == 4 * 2 * (3 * 3 * 64) * (56 * 56 + 4)


@pytest.mark.parametrize(
    ("w", "copied"),
    [
        (make(64, 32, 14), False),
        (make(64, 32, 14, groups=2, n=2), False),
        (make(64, 32, 14, stride=2), True),
        (make(64, 32, 14, padding=(0, 0, 1, 0)), True),
        (make(64, 32, 14, kw=2), True),
    ],
)
def test_pointwise_needs_no_columns(w: ConvWorkload, copied: bool) -> None:
    assert has_columns(w) is copied
    task = Task(w, "im2col", resolve("native", 1))
    assert (allocated(task, task.space.default) > 0) is copied


WORKSPACES = {
    "3x3": make(64, 64, 28, kh=3, padding=1),
    "asymmetric padding, batch 2": make(17, 70, 13, 9, 3, padding=(0, 1, 2, 1), n=2),
    "dilation 2": make(24, 40, 30, 17, 3, dilation=2, padding=2),
    "5x5, batch 3": make(3, 19, 40, kh=5, n=3),
    "pointwise": make(16, 16, 9, n=2),
    "stride 2, groups": make(6, 8, 30, kh=3, stride=2, groups=2, n=2),
    "all of it on the stack": make(8, 8, 4, kh=3, padding=1),
    "column": make(32, 32, 20, 12, 3, 1),
    "depthwise": make(24, 24, 60, kh=3, groups=24, padding=1),
    "depthwise, stride 2, multiplier 2": make(5, 10, 120, kh=5, groups=5, stride=2, n=2),
    "depthwise, vectors of channels as they are": make(16, 16, 30, kh=3, groups=16),
}


@pytest.mark.parametrize("w", WORKSPACES.values(), ids=WORKSPACES)
def test_workspace_formulas(w: ConvWorkload) -> None:
    """What each algorithm states is what its lowered kernel allocates, whatever the decisions."""
    for name in [a.name for a in applicable(w) if a.name not in ("winograd:3", "winograd:5")]:
        draw = random.Random(f"{name} {w.key}")
        for layout in LAYOUTS:
            task = Task(w, name, resolve("native", 2), layout)
            default, points = task.space.default, task.space.points
            decisions = default if layout == "NCHW" else draw.choice(points)
            lowered = lowering.lower(task.instantiate(decisions), task.target.tvm)
            for threads in (1, 2):
                cpu = replace(task.device, threads=threads)
                stated = task.algorithm.workspace_bytes(w, task.layout, cpu, decisions)
                measured = codegen.workspace_bytes(lowered, threads)
                assert stated == measured, (name, layout, threads, decisions)


def test_what_fits_the_stack_is_no_workspace() -> None:
    limit = workspace.STACK_BYTES
    assert workspace.allocated_bytes(limit, limit + 4) == limit + 4
