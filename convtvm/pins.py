"""The versions that work, checked when convtvm is imported: before TVM can be loaded."""

from __future__ import annotations

import sys
from pathlib import Path

from convtvm.errors import EnvironmentProblem

# Newer tvm-ffi releases satisfy TVM's own requirement and crash it (MetaSchedule segfaults).
PINS = {"apache-tvm-ffi": "0.1.14.post0", "apache-tvm": "0.27.0.post1"}


def check_pins() -> None:
    """Raise EnvironmentProblem if an installed package is not the version that works."""
    if (Path(__file__).parents[1] / "lib" / "libtvm_runtime.so").exists():
        return  # a deployment folder has its own, and starts without the search (30 ms)
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


def check_pins_or_exit() -> None:
    """check_pins, but a user of the command line gets one line and exit status 2."""
    try:
        check_pins()
    except EnvironmentProblem as problem:
        if Path(sys.argv[0]).name not in ("convtvm", "-m"):
            raise
        print(f"convtvm: error: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
