"""The first convolutions of networks in 16 bits: three channels, which are four along the depth of
the product, up the CUDA ladder. And channels that are apart in memory, as those of NCHW."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from blocks import run_blocks
from emulator import emulated, problems
from emulator.accesses import Access, CountedCheck
from emulator.faults import FaultyCheck
from support import LONG

from convtvm.compute.cuda import direct
from convtvm.errors import EnvironmentProblem
from convtvm.kernels.cuda import codegen as gpu_codegen
from convtvm.kernels.cuda import cubin
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.measure.client import Zygote
from convtvm.measure.gpu_verify import GpuCheck
from convtvm.measure.jobs import Limits
from convtvm.problem.dtypes import BYTES, HALVES
from convtvm.problem.reference import conv2d_reference, random_inputs, rounded_reference
from convtvm.problem.workload import ConvWorkload

make = ConvWorkload.make
TARGET = resolve("cuda:sm_90")
LAYOUTS = ("NCHW", "NHWC")

SHAPES = {
    "ResNet's": make(3, 8, 9, kh=7, stride=2, padding=3, n=2),
    "VGG's": make(3, 33, 6, 5, kh=3, padding=1),
    "MobileNet's": make(3, 32, 11, 7, kh=3, stride=2, padding=1),
    "without padding": make(3, 10, 8, kh=4, stride=4, n=2),
    "uneven": make(3, 6, 9, 12, kh=5, kw=2, stride=(3, 1), padding=(2, 0, 1, 3)),
    "dilation": make(3, 4, 9, kh=3, dilation=2, padding=2),
    "1x1": make(3, 12, 4, n=2),
    "1x1, stride": make(3, 12, 5, stride=2),
    "groups": make(6, 4, 7, kh=3, padding=1, groups=2),
    "7 channels": make(7, 9, 5, kh=3, padding=1),
    "6 channels": make(6, 8, 5, kh=3, padding=1),
    "whole vectors": make(16, 8, 5, kh=3, padding=1),
    "whole vectors, 1x1, stride": make(24, 8, 7, stride=2, n=2),
}


@pytest.mark.parametrize("dtype", HALVES)
def test_channels_along_the_depth(dtype: str) -> None:
    held = {1: 1, 2: 2, 3: 4, 4: 4, 5: 5, 6: 6, 7: 8, 8: 8, 9: 9, 15: 15, 16: 16}
    for channels, right in held.items():
        w = make(channels, 8, 5, kh=3, dtype=dtype)
        assert direct.held_channels(w) == right, channels
        assert direct.held_channels(replace(w, dtype="float32")) == channels
    assert direct.held_channels(make(9, 6, 5, groups=3, dtype=dtype)) == 4


@pytest.mark.blocks
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks(shape: str, layout: str) -> None:
    """Every algorithm that applies, in one of the types."""
    w = replace(SHAPES[shape], dtype=HALVES[len(shape) % 2])
    arrays = random_inputs(w, 3, layout, "integer")
    right = rounded_reference(w, conv2d_reference(w, *arrays, layout))
    for name in ("direct", "im2col", "mec:a" if w.n > 1 else "mec:b"):
        task = Task(w, name, TARGET, layout)
        if task.algorithm.inapplicable(w) is None:
            out = run_blocks(task, task.space.default, *arrays)
            assert np.array_equal(out, right), name


@pytest.mark.blocks
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_windows(value: float, layout: str) -> None:
    """Zeros beside the channels are no neighbours' numbers, multiplied by zero."""
    w = replace(SHAPES["ResNet's"], dtype="float16")
    data, weight, bias = random_inputs(w, 5, layout, "integer")
    weight = np.where(weight == 0, 1, weight).astype(weight.dtype)
    at = (1, 1, 4, 3) if layout == "NCHW" else (1, 4, 3, 1)
    data[at] = value
    reference = conv2d_reference(w, data, weight, bias, layout)
    assert 0 < np.isfinite(reference).sum() < reference.size
    for name in ("direct", "im2col", "mec:b"):
        task = Task(w, name, TARGET, layout)
        out = run_blocks(task, task.space.default, data, weight, bias)
        assert np.array_equal(out, rounded_reference(w, reference), equal_nan=True), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["direct", "im2col", "mec:a", "mec:b"])
