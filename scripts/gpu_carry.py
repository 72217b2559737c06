"""Bring convtvm's dependencies to a machine without a network: two files, with what git tracks
below 64 MiB, so that all of it can be taken there at once.

    python scripts/gpu_carry.py pack     # here: build/carry/compiler.tar.xz, packages.tar.xz
    python scripts/gpu_carry.py unpack   # there: prints the folder for PYTHONPATH

For Linux on x86-64 and Python 3.12, with a PyTorch there that brings numpy, NVRTC and the CUDA run
time. TVM's compiler library, 270 MB, fits when it is stripped and compressed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CARRY = ROOT / "build" / "carry"
LIMIT = 64 << 20  # bytes of these files and of the checkout
COMPILER = "libtvm_compiler.so"
# Not carried: what machines with PyTorch have, which `unpack` looks for, and what builds packages.
PRESENT = {
    "click": "click",
    "cloudpickle": "cloudpickle",
    "markdown-it-py": "markdown_it",
    "mdurl": "mdurl",
    "ml-dtypes": "ml_dtypes",
    "numpy": "numpy",
    "psutil": "psutil",
    "pygments": "pygments",
    "rich": "rich",
    "scipy": "scipy",
    "setuptools": "",
    "typing-extensions": "typing_extensions",
}
UNUSED = {"3rdparty", "__pycache__", "cmake", "include", "sboms", "src", "tests", "web"}
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64")


def pack() -> None:
    CARRY.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        wheels, site = Path(work, "wheels"), Path(work, "site")
        options = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "-q"]
        options += [f"--platform={name}" for name in PLATFORMS]
        command = [sys.executable, "-m", "pip", "download", *options, "-d", str(wheels)]
        subprocess.run([*command, *_requirements()], check=True)
        for wheel in wheels.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(site)
        compiler = next(site.rglob(COMPILER))
        subprocess.run(["strip", "--strip-unneeded", str(compiler)], check=True)
        _archive(CARRY / "compiler.tar.xz", site, [compiler])
        files = [p for p in site.rglob("*") if p.is_file() and p != compiler]
        others = [p for p in files if _is_needed(p.relative_to(site))]
        _archive(CARRY / "packages.tar.xz", site, others)
    carried = sum(path.stat().st_size for path in CARRY.glob("*.tar.xz"))
    if carried + (tracked := tracked_bytes()) > LIMIT:
        sizes = " and ".join(f"{size / (1 << 20):.1f} MiB" for size in (carried, tracked))
        sys.exit(f"{CARRY} and the checkout have {sizes}, expected at most {LIMIT >> 20} in all")


def tracked_bytes() -> int:
    """Of the files that git tracks, which go along."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return sum(path.stat().st_size for path in paths if path.is_file())


def _requirements() -> list[str]:
    """The pins of the lock that hold for Linux and Python 3.12."""
    pins = []
    for line in (ROOT / "requirements.lock").read_text(encoding="utf8").splitlines():
        pin, _, condition = line.partition(";")
        name = re.split("==", pin.strip())[0]
        foreign = '< "3.11"' in condition or name == "xgboost"
        if name and not name.startswith("#") and name not in PRESENT and not foreign:
            pins.append(pin.strip())
    return pins


def _is_needed(path: Path) -> bool:
    """Not tests, headers and sources that nothing imports, by the path among the packages."""
    sources = (".c", ".cc", ".h", ".pxi", ".pyx")
    return not UNUSED & set(path.parts) and path.suffix not in sources


def _archive(target: Path, site: Path, files: list[Path]) -> None:
    paths = "\n".join(str(p.relative_to(site)) for p in sorted(files))
    filters = "xz --x86 --lzma2=preset=9e,dict=256MiB"  # code of this machine; minutes, once
    command = ["tar", "-C", str(site), "-I", filters, "-cf", str(target), "-T", "-"]
    subprocess.run(command, input=paths, text=True, check=True)
    print(f"{target}: {target.stat().st_size / (1 << 20):.1f} MiB")


def unpack() -> None:
    site = CARRY / "site"
    if not site.exists():
        for archive in sorted(CARRY.glob("*.tar.xz")):
            with tarfile.open(archive) as file:
                file.extractall(site, filter="data")
    sys.path.insert(0, str(site))
    missing = [name for name, module in PRESENT.items() if module and not find_spec(module)]
    if missing:
        sys.exit(f"not carried and not here: {', '.join(missing)}; take them out of PRESENT")
    print(site)


if __name__ == "__main__":
    steps = {"pack": pack, "unpack": unpack}
    if len(sys.argv) != 2 or sys.argv[1] not in steps:
        sys.exit(f"usage: {sys.argv[0]} pack | unpack")
    steps[sys.argv[1]]()
