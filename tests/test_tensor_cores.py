"""Products on tensor cores: float16, bfloat16, and TF32 for those who permit it, up the CUDA
ladder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from blocks import run_blocks
from emulator import emulated, problems
from emulator.faults import FaultyCheck, Tf32Check, _as_tf32
from support import LONG

from convtvm.dispatch.manifest import Kernel
from convtvm.dispatch.selection import Wish, choose
from convtvm.errors import BuildError, EnvironmentProblem, NoCandidate, WorkloadError
from convtvm.kernels.algorithms import applicable, select
from convtvm.kernels.cuda import codegen as gpu_codegen
from convtvm.kernels.cuda import cubin
from convtvm.kernels.cuda.algorithms import CUDA_ALGORITHMS
from convtvm.kernels.task import Task, tasks_of
from convtvm.library.choices import Choice, keep_some
from convtvm.machine import gpu
from convtvm.machine.targets import resolve
from convtvm.measure.client import Zygote
from convtvm.measure.gpu_verify import GpuCheck
from convtvm.measure.jobs import Limits
from convtvm.problem.dtypes import HALVES
from convtvm.problem.reference import (
    conv2d_reference,
    random_inputs,
    relative_error,
    rounded_reference,
)
from convtvm.problem.workload import ConvWorkload

make = ConvWorkload.make
TARGET = resolve("cuda:sm_90")
LAYOUTS = ("NCHW", "NHWC")
NAMES = ("direct", "im2col", "mec:b", "direct:tf32", "im2col:tf32")

SHAPES = {
    "tails": make(17, 33, 9, kh=3, padding=1, n=2),
    "one channel": make(3, 1, 5, kh=3),
    "groups, dilation": make(6, 10, 7, kh=3, dilation=2, padding=2, groups=2),
    "1x1, whole vectors": make(16, 24, 4, n=2),
}


# Algorithm and dtype of every kind of product.
KINDS = [("direct", "float16"), ("direct", "bfloat16"), ("direct:tf32", "float32")]
ROWS = [(n, d) for n in NAMES for d in (HALVES if "tf32" not in n else ("float32",))]


@pytest.mark.blocks
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "dtype"), ROWS)
def test_blocks(name: str, dtype: str, shape: str) -> None:
    w = replace(SHAPES[shape], dtype=dtype)
    layout = LAYOUTS[(len(name) + len(shape)) % 2]
    task = Task(w, name, TARGET, layout)
    arrays = random_inputs(w, 3, layout, "integer")
    out = run_blocks(task, task.space.default, *arrays)
    right = rounded_reference(w, conv2d_reference(w, *arrays, layout))
    assert out.dtype == w.dtype and np.array_equal(out, right)


# ---- emulated ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emulated_gpu() -> Iterator[Zygote]:
    with emulated() as zygote:
        yield zygote


# Two warps by two, several squares for each.
TILES = {"tile_p": 32, "tile_c": 64, "tile_k": 32, "warp_p": 16, "warp_c": 32}
TINY = make(16, 40, 5, kh=3, padding=1)


@pytest.mark.emulated
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_emulated(name: str, dtype: str, layout: str, emulated_gpu: Zygote) -> None:
    """Several warps, copies in flight, several blocks for one sum, and default decisions."""
    w, tails, single = (
        replace(w, dtype=dtype) for w in (TINY, SHAPES["tails"], SHAPES["one channel"])
    )
    cases = [
        (Task(w, name, TARGET, layout), {**TILES, "split_k": 1, "stages": 3}),
        (
            Task(w, name.replace("direct", "im2col"), TARGET, layout),
            {**TILES, "split_k": 2, "stages": 1},
        ),
        (Task(tails, name, TARGET, layout), None),
        (Task(single, name, TARGET, layout), None),
    ]
    if dtype in HALVES:
        cases.append((Task(tails, "mec:b", TARGET, layout), None))
    assert all(d is None or task.space.is_valid(d) for task, d in cases)
    found = problems([GpuCheck(task, decisions) for task, decisions in cases], emulated_gpu)
    assert found == [""] * len(cases)


PLAIN = Task(replace(TINY, dtype="float16"), "direct", TARGET, "NHWC")
DECISIONS = {**TILES, "split_k": 1, "stages": 2}
PLANTED = {
    "halves of the depth swapped": (r'"r"\(b0\), "r"\(b1\)', '"r"(b1), "r"(b0)', "relative error"),
    "rows swapped": (r'"r"\(a0\), "r"\(a1\)', '"r"(a1), "r"(a0)', "relative error"),
    "sums of another half": (r'"\+f"\(s4\)', '"+f"(s0)', "relative error"),
    "not transposed": (r"x4\.trans", "x4", "relative error"),
    "rows out of line": (r"shared\(&row\)", "shared(&row + 2)", "not aligned to 16 bytes"),
}


@pytest.mark.emulated
def test_planted_faults_are_caught(emulated_gpu: Zygote) -> None:
    checks = [
        FaultyCheck(PLAIN, DECISIONS, pattern=pattern, replacement=replacement)
        for pattern, replacement, _ in PLANTED.values()
    ]
    found = problems(checks, emulated_gpu)
    for (what, (*_, said)), message in zip(PLANTED.items(), found, strict=True):
        assert said in message, (what, message)


@pytest.mark.emulated
def test_the_only_barrier_of_a_step_is_needed(emulated_gpu: Zygote) -> None:
    """With it, two, three and four stages are right, whole steps or not; without, wrong."""
    cases = [
        (Task(replace(w, dtype="float16"), "direct", TARGET, layout), {**DECISIONS, "stages": s})
        for w, layout, s in (
            (TINY, "NHWC", 2),
            (TINY, "NCHW", 3),
            (make(16, 40, 5, kh=3, padding=2, dilation=2), "NHWC", 3),
            (make(64, 40, 5, kh=2, padding=1), "NHWC", 4),
            (make(16, 40, 5, kh=3, stride=2, padding=1), "NHWC", 4),
        )
    ]
    for task, decisions in cases:
        func = task.instantiate(decisions)["main"]
        source = gpu_codegen.generate(func, "main", TARGET)[1].source
        assert source.count("__syncthreads();") == 1
        assert source.count("multiply_add_float16(") == 2  # its definition, and one step
    assert problems([GpuCheck(*case) for case in cases], emulated_gpu) == [""] * len(cases)
    wrong = [FaultyCheck(*case, pattern=r"__syncthreads\(\);") for case in cases]
    assert all("relative error" in text for text in problems(wrong, emulated_gpu))


@pytest.mark.emulated
@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_guarded_vectors_are_one_copy(name: str, dtype: str, emulated_gpu: Zygote) -> None:
    """Pixels in the padding and steps beyond the sum: asynchronous, by 16 bytes, zero."""
    for w in (TINY, make(24, 16, 7, kh=3, stride=2, padding=(1, 0, 2, 1), groups=1, n=2)):
        task = Task(replace(w, dtype=dtype), name, TARGET, "NHWC")
        decisions = {**DECISIONS, "stages": 3}
        func = task.instantiate(decisions)["main"]
        source = gpu_codegen.generate(func, "main", TARGET)[1].source
        assert source.count("copy_if_16(((") == 3 and "condval" not in source
        checks = [
            GpuCheck(task, decisions),
            FaultyCheck(task, decisions, pattern=r"\(there \? 16 : 0\)", replacement="(16)"),
            FaultyCheck(task, decisions, pattern=r"\(there \? 16 : 0\)", replacement="(0)"),
        ]
        right, read, zero = problems(checks, emulated_gpu)
        assert right == "" and read and "relative error" in zero


@pytest.mark.emulated
def test_tf32_rounds_to_the_nearest(emulated_gpu: Zygote) -> None:
    task = Task(make(24, 8, 5, kh=3), "direct:tf32", TARGET)
    ((_, outcome),) = emulated_gpu.call("run", [Tf32Check(task)], Limits(timeout=LONG))
    assert outcome.value < 1e-6, outcome
    data, weight, bias = random_inputs(task.workload, 0)
    exact = conv2d_reference(task.workload, data, weight, bias)
    out = run_blocks(task, task.space.default, data, weight, bias)
    rounded = conv2d_reference(task.workload, _as_tf32(data), _as_tf32(weight), bias)
    assert relative_error(out, rounded) < 1e-6
    assert 1e-5 < relative_error(out, exact) < task.tolerance


# ---- machine code --------------------------------------------------------------------------------


@pytest.mark.cubin
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_cubins_need_no_memory_for_registers(name: str, dtype: str, layout: str) -> None:
    """A layer of a real size, by its default decisions and by large tiles."""
    try:
        compiler = cubin.find_compiler()
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    both = resolve("cuda:sm_80,sm_90")
    w = make(64, 64, 56, kh=3, padding=1, n=8, dtype=dtype)
    task = Task(w, name, both, layout)
    large = {"tile_p": 128, "tile_c": 64, "tile_k": 32, "warp_p": 64, "warp_c": 32}
    for decisions in (task.space.default, {**large, "split_k": 1, "stages": 3}):
        assert task.space.is_valid(decisions)
        func = task.instantiate(decisions)["main"]
        source = gpu_codegen.generate(func, "main", both)[1].source
        image = cubin.compile_source(source, both.arches, compiler)
        assert {arch for _, arch in image.figures} == {"sm_80", "sm_90"}
        for kernel, figures in image.figures.items():
            assert (figures.spills, figures.stack) == (0, 0), kernel


@pytest.mark.cuda
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "dtype"), ROWS)
def test_on_the_device(name: str, dtype: str, shape: str) -> None:
    if not gpu.devices():
        pytest.skip("no NVIDIA GPU or driver on this machine")
    for layout in LAYOUTS:
        GpuCheck(Task(replace(SHAPES[shape], dtype=dtype), name, resolve("cuda"), layout))()


# ---- who gets them -------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "dtype"), [("f16", "float16"), ("bf16", "bfloat16")])
def test_a_workload_of_16_bits_in_text(word: str, dtype: str) -> None:
    for text in (
        f'mb1ic8ih5oc8kh3{word}n"x"',
        f"{word}mb1ic8ih5oc8kh3",
        f"mb1_{word}_ic8ih5oc8kh3",
    ):
        w = ConvWorkload.parse(text)
        assert w.dtype == dtype and w.name == ("x" if "x" in text else "")
        assert w.key.endswith(f"_{word}") and ConvWorkload.parse(w.key) == w
        assert w != replace(w, dtype="float32")
        assert w.data_bytes == replace(w, dtype="float32").data_bytes // 2


def test_two_types_in_one_text() -> None:
    with pytest.raises(WorkloadError, match="gives float16 and bfloat16: expected one type"):
        ConvWorkload.parse("mb1ic8ih5oc8kh3_bf16_f16")


@pytest.mark.parametrize("dtype", HALVES)
def test_16_bits_are_for_gpus(dtype: str) -> None:
    with pytest.raises(WorkloadError, match=f"is {dtype}, which is for GPUs; on a CPU expected"):
        tasks_of([replace(TINY, dtype=dtype)], resolve("native", 1))


@pytest.mark.parametrize("dtype", HALVES)
def test_old_gpus_are_refused(dtype: str) -> None:
    task = Task(replace(TINY, dtype=dtype), "direct", resolve("cuda:sm_75"))
    func = task.instantiate(task.space.default)["main"]
    with pytest.raises(BuildError, match="tensor cores need sm_80 or newer, the target has sm_75"):
        gpu_codegen.generate(func, "main", task.target)


@pytest.mark.parametrize("dtype", HALVES)
def test_which_algorithms_know_16_bits(dtype: str) -> None:
    w = make(8, 8, 6, kh=3, padding=1, groups=8, dtype=dtype)
    names = [a.name for a in applicable(w, table=CUDA_ALGORITHMS)]
    assert names == ["direct", "im2col", "mec:b"]
    reason = CUDA_ALGORITHMS["winograd:2"].inapplicable(w)
    assert reason == f"dtype is {dtype}, winograd:2 needs float32"


def test_what_rounding_to_bfloat16_costs() -> None:
    """One rounding of the sum, no more: the tolerance is twice that, and far from float16's."""
    w = make(24, 8, 5, kh=3, dtype="bfloat16")
    arrays = random_inputs(w, 0)
    assert all(a.dtype.name == "bfloat16" for a in arrays)
    reference = conv2d_reference(w, *arrays)
    rounded = rounded_reference(w, reference)
    error = relative_error(rounded.astype(arrays[0].dtype), reference)
    assert 1e-3 < error <= 2.0**-8 < Task(w, "direct", TARGET).tolerance == 2.0**-7
    assert relative_error(np.full(rounded.shape, np.nan, arrays[0].dtype), reference) == np.inf


