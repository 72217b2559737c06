"""CUDA source to machine code, with no GPU and no driver: by nvcc, else by NVRTC.

The image of one architecture is a cubin, of several a fat binary; the driver loads either. Register
counts and spills come from ptxas, whose log both compilers hand on.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from convtvm.errors import BuildError, EnvironmentProblem
from convtvm.kernels.cuda import nvrtc

# Exact division and square roots, denormals kept: an answer means the same as on a CPU. ptxas fuses
# multiply-adds, as LLVM does. Warning 177: TVM declares temporaries that nothing uses.
_NVCC_OPTIONS = ("-O3", "-std=c++17", "-diag-suppress=177", "-Xptxas=-v")


@dataclass(frozen=True)
class Figures:
    """What ptxas says of one kernel: registers and bytes of a thread, static shared bytes of a
    block. `stack` holds what cannot be in registers, `spills` what did not fit (stores and
    loads)."""

    registers: int
    stack: int
    spills: int
    shared: int


@dataclass(frozen=True)
class Image:
    """Machine code of the kernels of one source, and the figures of (kernel, architecture)."""

    data: bytes
    format: str  # as TVM's loader calls it: cubin or fatbin
    figures: Mapping[tuple[str, str], Figures]


class Compiler(Protocol):
    """Compiles CUDA source for some architectures; raises BuildError with the first complaint."""

    name: str

    @property
    def identity(self) -> str:
        """Which compiler of that name: what it makes may differ from another's."""

    def __call__(self, source: str, arches: Sequence[str]) -> tuple[bytes, str]:
        """(image, log of ptxas)"""


def compile_source(source: str, arches: Sequence[str], compiler: Compiler | None = None) -> Image:
    """The image of `source` for `arches`.

    Raises EnvironmentProblem without a compiler, BuildError if the source does not compile.
    """
    data, log = (compiler or find_compiler())(source, arches)
    return Image(data, "cubin" if len(arches) == 1 else "fatbin", ptxas_figures(log))


def find_compiler() -> Compiler:
    """The nvcc that the environment variable CONVTVM_NVCC names, else NVRTC, else nvcc of the PATH,
    of CUDA_HOME or of the usual folder. NVRTC makes the same code in a tenth of the time.

    Raises EnvironmentProblem if there is none.
    """
    named = os.environ.get("CONVTVM_NVCC")
    if named:
        return Nvcc(named)
    if nvrtc.is_available():
        return nvrtc.Nvrtc()
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc") or shutil.which(str(Path(home, "bin", "nvcc")))
    if nvcc:
        return Nvcc(nvcc)
    raise EnvironmentProblem(
        "no CUDA compiler: neither NVRTC nor nvcc in the PATH; `pip install convtvm[cuda]` or "
        "install the CUDA toolkit"
    )


def compiler_identity() -> str:
    """Of the compiler that `find_compiler` finds; empty without one."""
    try:
        return find_compiler().identity
    except (EnvironmentProblem, OSError):
        return ""


class Nvcc:
    """The toolkit's compiler at `path`."""

    name = "nvcc"

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def identity(self) -> str:
        return f"{self.path} of {os.stat(self.path).st_mtime_ns}"

    def __call__(self, source: str, arches: Sequence[str]) -> tuple[bytes, str]:
        targets = [
            f"-gencode=arch={arch.replace('sm_', 'compute_')},code={arch}" for arch in arches
        ]
        kind = "cubin" if len(arches) == 1 else "fatbin"
        with tempfile.TemporaryDirectory(prefix="convtvm-") as folder:
            Path(folder, "kernels.cu").write_text(source, encoding="utf8")
            files = ["-o", "kernels.image", "kernels.cu"]
            try:
                done = subprocess.run(
                    [self.path, f"--{kind}", *targets, *_NVCC_OPTIONS, *files],
                    capture_output=True,
                    text=True,
                    check=False,
                    cwd=folder,
                )
            except OSError as error:
                raise EnvironmentProblem(f"cannot run {self.path}: {error.strerror}") from None
            log = done.stdout + done.stderr
            if done.returncode:
                raise BuildError(f"nvcc failed: {first_error(log)}")
            return Path(folder, "kernels.image").read_bytes(), log


def first_error(log: str) -> str:
    """The first line of a compiler's log that says error, else its first line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    wrong = [line for line in lines if "error" in line or "fatal" in line]
    return (wrong or lines or ["no message"])[0]


def ptxas_figures(log: str) -> dict[tuple[str, str], Figures]:
    """(kernel, architecture) -> figures, from the log of `ptxas -v`."""
    entry = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
    memory = re.compile(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill load"
    )
    figures = {}
    for part in re.split(r"(?=Compiling entry function)", log):
        name, frame = entry.search(part), memory.search(part)
        used = re.search(r"Used (\d+) registers", part)
        if name and used:
            stack, stores, loads = map(int, frame.groups()) if frame else (0, 0, 0)
            shared = re.search(r"(\d+) bytes smem", part)
            figures[name[1], name[2]] = Figures(
                int(used[1]), stack, stores + loads, int(shared[1]) if shared else 0
            )
    return figures
