"""CUDA templates beyond their defaults: any valid decisions are right, and use what there is.

tests/test_cuda.py takes every row's default decisions up the ladder; here they are drawn.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from blocks import run_blocks
from emulator import emulated, problems
from tvm.s_tir import Schedule

from convtvm.errors import EnvironmentProblem
from convtvm.kernels.cuda import codegen as gpu_codegen
from convtvm.kernels.cuda import cubin
from convtvm.kernels.cuda.algorithms import CUDA_ALGORITHMS
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.measure.client import Zygote
from convtvm.measure.gpu_verify import EXACT_FAMILIES, GpuCheck
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.sources import read_source
from convtvm.problem.workload import ConvWorkload
from schedules.cuda import estimate

make = ConvWorkload.make
TARGET = resolve("cuda:sm_90")
LAYOUTS = ("NCHW", "NHWC")

ODD = [
    make(17, 33, 7, kh=3, padding=1),
    make(6, 20, 13, kh=3, stride=2, padding=1, n=3),
    make(6, 10, 9, kh=3, dilation=2, padding=(1, 2), groups=2, n=2),
    make(5, 3, 7, 13, 3, padding=(2, 0, 1, 3)),
    make(16, 4, 8, n=2),
    make(4, 8, 11, kh=3, padding=1, groups=4),
    make(8, 8, 13, kh=5, stride=2, padding=2, groups=8, n=2),
    make(1, 1, 5, kh=3),
    make(6, 10, 11, kh=3, dilation=(2, 3), padding=2, n=2),
]
LARGE = [w for w in read_source("resnet50") if w.name in ("layer1.0.conv2", "layer4.1.conv2")]


def drawn(name: str, seed: int, shapes: list[ConvWorkload], count: int) -> list[tuple[Task, dict]]:
    """Tasks of odd shapes in turn, each with some decisions of its space."""
    draw = random.Random(f"{name} {seed}")
    fitting = [w for w in shapes if CUDA_ALGORITHMS[name].inapplicable(w) is None]
    draw.shuffle(fitting)
    result = []
    for i in range(count):
        task = Task(fitting[i % len(fitting)], name, TARGET, LAYOUTS[i % 2])
        result.append((task, draw.choice(task.space.points)))
    return result


@pytest.mark.blocks
@pytest.mark.parametrize("name", CUDA_ALGORITHMS)
def test_any_valid_decisions_are_right(name: str) -> None:
    for task, decisions in drawn(name, 1, ODD, 2):
        exact = task.algorithm.family in EXACT_FAMILIES
        arrays = random_inputs(task.workload, 7, task.layout, "integer" if exact else "normal")
        out = run_blocks(task, decisions, *arrays)
        error = relative_error(out, conv2d_reference(task.workload, *arrays, task.layout))
        tolerance = 0.0 if exact else task.algorithm.tolerance
        assert error <= tolerance, (str(task.workload), task.layout, decisions)


@pytest.fixture(scope="module")
def emulated_gpu() -> Iterator[Zygote]:
    with emulated() as zygote:
        yield zygote


TINY = make(6, 20, 5, kh=3, padding=1)
TILES = {"tile_p": 32, "tile_c": 32, "tile_k": 8, "thread_p": 8, "thread_c": 4}


@pytest.mark.emulated
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pipelines_and_split_sums(layout: str, emulated_gpu: Zygote) -> None:
    """What only threads can get wrong: copies in flight, several blocks for one sum."""
    cases = [
        (name, {**TILES, "split_k": split_k, "stages": stages})
        for name, split_k, stages in (("direct", 1, 3), ("im2col", 3, 2), ("winograd:2", 1, 1))
    ]
    tasks = [(Task(TINY, name, TARGET, layout), decisions) for name, decisions in cases]
    assert all(task.space.is_valid(decisions) for task, decisions in tasks)
    found = problems([GpuCheck(task, decisions) for task, decisions in tasks], emulated_gpu)
    assert found == [""] * len(tasks)


# The phases of a dilation: of unequal sizes, along one axis, met by a stride, as many as pixels.
# Images and phases of fewer pixels than the kernel.
DILATED = {
    "dilation 2": make(6, 5, 7, kh=3, dilation=2, padding=2),
    "dilations differ, batch 2": make(3, 6, 9, 8, 3, n=2, dilation=(3, 2), padding=(1, 3, 2, 0)),
    "dilated rows": make(5, 4, 11, 6, 3, dilation=(4, 1), padding=(4, 0, 1, 1)),
    "1-D": make(5, 9, 1, 17, 1, 3, dilation=(7, 4), padding=(0, 4)),
    "dilation 6, stride 3": make(4, 6, 15, kh=3, stride=3, dilation=6, padding=6),
    "dilation as large as the image": make(4, 8, 5, kh=3, dilation=5, padding=5),
    "two pixels, batch 3": make(5, 6, 2, kh=3, n=3, padding=1),
    "one row, two pixels of dilation 4": make(3, 8, 1, 8, 3, dilation=(1, 4), padding=(1, 4)),
}


@pytest.mark.blocks
@pytest.mark.parametrize("shape", DILATED)
@pytest.mark.parametrize("name", ["winograd:2", "winograd:4", "winograd:6"])
def test_dilations_by_phases(name: str, shape: str) -> None:
    """The default decisions, in a layout of each shape's own that changes with the tile."""
    w = DILATED[shape]
    turn = list(DILATED).index(shape) + int(name[-1]) // 2
    task = Task(w, name, TARGET, LAYOUTS[turn % 2])
    assert task.algorithm.inapplicable(w) is None
    arrays = random_inputs(w, 7, task.layout)
    out = run_blocks(task, task.space.default, *arrays)
    error = relative_error(out, conv2d_reference(w, *arrays, task.layout))
    assert error <= task.algorithm.tolerance


