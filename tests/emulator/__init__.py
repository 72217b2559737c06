"""An NVIDIA GPU emulated on the CPU: TVM's generated CUDA runs, checked, where there is no GPU.

A stand-in for the driver (`driver.cc`, `runtime.cc`) and one for nvcc (`nvcc`, with `translate.py`
and `device.h`) are put where TVM's CUDA run time and convtvm look for the real ones. All else is
the product's own: host code, launch parameters, image loading, tuning, export.

What it sees: a missing barrier, a barrier that some threads skip, registers of another thread,
memory that was never written (NaN) or not yet copied, addresses beyond a buffer's end, misaligned
vectors. What it does not: speed, register and shared memory limits, 48 KB of static memory. What
warps ask of memory it counts (`accesses.py`): conflicts of banks, sectors of requests.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

from warm import beginning

from convtvm.measure.client import Zygote
from convtvm.measure.gpu_verify import GpuCheck
from convtvm.measure.jobs import Limits
from emulator.translate import OPTIONS

HOME = Path(__file__).resolve().parent
ORDERS = ("forward", "reverse", "random")


@cache
def libraries() -> Path:
    """The folder with libcuda.so.1, libcudart.so.13 and device.h compiled in advance.

    Built once for all processes that have the same folder EMULATOR_SHARED in their environment, as
    those of a run of tests do; else once a process.
    """
    shared = Path(os.environ.get("EMULATOR_SHARED") or tempfile.mkdtemp(prefix="emulator-"))
    folder = shared / "emulator"
    with (shared / "emulator.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            made = Path(tempfile.mkdtemp(dir=shared))
            _build(made)
            made.rename(folder)
    return folder


def _build(folder: Path) -> None:
    versions = folder / "libcudart.map"
    versions.write_text("libcudart.so.13 { global: *; };\n", encoding="utf8")
    for name, sources, options in (
        ("libcuda.so.1", ("driver.cc", "accesses.cc"), ["-ldl"]),
        (
            "libcudart.so.13",
            ("runtime.cc",),
            [f"-Wl,--version-script={versions}", f"{folder}/libcuda.so.1"],
        ),
    ):
        command = ["g++", "-O1", "-std=c++17", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
        command += [*(str(HOME / s) for s in sources), "-o", str(folder / name), *options]
        subprocess.run(command, check=True)
    header = ["-x", "c++-header", str(HOME / "device.h"), "-o", str(folder / "device.h.gch")]
    subprocess.run(["g++", *OPTIONS, *header], check=True)


def environment(order: str = "random") -> dict[str, str]:
    """Environment variables under which a new process finds the emulated GPU and compiler."""
    folder = str(libraries())
    path = os.pathsep.join(filter(None, (folder, os.environ.get("LD_LIBRARY_PATH"))))
    return {
        "LD_LIBRARY_PATH": path,
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(HOME.parent), os.environ.get("PYTHONPATH")))
        ),
        "CONVTVM_NVCC": str(HOME / "nvcc"),
        "EMULATOR_LIBRARIES": folder,
        "EMULATOR_ORDER": order,
    }


@contextmanager
def emulated(order: str = "random") -> Iterator[Zygote]:
    """A Zygote that builds for and runs on the emulated GPU; `order` is that of the threads."""
    with patch.dict(os.environ, environment(order)):
        zygote = Zygote()
    with zygote:
        yield zygote


def python(server: Callable[[], str], code: str, *arguments: str) -> str:
    """What a program prints in a process of its own with the emulated GPU and without PyTorch,
    forked from the server that the fixture `servers` gives; it has to end well."""
    with patch.dict(os.environ, environment()):
        command = [*beginning(server()), "--code", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def problems(checks: Sequence[GpuCheck], zygote: Zygote) -> list[str]:
    """Run every check, each in the same child until one crashes; what is wrong with each, or ""."""
    outcomes = dict(zygote.call("run", checks, Limits(timeout=600.0)))
    return [f"{o.kind} {o.message}".strip() for _, o in sorted(outcomes.items())]
