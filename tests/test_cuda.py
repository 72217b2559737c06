"""The ladder of the CUDA templates: blocks on the CPU, emulated code, cubins, a real GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from blocks import run_blocks
from emulator import emulated, environment, problems, python
from emulator.faults import FaultyCheck, Scaled
from emulator.plain import PlainTask
from support import LONG

from convtvm.dispatch import load
from convtvm.dispatch.gpu import objection
from convtvm.dispatch.manifest import Manifest, attach
from convtvm.errors import BuildError, EnvironmentProblem, LibraryError, WorkloadError
from convtvm.kernels.cuda import codegen as gpu_codegen
from convtvm.kernels.cuda import cubin
from convtvm.kernels.cuda.algorithms import CUDA_ALGORITHMS
from convtvm.kernels.task import Task, tasks_of
from convtvm.logs import records
from convtvm.machine import gpu
from convtvm.machine.targets import resolve
from convtvm.measure.client import Zygote
from convtvm.measure.gpu_verify import EXACT_FAMILIES, GpuCheck
from convtvm.measure.jobs import Limits
from convtvm.problem.dtypes import ROUNDING
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.workload import ConvWorkload

make = ConvWorkload.make
TARGET = resolve("cuda:sm_90")

SHAPES = {
    "3x3": make(5, 6, 7, kh=3, padding=1),
    "one pixel": make(3, 4, 3, kh=3),
    "1x1, batch 2": make(8, 12, 5, n=2),
    "strides, asymmetric padding": make(4, 6, 7, 9, 3, 2, stride=(2, 1), padding=(1, 0, 0, 1)),
    "groups, dilation": make(6, 4, 7, kh=3, dilation=2, padding=2, groups=2),
    "depthwise": make(6, 6, 7, kh=3, padding=1, groups=6),
    "tiles' tails, batch 2": make(17, 33, 9, kh=3, padding=1, n=2),
}
CASES = [
    pytest.param(Task(w, name, TARGET, layout), id=f"{name}-{shape}-{layout}")
    for name, algorithm in CUDA_ALGORITHMS.items()
    for shape, w in SHAPES.items()
    for layout in ("NCHW", "NHWC")
    if algorithm.inapplicable(w) is None
]


@pytest.mark.blocks
@pytest.mark.parametrize("task", CASES)
def test_blocks(task: Task) -> None:
    exact = task.algorithm.family in EXACT_FAMILIES
    arrays = random_inputs(task.workload, 3, task.layout, "integer" if exact else "normal")
    out = run_blocks(task, task.space.default, *arrays)
    error = relative_error(out, conv2d_reference(task.workload, *arrays, task.layout))
    assert error <= (0.0 if exact else task.algorithm.tolerance)


# ---- emulated ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emulated_gpu() -> Iterator[Zygote]:
    with emulated() as zygote:
        yield zygote


@pytest.mark.emulated
@pytest.mark.parametrize("name", CUDA_ALGORITHMS)
def test_emulated(name: str, emulated_gpu: Zygote) -> None:
    """The default decisions of every shape, in one layout."""
    tasks = [case.values[0] for case in CASES if case.values[0].algorithm_name == name][::2]
    found = problems([GpuCheck(task) for task in tasks], emulated_gpu)
    assert found == [""] * len(tasks), [str(t.workload) for t in tasks]


PLAIN = PlainTask(SHAPES["tiles' tails, batch 2"], "direct", TARGET)
BARRIER = r"__syncthreads\(\);"


def barriers(task: Task) -> int:
    func = task.instantiate(task.space.default)["main"]
    return gpu_codegen.generate(func, "main", TARGET)[1].source.count("__syncthreads();")


@pytest.mark.emulated
def test_a_removed_barrier_is_caught(emulated_gpu: Zygote) -> None:
    count = barriers(PLAIN)
    assert count >= 2
    checks = [FaultyCheck(PLAIN, pattern=BARRIER, index=i) for i in range(count)]
    right, *wrong = problems([GpuCheck(PLAIN), *checks], emulated_gpu)
    assert right == "" and all("relative error" in text for text in wrong), wrong


@pytest.mark.emulated
def test_a_skipped_barrier_is_caught(emulated_gpu: Zygote) -> None:
    check = FaultyCheck(PLAIN, pattern=BARRIER, replacement="if (threadIdx.x < 7) __syncthreads();")
    (wrong,) = problems([check], emulated_gpu)
    assert "7 of" in wrong and "threads came" in wrong


@pytest.mark.emulated
def test_an_address_beyond_the_buffer_is_caught(emulated_gpu: Zygote) -> None:
    check = FaultyCheck(PLAIN, pattern=r"out_ptr\[\(", replacement="out_ptr[(9000 + ")
    (wrong,) = problems([check], emulated_gpu)
    assert wrong == "crash killed by SIGSEGV"


@pytest.mark.emulated
def test_registers_of_another_thread_are_caught(emulated_gpu: Zygote) -> None:
    jobs = [Scaled(), Scaled(crossed=True), Scaled(mismatched=True)]
    outcomes = dict(emulated_gpu.call("run", jobs, Limits(timeout=LONG)))
    assert [outcomes[i].value for i in (0, 1)] == [True, False]
    assert "threadIdx.x has extents 32, 64, expected one" in outcomes[2].message


# ---- checks of the lowering ----------------------------------------------------------------------


def test_unknown_ptx_is_refused() -> None:
    from emulator.translate import translate

    code = 'void f() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }'
    assert "ptx::wgmma_fence_sync_aligned()" in translate(code)  # which device.h does not have


def test_no_compiler_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVTVM_NVCC", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    monkeypatch.setattr(cubin.nvrtc, "is_available", lambda: False)
    with pytest.raises(EnvironmentProblem, match=r"no CUDA compiler.*convtvm\[cuda\]"):
        cubin.find_compiler()


def test_ptxas_figures() -> None:
    log = """ptxas info    : Compiling entry function 'k1' for 'sm_80'
