"""The versions that work, checked when convtvm is imported: before TVM can be loaded."""

from __future__ import annotations

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from convtvm.errors import EnvironmentProblem

# Newer tvm-ffi releases satisfy TVM's own requirement and crash it (MetaSchedule segfaults).
PINS = {"apache-tvm-ffi": "0.1.14.post0", "apache-tvm": "0.27.0.post1"}


def check_pins() -> None:
    """Raise EnvironmentProblem if an installed package is not the version that works."""
    folder = Path(__file__).parents[1]
    if (folder / "lib" / "libtvm_runtime.so").exists():
        _check_deployed(folder)  # it has its own, and starts without the search (30 ms)
        return
    from importlib import metadata

    for package, pinned in PINS.items():
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # a run-time-only installation has no compiler
        if found != pinned:
            raise EnvironmentProblem(
                f"{package} {found} is installed, but convtvm needs {pinned}: "
                f"pip install {package}=={pinned}"
            )


def _check_deployed(folder: Path) -> None:
    """Raise EnvironmentProblem unless a deployment folder is whole and for this Python."""
    ffi = folder / "tvm_ffi"
    if not any((ffi / f"core{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
        made = [path.name.split(".")[1] for path in ffi.glob("core.*.so")]
        raise EnvironmentProblem(
            f"{folder} is for {', '.join(made) or 'no Python at all'}, and this is "
            f"{sys.implementation.cache_tag} on {os.uname().machine}; use that one, or deploy again"
        )
    library = ffi / "lib" / "libtvm_ffi.so"
    if not library.is_file():
        raise EnvironmentProblem(f"{library} is missing; copy the folder again, with all it holds")


def check_pins_or_exit() -> None:
    """check_pins, but a user of the command line gets one line and exit status 2."""
    try:
        check_pins()
    except EnvironmentProblem as problem:
        if Path(sys.argv[0]).name not in ("convtvm", "-m"):
            raise
        print(f"convtvm: error: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
