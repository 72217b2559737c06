"""The commit that this convtvm is of, in an installed one written down when it was built; the
versions of what it stands on."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

FILE = "COMMIT"  # beside this module in wheels and source distributions, never in a checkout
# What a person would call it -> distributions that have it, the usual one first.
PACKAGES = {
    "apache-tvm": ("apache-tvm",),
    "tvm-ffi": ("apache-tvm-ffi",),
    "numpy": ("numpy",),
    "xgboost": ("xgboost-cpu", "xgboost"),
}


def commit() -> str:
    """Its short hash, with `-dirty` behind it where files had changed; empty if nobody knows."""
    home = Path(__file__).parent
    try:
        return (home / FILE).read_text("utf8").strip()
    except OSError:
        return checked_out(home.parent)


def checked_out(root: Path) -> str:
    """The commit of the checkout at `root`; empty where there is none, or no git."""
    if not (root / ".git").exists():  # git would go on to look in the folders above
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def with_commit(version: str) -> str:
    """`0.1.0 (1a2b3c4)`, or the version alone."""
    found = commit()
    return f"{version} ({found})" if found else version


def versions(version: str, others: Iterable[str] = ()) -> dict[str, str | None]:
    """That of convtvm, which is `version`, with its commit, of Python, of PACKAGES and of other
    distributions; None for what is not installed."""
    found: dict[str, str | None] = {
        "convtvm": with_commit(version),
        "Python": platform.python_version(),
    }
    wanted = {**PACKAGES, **{name: (name,) for name in others}}
    return found | {name: _installed(choice) for name, choice in wanted.items()}


def _installed(distributions: Iterable[str]) -> str | None:
    """The version of the first of them that is here."""
    from importlib import metadata

    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