@pytest.mark.emulated
def test_emulated_dilations(emulated_gpu: Zygote) -> None:
    """Where phases differ in size, on the GPU all of them are tiles of one product, and where tiles
    have fewer pixels than products."""
    chosen = [DILATED["dilations differ, batch 2"], DILATED["one row, two pixels of dilation 4"]]
    tasks = [Task(w, "winograd:4", TARGET, at) for w, at in zip(chosen, LAYOUTS, strict=True)]
    assert problems([GpuCheck(task) for task in tasks], emulated_gpu) == ["", ""]


def test_strides_that_are_left_to_phases_are_refused() -> None:
    """A thread has no room for a strided tile."""
    row = CUDA_ALGORITHMS["winograd:2"]
    reason = row.inapplicable(make(8, 8, 15, kh=3, stride=2, dilation=3))
    assert reason == "stride is 2x2 of phases, Winograd on a GPU needs 1"
    assert row.inapplicable(make(8, 8, 15, kh=3, stride=2, padding=1)) == (
        "stride is 2x2, Winograd on a GPU needs 1"
    )
    assert row.inapplicable(make(8, 8, 15, kh=3, stride=2, dilation=2)) is None


@pytest.mark.emulated
def test_depthwise_strips(emulated_gpu: Zygote) -> None:
    w = make(8, 8, 9, kh=3, padding=1, groups=8)
    cases = {
        "NCHW": {"tile_h": 2, "tile_w": 4, "vector": 1, "threads": 32},
        "NHWC": {"tile_h": 4, "tile_w": 1, "vector": 4, "threads": 64},
    }
    tasks = [(Task(w, "direct:depthwise", TARGET, layout), d) for layout, d in cases.items()]
    assert all(task.space.is_valid(decisions) for task, decisions in tasks)
    assert problems([GpuCheck(*case) for case in tasks], emulated_gpu) == ["", ""]


@pytest.mark.parametrize("name", CUDA_ALGORITHMS)
def test_workspace_formulas(name: str) -> None:
    """The formula of every row is what the kernel asks the run time for."""
    for task, decisions in drawn(name, 2, ODD, 6):
        asked = sum(4 * math.prod(shape) for _, *shape in task.scratch(decisions))
        formula = task.algorithm.workspace_bytes
        assert formula(task.workload, task.layout, task.device, decisions) == asked


