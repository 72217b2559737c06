"""Wheel and source distribution of this checkout, the wheel out of the source distribution.

python scripts/build_packages.py FOLDER
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BACKEND = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


def build(source: Path, kind: str, folder: Path) -> Path:
    """`build_sdist` or `build_wheel`, called as pip calls them; the file that it made."""
    done = subprocess.run(
        [sys.executable, "-c", _BACKEND, kind, str(folder)],
        cwd=source,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stdout}{done.stderr}")
    return folder / done.stdout.split()[-1]


def _git(*args: str) -> str:
    return subprocess.run(["git", *args], capture_output=True, text=True, check=True).stdout


def _copy(place: Path) -> Path:
    """A clone with the files as they are here, committed or not."""
    _git("clone", "-q", "--shared", str(ROOT), str(place))
    for name in filter(None, _git("-C", str(place), "ls-files", "-z").split("\0")):
        (place / name).unlink()
    listed = _git("-C", str(ROOT), "ls-files", "-coz", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    return place


def build_both(folder: Path) -> tuple[Path, Path]:
    """(source distribution, wheel) in `folder`; nothing is written into the checkout."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = _copy(Path(scratch, "copy"))
        sdist = build(copy, "build_sdist", folder)
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        source = Path(scratch, sdist.name.removesuffix(".tar.gz"))
        return sdist, build(source, "build_wheel", folder)


if __name__ == "__main__":
    for made in build_both(Path(sys.argv[1]).resolve()):
        print(f"{made}: {made.stat().st_size:,} bytes")
