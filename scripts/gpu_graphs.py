"""The step `graphs` of scripts/gpu_check: models of PyTorch through the backend, on the device.

    python scripts/gpu_graphs.py [--log FILE] [--seconds S] [--cases resnet50,fp16 ...]

Each model and precision has a process of its own, so that one that ends badly takes no other along.
First all of them compile and compare at the same time, which takes the processor's cores; then one
after another measures, what it has compiled by then.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from gpu_graph_case import MODELS, PRECISIONS  # noqa: E402

# Of bfloat16 only the small model with all checks: its kernels are those of float16.
CASES = [(m, p) for m in MODELS for p in PRECISIONS if p != "bf16" or m == "blocks"]
SHARE = 0.6  # of the time, for compiling and comparing


def graphs(log: Path, seconds: float = 300) -> dict[str, dict[str, Any]]:
    """A row for each model, precision and batch; nothing without a GPU that PyTorch has."""
    try:
        import torch
    except ImportError:
        return {}
    return run_cases(CASES, log, seconds) if torch.cuda.is_available() else {}


def run_cases(
    cases: Sequence[tuple[str, str]], log: Path, seconds: float
) -> dict[str, dict[str, Any]]:
    """Start a process for each case, and let them measure in turn as long as there is time."""
    started, rows = time.monotonic(), dict[str, dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        running = [Process(case, log, Path(folder)) for case in cases]
        try:
            for process in running:
                process.wait_until_ready(started + SHARE * seconds)
            for number, process in enumerate(running):
                left = max(0.0, started + seconds - time.monotonic())
                process.measure(left / (len(running) - number))
        finally:
            for process in running:
                rows |= process.end()
    for label, row in rows.items():
        print_row(label, row)
    return rows


class Process:
    """A case in a process of its own; it leaves its rows in a file, written again and again."""

    def __init__(self, case: tuple[str, str], log: Path, folder: Path) -> None:
        self.label = " ".join(case)
        self.rows, self.output = folder / f"{self.label}.json", folder / f"{self.label}.txt"
        # One process of many that compile at the same time.
        environment = {"TORCHINDUCTOR_COMPILE_THREADS": "4", **os.environ}
        command = [sys.executable, ROOT / "scripts" / "gpu_graph_case.py", *case, log]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*command, self.rows],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                text=True,
            )

    def wait_until_ready(self, end: float) -> None:
        while time.monotonic() < end and self.process.poll() is None:
            if self._read().get("ready"):
                return
            time.sleep(0.2)

    def measure(self, seconds: float) -> None:
        """Let it measure, even if it has to leave out what is not compiled by now."""
        assert self.process.stdin is not None
        with suppress(subprocess.TimeoutExpired, BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            self.process.wait(seconds)

    def end(self) -> dict[str, dict[str, Any]]:
        """Its rows so far; one that says so if it failed or had no time."""
        status = self.process.poll()
        if status is None:
            self.process.kill()
        self.process.wait()
        rows = self._read().get("rows", {})
        if status:
            tail = self.output.read_text(errors="replace")[-3000:]
            rows[self.label] = {"wrong": {"process": f"ended with {status}"}, "output": tail}
        elif status is None or not rows:
            rows.setdefault(self.label, {"wrong": {}})["unfinished"] = "there was no time for it"
        return rows

    def _read(self) -> dict[str, Any]:
        return json.loads(self.rows.read_text()) if self.rows.exists() else {}


def print_row(label: str, row: dict[str, Any]) -> None:
    print(f"{label}: " + (f"wrong: {row['wrong']}" if row["wrong"] else "right"))
    for name in ("errors", "ms", "device ms", "compile s", "unfinished"):
        if row.get(name):
            print(f"    {name}: {row[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--log", type=Path, default=ROOT / "build" / "gpu_check" / "tuning.jsonl")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--cases", nargs="*", default=[",".join(case) for case in CASES])
    parser.add_argument("--rows", type=Path, help="a JSON file for what was found")
    options = parser.parse_args()
    cases = [tuple(case.split(",")) for case in options.cases]
    rows = run_cases(cases, options.log, options.seconds)
    if options.rows:
        options.rows.write_text(json.dumps(rows, indent=1))
    sys.exit(any(row["wrong"] for row in rows.values()))


if __name__ == "__main__":
    main()
