"""Libraries for aarch64 made on another machine: right under an emulator, else refused."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tvm_ffi.libinfo
from support import LONG

from convtvm.dispatch import KernelLibrary, load
from convtvm.dispatch.manifest import Kernel
from convtvm.errors import BuildError, LibraryError
from convtvm.kernels import codegen
from convtvm.library.build import compile
from convtvm.measure.verify import EXACT_FAMILIES
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.workload import ConvWorkload

DRIVER = Path(__file__).with_name("aarch64_driver.c")
WORKLOADS = [
    ConvWorkload.parse(text)
    for text in (
        "mb1ic5ih9iw7oc6oh9ow7kh3kw3ph1pw1",  # fewer channels than a vector would like
        "mb2ic12ih16oc20oh16kh3ph1",  # a workspace; vectors with a tail
        "mb1ic8ih13oc8oh5kh5sh2",
        "g6mb1ic6ih11oc6oh11kh3ph1",
    )
]

ALGORITHMS = ("direct", "im2col", "mec", "winograd:4")

foreign = pytest.mark.skipif(
    platform.machine() == "aarch64" or not shutil.which("aarch64-linux-gnu-ld"),
    reason="needs another kind of machine and aarch64-linux-gnu-ld (binutils-aarch64-linux-gnu)",
)


def emulator() -> str | None:
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    return compile(WORKLOADS, "aarch64", threads=1, logs=[], keep="all", algorithms=ALGORITHMS)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Sequence[str]:
    """The command that runs a kernel in the emulator."""
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if not compiler or not emulator():
        pytest.skip("needs qemu-aarch64 and aarch64-linux-gnu-gcc (qemu-user, gcc-aarch64-*)")
    program = tmp_path_factory.mktemp("driver") / "driver"
    include = f"-I{tvm_ffi.libinfo.find_include_path()}"
    command = [compiler, "-O1", "-rdynamic", include, str(DRIVER), "-o", str(program), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the driver does not compile: {done.stderr.splitlines()[0]}")
    return [str(emulator()), "-L", "/usr/aarch64-linux-gnu", str(program)]


def run(driver: Sequence[str], path: Path, w: ConvWorkload, kernel: Kernel) -> np.ndarray:
    shapes = [w.data_shape("NCHW"), w.weight_shape, kernel.packed_shape, (w.oc,)]
    texts = ["x".join(map(str, shape)) for shape in (*shapes, w.out_shape("NCHW"))]
    command = [*driver, str(path), str(path.parent), kernel.pack, kernel.function, *texts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stderr
    out = np.fromfile(path.parent / "out", np.float32)
    return out.reshape(w.out_shape("NCHW"))


@foreign
def test_every_kernel_is_right_under_an_emulator(
    library: KernelLibrary, driver: Sequence[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.so"
    library.export(path)
    tolerances = {"direct": 0.0, "im2col": 0.0, "mec": 0.0, "winograd": 5e-4}
    seen = set()
    for w in WORKLOADS:
        for kernel in (k for k in library.manifest.kernels if k.workload == w.key):
            family = kernel.algorithm.partition(":")[0]
            exact = family in EXACT_FAMILIES
            data, weight, bias = random_inputs(w, 3, "NCHW", "integer" if exact else "normal")
            for name, array in (("data", data), ("weight", weight), ("bias", bias)):
                array.tofile(tmp_path / name)
            reference = conv2d_reference(w, data, weight, bias, "NCHW")
            error = relative_error(run(driver, path, w, kernel), reference)
            assert error <= tolerances[family], (w.key, kernel.algorithm, error)
            seen.add(kernel.algorithm)
    assert {"direct", "direct:depthwise", "im2col", "mec:a", "mec:b", "winograd:4"} <= seen


@foreign
def test_it_runs_elsewhere_only(library: KernelLibrary, tmp_path: Path) -> None:
    path, w = tmp_path / "x.so", WORKLOADS[0]
    library.export(path)
    assert path.read_bytes()[18] == 0xB7  # e_machine: AArch64
    assert {c.decisions for c in library.candidates(w)} == {"default"}
    weight = np.zeros(w.weight_shape, np.float32)
    for attempt in (lambda: library.plan(w, weight), lambda: load(path)):
        with pytest.raises(LibraryError, match=r"compiled for .*aarch64.*; this machine is "):
            attempt()


@pytest.mark.parametrize(
    ("triple", "hint"),
    [
        ("aarch64-linux-gnu", "binutils-aarch64-linux-gnu"),
        ("x86_64-linux-gnu", "binutils-x86-64-linux-gnu"),
    ],
)
def test_no_linker(monkeypatch: pytest.MonkeyPatch, triple: str, hint: str) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    machine = triple.split("-")[0]
    names = f"{machine}-linux-gnu-ld or ld.lld not found"
    with pytest.raises(BuildError, match=f"no linker for {machine}: {names}; install {hint}"):
        codegen.linker(triple)


def test_compile_refuses_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match="no linker for"):
        compile(WORKLOADS, "aarch64", threads=1, logs=[])