@pytest.mark.parametrize("name", CUDA_ALGORITHMS)
def test_thread_extents_agree(name: str) -> None:
    """On layers of real sizes and drawn decisions; TVM itself lets one extent win."""
    batch = make(64, 64, 28, kh=3, padding=1, n=2)
    shapes = [*LARGE, batch, make(96, 96, 28, kh=3, padding=1, groups=96)]
    for task, decisions in drawn(name, 3, shapes, 2):
        gpu_codegen.check_threads(task.instantiate(decisions), TARGET.facts)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_defaults_fill_the_gpu(layout: str) -> None:
    """At batch 1, a 7x7 layer's few pixels are shared out by splitting the sum."""
    for w in LARGE:
        task = Task(w, "direct", TARGET, layout)
        size = estimate.Size.of(Schedule(task.compute()))
        assert estimate.blocks(size, task.space.default) >= 0.75 * task.device.processors
    assert task.space.default["split_k"] > 1


def test_what_exceeds_the_machine_is_never_proposed() -> None:
    space = Task(LARGE[0], "direct", TARGET, "NCHW").space
    usual = {"tile_p": 64, "tile_c": 64, "tile_k": 16, "thread_p": 8, "thread_c": 8, "split_k": 1}
    assert space.is_valid({**usual, "stages": 2})
    beyond = {
        "threads": {"tile_p": 256, "tile_c": 256, "thread_p": 2, "thread_c": 4},
        "shared memory": {"tile_p": 256, "tile_c": 256, "tile_k": 32, "stages": 4},
        "less than a warp": {"tile_p": 16, "tile_c": 16, "thread_p": 8},
        "more stages than steps": {"tile_k": 32, "split_k": 32, "stages": 4},
    }
    for what, change in beyond.items():
        assert not space.is_valid({**usual, "stages": 2, **change}), what


@pytest.mark.cubin
@pytest.mark.parametrize("layout", LAYOUTS)
def test_drawn_decisions_spill_nothing(layout: str) -> None:
    try:
        compiler = cubin.find_compiler()
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    decisions = {"tile_p": 128, "tile_c": 128, "tile_k": 8, "thread_p": 8, "thread_c": 8}
    task = Task(LARGE[0], "direct", TARGET, layout)
    func = task.instantiate({**decisions, "split_k": 1, "stages": 3})["main"]
    source = gpu_codegen.generate(func, "main", TARGET)[1].source
    (figures,) = cubin.compile_source(source, TARGET.arches, compiler).figures.values()
    assert (figures.spills, figures.stack) == (0, 0)
    assert figures.registers * 256 <= TARGET.facts.registers


DEFAULTS = {
    "the stem in float16": (make(3, 64, 224, kh=7, stride=2, padding=3, n=16), "float16", "direct"),
    "3x3, float16": (make(256, 256, 14, kh=3, padding=1, n=64), "float16", "direct"),
    "1x1, float16": (make(256, 64, 56, n=16), "float16", "direct"),
    "3x3, TF32": (make(512, 512, 14, kh=3, stride=2, padding=1, n=8), "float32", "direct:tf32"),
    "3x3": (make(128, 128, 28, kh=3, padding=1, n=16), "float32", "direct"),
    "depthwise": (make(96, 96, 56, kh=3, padding=1, groups=96, n=8), "float32", "direct:depthwise"),
}


@pytest.mark.cubin
@pytest.mark.parametrize("case", DEFAULTS)
def test_defaults_spill_nothing(case: str) -> None:
    """A sample of what scripts/figures/ptxas_figures.py does with whole networks."""
    try:
        compiler = cubin.find_compiler()
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    w, dtype, name = DEFAULTS[case]
    arch = ("sm_80", "sm_90")[len(case) % 2]
    layout = "NHWC" if dtype == "float16" else "NCHW"
    task = Task(replace(w, dtype=dtype), name, resolve(f"cuda:{arch}"), layout)
    source = gpu_codegen.generate(task.instantiate(task.space.default)["main"], "main", task.target)
    figures = cubin.compile_source(source[1].source, [arch], compiler).figures
    assert figures and all((f.spills, f.stack) == (0, 0) for f in figures.values()), figures