ptxas info    : Function properties for k1
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 4096 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function 'k2' for 'sm_90'
ptxas info    : Used 32 registers
"""
    assert cubin.ptxas_figures(log) == {
        ("k1", "sm_80"): cubin.Figures(255, 16, 32, 4096),
        ("k2", "sm_90"): cubin.Figures(32, 0, 0, 0),
    }


# ---- machine code --------------------------------------------------------------------------------


def real_compiler() -> cubin.Compiler:
    try:
        return cubin.find_compiler()
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))


@pytest.mark.cubin
@pytest.mark.parametrize("name", CUDA_ALGORITHMS)
def test_cubins_need_no_memory_for_registers(name: str) -> None:
    """Both architectures in one fat binary; layers of real sizes, default decisions."""
    compiler = real_compiler()
    both = resolve("cuda:sm_80,sm_90")
    for w in (make(64, 64, 56, kh=3, padding=1), make(32, 32, 28, kh=3, padding=1, groups=32)):
        if CUDA_ALGORITHMS[name].inapplicable(w):
            continue
        task = Task(w, name, both)
        func = task.instantiate(task.space.default)["main"]
        _, code = gpu_codegen.generate(func, "main", both)
        image = cubin.compile_source(code.source, both.arches, compiler)
        assert {arch for _, arch in image.figures} == {"sm_80", "sm_90"}
        for kernel, figures in image.figures.items():
            assert (figures.spills, figures.stack) == (0, 0), kernel


@pytest.mark.cubin
def test_what_does_not_compile_says_why() -> None:
    with pytest.raises(BuildError, match=r"kernels.cu\(1\): error: .*nonsense"):
        cubin.compile_source("nonsense x;", ["sm_90"], real_compiler())


@pytest.mark.cuda
@pytest.mark.parametrize("task", CASES)
def test_on_the_device(task: Task) -> None:
    if not gpu.devices():
        pytest.skip("no NVIDIA GPU or driver on this machine")
    assert np.isfinite(GpuCheck(Task(task.workload, task.algorithm_name, resolve("cuda")))())


# ---- libraries -----------------------------------------------------------------------------------


@pytest.mark.emulated
def test_deployment(tmp_path: Path, servers: Callable[[], str]) -> None:
    """compile, export, load, plan, call: arrays of the host, tensors on the GPU, epilogues."""
    first, second = python(servers, "import emulator.deploy", str(tmp_path)).splitlines()
    assert first == "out is on device cpu:0, expected a GPU, as the data"
    assert second == "out has shape (2, 8, 9, 8), expected (2, 8, 9, 9)"


@pytest.mark.emulated
def test_the_operator_of_pytorch() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "emulator.operate"],
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(bool(gpu.devices()), reason="this machine has a GPU")
def test_a_library_without_its_gpu_is_one_clear_error(tmp_path: Path) -> None:
    made = Manifest("cuda -arch=sm_90", (), 1, "NCHW", {}, [])
    path = tmp_path / "x.so"
    path.write_bytes(attach(b"", [made]))
    with pytest.raises(LibraryError, match=r"for NVIDIA GPUs \(sm_90\); this machine has none"):
        load(path)


@pytest.mark.parametrize(
    ("built", "device", "runs"),
    [
        ("sm_80", "sm_80", True),
        ("sm_80", "sm_89", True),
        ("sm_89", "sm_80", False),
        ("sm_80", "sm_90", False),
        ("sm_75,sm_90", "sm_90", True),
        ("sm_100", "sm_120", False),
    ],
)
def test_which_gpu_runs_which_code(
    built: str, device: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "devices", lambda: (gpu.Gpu("a card", device, 1),))
    found = objection(f"cuda -arch={built}", "x.so")
    assert (found == "") == runs
    assert runs or f"a card, is {device}; compile it with --target cuda:{device}" in found


COMMANDS = """
import json, sys
from convtvm.cli import main
assert [main(command) for command in json.loads(sys.argv[1])] == [0, 0, 0]
"""


@pytest.mark.emulated
@pytest.mark.parametrize(("dtype", "word"), [("float16", "f16"), ("bfloat16", "bf16")])
def test_tuning(dtype: str, word: str, tmp_path: Path, servers: Callable[[], str]) -> None:
    """convtvm tune, compile and run in 16 bits, in one process that has the emulated GPU."""
    log = tmp_path / "x.jsonl"
    workload = "mb1ic3ih5oc8oh5kh3ph1"
    options = ["--target", "cuda", "--log", str(log), "--dtype", dtype]
    commands = [
        ["tune", workload, "--trials", "1", "--algorithms", "direct", *options],
        ["compile", workload, "-o", f"{tmp_path}/x.so", *options],
        ["run", f"{tmp_path}/x.so", "--check", "--outputs", f"{tmp_path}/out.npz"],
    ]
    python(servers, COMMANDS, json.dumps(commands))
    made, problems = records.load([log])
    assert not problems and made and all(r.run_secs for r in made), made
    assert all(r.workload.endswith(f"_{word}") and r.max_error < ROUNDING[dtype] for r in made)
    out = np.load(tmp_path / "out.npz")["out"]  # NumPy's files have no bfloat16
    assert out.dtype == (np.float16 if dtype == "float16" else np.float32)
    assert {(r.target, r.device) for r in made} == {("cuda -arch=sm_90", "emulated GPU")}


def test_blocked_layouts_are_for_cpus() -> None:
    with pytest.raises(WorkloadError, match="layout NCHW8c is for CPUs; on a GPU expected NCHW"):
        tasks_of([SHAPES["3x3"]], TARGET, "NCHW8c")
