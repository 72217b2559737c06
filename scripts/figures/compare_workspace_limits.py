"""The MEC paper's layers cv1..cv12 under a workspace limit from nothing upward: choice and time.

    python scripts/figures/compare_workspace_limits.py [--log FILE ...] [--layers 4,9,12]
        [--threads N] [--policy measure] [--repeat N]

Every layer is compiled with all its algorithms, by the records of the logs (without any: those
that came with convtvm). The choice can change only where a kernel begins to fit, so it is made just
below and at the workspace of each, and every kernel that is ever chosen runs in a fresh process.
The table has a line for each limit from which on the choice is another one: what the kernel states,
what the process grew by in its first call, and the median time of a call. The exit status is 1 if
either of the two exceeds the limit (1 MiB of growth is allowed for all else), 3 after a noisy run.

Quoted by docs/algorithms.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sheet import Sheet, main, parser_of

import convtvm
from convtvm.dispatch import KernelLibrary
from convtvm.errors import NoCandidate
from convtvm.machine.targets import resolve
from convtvm.measure.timing import Timing
from convtvm.problem.sources import read_source

# Every page of the arrays is there before the first call; what it adds is the kernel's.
CHILD = """
import json, os, sys, time
sys.modules["torch"] = None
import numpy as np
import convtvm

path, key, limit, algorithm, repeat = sys.argv[1:]
library = convtvm.load(path)
w = convtvm.ConvWorkload.parse(key)
random = np.random.default_rng(0)
data = random.standard_normal(w.data_shape(), np.float32)
weight = random.standard_normal(w.weight_shape, np.float32)
plan = library.plan(w, weight, algorithm=algorithm, workspace_limit=int(limit))
out = np.full(w.out_shape(), np.nan, np.float32)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

before = resident()
plan(data, out=out)
grown = resident() - before
secs = []
for _ in range(int(repeat)):
    started = time.perf_counter()
    plan(data, out=out)
    secs.append(time.perf_counter() - started)
assert np.isfinite(out).all()
print(json.dumps([plan.workspace_bytes, grown, secs]))
"""
_SLACK = 1 << 20  # thread pool, page rounding, code that is read in


@dataclass(frozen=True)
class Step:
    """The choice for limits from `limit` on; None if nothing fits."""

    limit: int
    algorithm: str | None


def steps(library: KernelLibrary, w: convtvm.ConvWorkload, policy: str) -> list[Step]:
    """Every change of the choice, from limit 0 upward."""
    weight = np.ones(w.weight_shape, np.float32)
    sizes = sorted({c.workspace_bytes for c in library.candidates(w)})
    found: list[Step] = []
    # Upward: what `measure` has timed for smaller limits stays in the race.
    for limit in sorted({0, *sizes, *(size - 1 for size in sizes if size)}):
        algorithm = None
        with contextlib.suppress(NoCandidate):
            algorithm = library.plan(w, weight, workspace_limit=limit, policy=policy).algorithm
        if not found or algorithm != found[-1].algorithm:
            found.append(Step(limit, algorithm))
    return found


def run(
    library: Path, w: convtvm.ConvWorkload, step: Step, repeat: int
) -> tuple[int, int, list[float]]:
    """Stated workspace, growth of a fresh process in the first call, seconds of the others."""
    arguments = [str(library), w.key, str(step.limit), str(step.algorithm), str(repeat)]
    command = [sys.executable, "-c", CHILD, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    stated, grown, secs = json.loads(done.stdout)
    return stated, grown, secs


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--log", type=Path, action="append")
    parser.add_argument("--layers", help="numbers of the layers, such as 4,9; default all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--policy", default="measure", choices=["logged", "predicted", "measure"])
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> bool:
    layers = read_source("cv1_12")
    if options.layers:
        layers = [layers[int(number) - 1] for number in options.layers.split(",")]
    exceeded, target = 0, resolve("native", options.threads)
    sheet.peak(target)
    print(
        f"{'layer':8}{'limit from':>14}  {'algorithm':18}{'workspace':>13}{'grown':>13}{'ms':>10}"
    )
    lines = sheet.found["steps"] = []
    with tempfile.TemporaryDirectory() as folder:
        for w in layers:
            path = Path(folder) / f"{w.name}.so"
            library = convtvm.compile([w], threads=options.threads, logs=options.log, keep="all")
            library.export(path)
            for step in steps(library, w, options.policy):
                head = f"{w.name:8}{step.limit:14,}  {step.algorithm or 'none fits':18}"
                found = {"layer": w.name, "limit": step.limit, "algorithm": step.algorithm}
                lines.append(found)
                if step.algorithm is None:
                    print(head)
                    continue
                stated, grown, secs = run(path, w, step, options.repeat)
                timing = Timing.of(secs)
                shown = sheet.time(f"{w.name} from {step.limit:,}", timing, w.flops, target)
                bad = stated > step.limit or grown > step.limit + _SLACK
                exceeded += bad
                found.update(stated=stated, grown=grown, seconds=timing.seconds, exceeded=bad)
                end = f"{shown.mark} {shown.about}" + ("  EXCEEDED" if bad else "")
                print(f"{head}{stated:13,}{grown:13,}{timing.seconds * 1e3:10.3f}{end}", flush=True)
            path.unlink()
    print(f"limit exceeded {exceeded} times")
    return bool(exceeded)


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