def test_tf32_is_named_or_in_the_log() -> None:
    assert not [a.name for a in select(None, CUDA_ALGORITHMS) if a.opt_in]
    assert "direct:tf32" not in [a.name for a in select(["direct"], CUDA_ALGORITHMS)]
    assert [a.name for a in select(["direct:tf32"], CUDA_ALGORITHMS)] == ["direct:tf32"]
    named = [t.algorithm_name for t in tasks_of([TINY], TARGET, recorded={"direct:tf32"})]
    assert "direct:tf32" in named and "im2col:tf32" not in named


def test_the_best_of_both_kinds_is_kept() -> None:
    tasks = [Task(TINY, name, TARGET) for name in ("direct", "direct:tf32", "im2col")]
    times = (2.0, 1.0, 3.0)
    choices = [Choice(t, None, predicted_secs=s) for t, s in zip(tasks, times, strict=True)]
    assert [c.task.algorithm_name for c in keep_some(choices, "best")] == ["direct", "direct:tf32"]


def test_tf32_needs_a_max_error_that_permits_it() -> None:
    exact = Kernel("w", "direct", "f", "p", (1,), 0, 2.0, 1e-6, "tuned")
    fast = replace(exact, algorithm="direct:tf32", function="g", run_secs=1.0, max_error=4e-4)
    kernels = [fast, exact]
    for wish, name in (
        (Wish(), "direct"),
        (Wish(max_error=1e-5), "direct"),
        (Wish(max_error=1e-3), "direct:tf32"),
    ):
        assert choose(TINY, kernels, wish).kernel.algorithm == name
    with pytest.raises(NoCandidate):
        choose(TINY, kernels, Wish(algorithm="direct:tf32"))
    unmeasured = replace(fast, max_error=None)
    assert choose(TINY, [unmeasured, exact], Wish(max_error=1e-3)).kernel == exact
