"""Uses an installed convtvm as a newcomer would: tune, compile, run, deploy, report.

    python scripts/smoke.py BIN [--quick]      BIN has `convtvm` and `python`

Runs in a new folder, and stops at the first command that fails or says too little. `--quick` leaves
out what tunes. At the end the seconds of an import and of --help, each the best of several.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYER = "mb1ic8ih14oc16oh14kh3ph1"
Step = tuple[str, str]
# Each command with what its output holds.
STEPS: list[Step] = [
    ("convtvm --version", r"convtvm, version \d+\.\d+\.\d+ \([0-9a-f]{7,}"),
    ("convtvm info", "native target"),
    (f"convtvm tune {LAYER} --threads 1 --algorithms direct --trials 2 --log x.jsonl", "trial"),
    ("convtvm log check x.jsonl", ""),
    (f"convtvm compile {LAYER} --threads 1 --log x.jsonl -o x.so", "direct"),
    ("convtvm run x.so --check --repeat 3", "direct"),
    ("convtvm deploy x.so -o folder", "example.py"),
    ("python folder/example.py", r"\d"),
    ("convtvm report x.jsonl --library x.so -o report.html", "records"),
    (f"convtvm compile {LAYER} --threads 1 --algorithms direct -o shipped.so", "direct"),
]

# What has to be quick: no compiler is loaded for it.
STARTS: list[Step] = [
    ("python -c pass", ""),
    ("python -c 'import convtvm'", ""),
    ("convtvm --help", "tune"),
]
_RUNS = 7


def quick() -> list[Step]:
    """The steps that need no tuning and no other package."""
    return [STEPS[0], STEPS[-1], ("convtvm run shipped.so --check", "direct")]


def run(step: Step, binaries: Path, folder: Path, **environment: str) -> None:
    """Raises AssertionError if the command fails, or says too little."""
    command, expected = step
    path = f"{binaries.resolve()}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shlex.split(command),
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    if done.returncode or not re.search(expected, said):
        raise AssertionError(f"{command}: status {done.returncode}\n{said}")


def seconds(step: Step, binaries: Path, folder: Path) -> float:
    """The best of several runs, the first of which writes Python's caches."""
    taken = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        run(step, binaries, folder)
        taken.append(time.perf_counter() - started)
    return min(taken)


def main() -> None:
    binaries, steps = Path(sys.argv[1]), quick() if "--quick" in sys.argv else STEPS
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            run(step, binaries, Path(folder), CONVTVM_CACHE=f"{folder}/cache")
            print(f"ok: {step[0]}", flush=True)
        for step in STARTS:
            print(f"{step[0]}: {seconds(step, binaries, Path(folder)):.2f} s", flush=True)


if __name__ == "__main__":
    main()
