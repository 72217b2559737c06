"""What libraries of several threads do to the process that loads them.

    python scripts/figures/stress_process.py [--workload W] [--callers 1000]

A child after fork, the caller's CPU mask, callers that come and go, callers at once, the end of the
interpreter while others compute, and a library for 64 threads: each in a process of its own, a line
each. The exit status is 1 where a child hangs or is wrong, a thread is left behind, or a process
ends badly.

Quoted by docs/performance.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import convtvm

PATIENCE = 120  # seconds for one process
AT_ONCE, CALLS = 8, 500
MANY = 64

BEGINNING = """
import os, sys, threading, time
import numpy as np
import convtvm

def tasks():
    time.sleep(0.1)  # a thread is still there for a moment after join
    return len(os.listdir("/proc/self/task"))

library = convtvm.load(sys.argv[1])
w = library.workloads[0]
draw = np.random.default_rng(0)
plan = library.plan(w, draw.standard_normal(w.weight_shape, np.float32))
x = draw.standard_normal(w.data_shape(), np.float32)
before = tasks()
right = plan(x)
"""

FORK = """
child = os.fork()
if child == 0:
    os._exit(not np.array_equal(plan(x), right))
end = time.monotonic() + 20
while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
    time.sleep(0.01)
if not ended[0]:
    os.kill(child, 9)
print("the child", "is right" if ended == (child, 0) else "is wrong" if ended[0] else "hangs")
sys.exit(ended != (child, 0))
"""

MASK = """
mine = {min(os.sched_getaffinity(0))}
known = set(os.listdir("/proc/self/task"))
os.sched_setaffinity(0, mine)
worker = threading.Thread(target=plan, args=(x,))
worker.start(), worker.join(), plan(x)
wide = sum(os.sched_getaffinity(int(t)) != mine for t in set(os.listdir("/proc/self/task")) - known)
kept = os.sched_getaffinity(0) == mine
print("the caller's mask is", "kept;" if kept else "widened;", wide, "new threads beside it")
sys.exit(not kept or wide)
"""

CALLERS = """
before, started = tasks(), time.perf_counter()
for _ in range(int(sys.argv[2])):
    caller = threading.Thread(target=plan, args=(x,))
    caller.start(), caller.join()
seconds = time.perf_counter() - started
print(f"threads {before} before and {tasks()} after; {seconds:.1f} s")
sys.exit(tasks() > before)
"""

AT_ONCE_BODY = """
wrong, started = [0], time.perf_counter()
def work():
    for _ in range(int(sys.argv[3])):
        wrong[0] += not np.array_equal(plan(x), right)
callers = [threading.Thread(target=work) for _ in range(int(sys.argv[2]))]
for c in callers: c.start()
for c in callers: c.join()
seconds = time.perf_counter() - started
print(f"wrong results {wrong[0]}; threads left {tasks()}; {seconds:.1f} s")
sys.exit(wrong[0])
"""

ENDING = """
def work():
    while True:
        plan(x)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.5)
print("ends while four threads compute", flush=True)
"""

FAR_TOO_MANY = """
started = time.perf_counter()
for _ in range(200):
    plan(x)
print(f"{(time.perf_counter() - started) / 200 * 1e3:.2f} ms a call; threads {tasks()}")
sys.exit(tasks() > before + os.cpu_count())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workload", default="mb1ic32ih28oc32oh28kh3ph1")
    parser.add_argument("--callers", type=int, default=1000)
    arguments = parser.parse_args()
    workload = convtvm.ConvWorkload.parse(arguments.workload)
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for threads in (1, 2, MANY):
            paths[threads] = Path(folder, f"{threads}.so")
            made = convtvm.compile([workload], "native", threads=threads, keep="best")
            made.export(paths[threads])
        callers, at_once = [arguments.callers], [AT_ONCE, CALLS]
        bad = [
            show("a child after fork", FORK, paths[2]),
            show("a mask of one CPU", MASK, paths[2]),
            show(f"{callers[0]:,} callers, one after another", CALLERS, paths[2], *callers),
            show("the same, one thread", CALLERS, paths[1], *callers),
            show(f"{AT_ONCE} callers at once", AT_ONCE_BODY, paths[2], *at_once),
            show("the same, one thread", AT_ONCE_BODY, paths[1], *at_once),
            show("the end of the process", ENDING, paths[2]),
            show(f"a library for {MANY} threads", FAR_TOO_MANY, paths[MANY]),
        ]
    sys.exit(any(bad))


def show(name: str, body: str, *arguments: object) -> bool:
    """Run `body` in a new process and print what it says; whether it ended badly."""
    command = [sys.executable, "-c", BEGINNING + textwrap.dedent(body), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        said, status = (done.stdout or done.stderr).strip().splitlines()[-1:], done.returncode
    except subprocess.TimeoutExpired:
        said, status = [f"not over after {PATIENCE} s"], 1
    print(f"{name}: {''.join(said)} (exit status {status})", flush=True)
    return status != 0


if __name__ == "__main__":
    main()