def test_workspace_formulas(name: str, layout: str) -> None:
    """The zeros are counted where they are in a workspace."""
    for shape, dtype in (
        ("ResNet's", "float16"),
        ("groups", "bfloat16"),
        ("7 channels", "float16"),
    ):
        w = replace(SHAPES[shape], n=2, dtype=dtype)
        task = Task(w, name, TARGET, layout)
        for d in task.space.points[:: max(1, len(task.space.points) // 3)]:
            asked = sum(BYTES[kind] * math.prod(shape) for kind, *shape in task.scratch(d))
            assert task.algorithm.workspace_bytes(w, layout, task.device, d) == asked


# ---- emulated ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emulated_gpu() -> Iterator[Zygote]:
    with emulated() as zygote:
        yield zygote


# Several warps, squares and turns; a single turn of one warp.
TILES = {"tile_p": 64, "tile_c": 32, "tile_k": 32, "warp_p": 32, "warp_c": 32}
SMALL = {"tile_p": 16, "tile_c": 16, "tile_k": 16, "warp_p": 16, "warp_c": 16}


@pytest.mark.emulated
@pytest.mark.parametrize(("dtype", "layout"), [("float16", "NHWC"), ("bfloat16", "NCHW")])
def test_emulated(dtype: str, layout: str, emulated_gpu: Zygote) -> None:
    """Steps that overlap, or not; sums in parts; batches; columns, or whole vectors."""
    cases = [
        ("ResNet's", "direct", 2, {**TILES, "split_k": 2, "stages": 3}),
        ("VGG's", "direct", 8, {**SMALL, "split_k": 1, "stages": 2}),
        ("MobileNet's", "direct", 1, {**SMALL, "split_k": 1, "stages": 1}),
        ("uneven", "direct", 16, None),
    ]
    if layout == "NHWC":
        cases.append(("7 channels", "im2col", 1, None))
    else:
        cases.append(("whole vectors", "direct", 2, {**TILES, "split_k": 1, "stages": 3}))
    checks = []
    for shape, name, n, decisions in cases:
        task = Task(replace(SHAPES[shape], n=n, dtype=dtype), name, TARGET, layout)
        assert decisions is None or task.space.is_valid(decisions)
        checks.append(GpuCheck(task, decisions))
    assert problems(checks, emulated_gpu) == [""] * len(checks)


@pytest.mark.emulated
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_are_stored_as_vectors(layout: str, emulated_gpu: Zygote) -> None:
    """Channels are fetched one by one, only those that exist, and stored at once without conflicts;
    all else is as wide as in other layers."""
    w = replace(SHAPES["ResNet's"], oc=32, n=8, dtype="float16")
    task = Task(w, "direct", TARGET, layout)
    job = CountedCheck(task, {**TILES, "split_k": 1, "stages": 3})
    ((_, outcome),) = emulated_gpu.call("run", [job], Limits(timeout=LONG))
    found: list[Access] = outcome.value
    shared = [a for a in found if a.space == "shared"]
    assert {(a.kind, a.bytes) for a in shared} >= {("store", 8), ("copy", 16), ("matrices", 16)}
    assert not [a for a in shared if a.kind == "store" and a.bytes != 8]
    assert all(a.worst == 1 for a in shared), shared


@pytest.mark.emulated
@pytest.mark.parametrize("layout", LAYOUTS)
def test_elements_are_stored_behind_the_step(layout: str, emulated_gpu: Zygote) -> None:
    """One barrier a step, without which it is wrong; and so it is if the padding is not zero."""
    task = Task(replace(SHAPES["MobileNet's"], dtype="float16"), "direct", TARGET, layout)
    decisions = {**TILES, "tile_k": 16, "split_k": 1, "stages": 2}
    func = task.instantiate(decisions)["main"]
    source = gpu_codegen.generate(func, "main", TARGET)[1].source
    assert source.count("__syncthreads();") == 1
    step = source[source.index("__syncthreads();") :]
    fetched, computed = step.index("data_ptr["), step.index("multiply_add_float16(")
    assert fetched < computed < step.rindex("lhs_shared_dyn_gathered")
    wrong = [
        FaultyCheck(task, decisions, pattern=r"__syncthreads\(\);"),
        FaultyCheck(task, decisions, pattern=r"= __float2half_rn\(0[^;]*;", replacement="= 1;"),
    ]
    right, *found = problems([GpuCheck(task, decisions), *wrong], emulated_gpu)
    assert right == "" and all("relative error" in text for text in found), found


# ---- machine code --------------------------------------------------------------------------------

LAYERS = {
    "ResNet's": make(3, 64, 224, kh=7, stride=2, padding=3),
    "VGG's": make(3, 64, 224, kh=3, padding=1),
    "MobileNet's": make(3, 32, 224, kh=3, stride=2, padding=1),
}


@pytest.mark.cubin
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("layer", LAYERS)
def test_defaults_spill_nothing(layer: str, batch: int) -> None:
    try:
        compiler = cubin.find_compiler()
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    turn = list(LAYERS).index(layer) + (batch > 1)
    arch, layout, dtype = ("sm_80", "sm_90")[turn % 2], LAYOUTS[turn // 2 % 2], HALVES[turn % 2]
    task = Task(
        replace(LAYERS[layer], n=batch, dtype=dtype), "direct", resolve(f"cuda:{arch}"), layout
    )
    source = gpu_codegen.generate(task.instantiate(task.space.default)["main"], "main", task.target)
    figures = cubin.compile_source(source[1].source, [arch], compiler).figures
    assert figures and all((f.spills, f.stack) == (0, 0) for f in figures.values()), figures
