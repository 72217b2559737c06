"""The MEC paper's layers cv1..cv12 under a workspace limit from nothing upward: choice and time.

    python scripts/compare_workspace_limits.py [--log FILE ...] [--layers 4,9,12] [--repeat N]

Every layer is compiled with all its algorithms. At each limit where the choice can change, the plan
is run in a fresh process. The exit status is 1 if the workspace that the kernel states, or what the
process grew by in its first call (1 MiB allowed for all else), exceeds the limit. Times are medians
of --repeat calls here and now; without a log the choice is by cost, not by time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import convtvm
from convtvm.errors import NoCandidate
from convtvm.sources import read_source

# Resident memory is read before the first call and after some: TVM keeps workspaces in a pool.
CHILD = """
import json, os, statistics, sys, time
sys.modules["torch"] = None
import numpy as np
import convtvm

path, key, limit, policy, algorithm, repeat = sys.argv[1:]
library = convtvm.load(path)
w = convtvm.ConvWorkload.parse(key)
random = np.random.default_rng(0)
data = random.standard_normal(w.data_shape(), np.float32)
weight = random.standard_normal(w.weight_shape, np.float32)
plan = library.plan(
    w, weight, algorithm=algorithm or None, workspace_limit=int(limit), policy=policy
)
if not algorithm:
    print(json.dumps([plan.algorithm]))
    raise SystemExit
out = np.zeros(w.out_shape(), np.float32)

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
print(json.dumps([plan.algorithm, plan.workspace_bytes, grown, statistics.median(secs)]))
"""
_SLACK = 1 << 20  # thread pool, page rounding, code that is read in


def row(library: Path, w: convtvm.ConvWorkload, limit: int, policy: str, repeat: int) -> list:
    """algorithm, stated workspace, growth of the process in the first call, seconds.

    One process chooses, by running candidates if the policy is so, another one runs the choice.
    """
    found: list = [""]
    for rule in (policy, "logged"):
        arguments = [str(library), w.key, str(limit), rule, found[0], str(repeat)]
        command = [sys.executable, "-c", CHILD, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--log", type=Path, action="append", default=[])
    parser.add_argument("--layers", help="numbers of the layers, such as 4,9; default all")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--policy", default="logged", choices=["logged", "predicted", "measure"])
    options = parser.parse_args()
    layers = read_source("cv1_12")
    if options.layers:
        layers = [layers[int(number) - 1] for number in options.layers.split(",")]
    exceeded = 0
    print(f"{'layer':8}{'limit':>14}  {'algorithm':14}{'workspace':>13}{'grown':>13}{'ms':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for w in layers:
            path = Path(folder) / f"{w.name}.so"
            library = convtvm.compile([w], threads=1, logs=options.log, keep="all")
            library.export(path)
            sizes = sorted({c.workspace_bytes for c in library.candidates(w)})
            # Just below and at every size: the choice can change nowhere else.
            for limit in sorted({0, *sizes, *(size - 1 for size in sizes if size)}):
                try:
                    name, stated, grown, secs = row(path, w, limit, options.policy, options.repeat)
                except subprocess.CalledProcessError as error:
                    if NoCandidate.__name__ not in error.stderr:
                        raise SystemExit(error.stderr) from None
                    print(f"{w.name:8}{limit:14,}  {NoCandidate.__name__}")
                    continue
                bad = stated > limit or grown > limit + _SLACK
                exceeded += bad
                print(
                    f"{w.name:8}{limit:14,}  {name:14}{stated:13,}{grown:13,}{secs * 1e3:9.3f}"
                    + ("  EXCEEDED" if bad else "")
                )
    print(f"limit exceeded {exceeded} times")
    raise SystemExit(bool(exceeded))


if __name__ == "__main__":
    main()
