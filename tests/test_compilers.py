"""Both compilers of CUDA source take what any template makes of any dtype and vector width.

NVRTC is given headers of ours (convtvm/kernels/cuda/nvrtc.py), nvcc has the toolkit's own.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from tvm import tirx

from convtvm.kernels.cuda import codegen as gpu_codegen
from convtvm.kernels.cuda import cubin, nvrtc
from convtvm.kernels.cuda.algorithms import CUDA_ALGORITHMS
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.problem.dtypes import HALVES
from convtvm.problem.workload import ConvWorkload

make = ConvWorkload.make
TARGET = resolve("cuda:sm_90")
WIDTHS = (1, 2, 4, 8)  # channels of a group: what lies together, and so how wide loads can be
DTYPES = ("float32", "float16", "bfloat16")


def shapes(width: int, dtype: str) -> Iterator[ConvWorkload]:
    for w in (
        make(width, 2 * width, 9, kh=3, padding=1),
        make(3 * width, 6 * width, 8, 6, 3, 1, groups=3, n=2),
        make(8 * width, 8 * width, 8, kh=3, groups=8 * width),
    ):
        yield replace(w, dtype=dtype)


CASES = [
    (name, dtype)
    for name in CUDA_ALGORITHMS
    for dtype in DTYPES
    if any(not CUDA_ALGORITHMS[name].inapplicable(w) for w in shapes(4, dtype))
]
QUICKLY = ["--device-debug"], ["-Xcicc", "-O0"]  # what is asked is whether it compiles


def functions(name: str, dtype: str) -> dict[str, tirx.PrimFunc]:
    """Kernels of one row under names that say what they are: defaults and drawn decisions in turn.

    In float32 vectors are CUDA's own types, so one shape does for a width and layout.
    """
    draw, made = random.Random(f"{name} {dtype}"), {}
    for width in WIDTHS:
        fitting = [w for w in shapes(width, dtype) if not CUDA_ALGORITHMS[name].inapplicable(w)]
        for layout in ("NCHW", "NHWC"):
            some = fitting if dtype in HALVES else draw.sample(fitting, min(1, len(fitting)))
            for i, w in enumerate(some):
                task = Task(w, name, TARGET, layout)
                drawn = len(made) % 2
                decisions = draw.choice(task.space.points) if drawn else task.space.default
                symbol = f"{layout}_{width}_{i}_{'drawn' if drawn else 'default'}"
                made[symbol] = task.instantiate(decisions)["main"]
    return made


@cache
def source(name: str, dtype: str) -> str:
    """One source with all kernels of a row."""
    return gpu_codegen.generate_all(functions(name, dtype), TARGET)[1].source


@pytest.mark.cubin
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_nvrtc(name: str, dtype: str) -> None:
    if not nvrtc.is_available():
        pytest.skip("NVRTC is not installed")
    options = ["--gpu-architecture=compute_90", "--std=c++17", "-default-device", *QUICKLY[0]]
    ptx, _ = nvrtc.compile_program(source(name, dtype), options, "PTX")
    assert ptx.count(b".entry") >= source(name, dtype).count("__launch_bounds__") // 2


@pytest.mark.cubin
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_nvcc(name: str, dtype: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("no nvcc in the PATH")
    file, ptx = tmp_path / "kernels.cu", tmp_path / "kernels.ptx"
    file.write_text(source(name, dtype), encoding="utf8")
    command = [nvcc, "-ptx", "-arch=compute_90", "-std=c++17", *QUICKLY[1], "-o", ptx, file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, cubin.first_error(done.stdout + done.stderr)
