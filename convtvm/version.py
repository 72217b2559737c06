"""The commit that this convtvm is of: in an installed one written down when it was built."""

from __future__ import annotations

import subprocess
from pathlib import Path

FILE = "COMMIT"  # beside this module in wheels and source distributions, never in a checkout


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
