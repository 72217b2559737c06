"""What libraries of several threads do to the process that loads them.

    python scripts/figures/stress_process.py [--workload W] [--callers 1000]

A child after fork, the caller's CPU mask, callers that come and go, callers at once, the end of the
interpreter while others compute, and a library for 64 threads: each in a process of its own, a line
each. The exit status is 1 where a child hangs or is wrong, a thread is left behind, or a process
ends badly, 3 after a noisy run.

Quoted by docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from sheet import Sheet, main, parser_of

import convtvm
from convtvm.machine.cpu import physical_cores
from convtvm.machine.targets import resolve
from convtvm.measure.timing import Timing

PATIENCE = 120  # seconds for one process
AT_ONCE, CALLS = 8, 500
MANY = 64
MANY_THREADS = f"a library for {MANY} threads"

BEGINNING = """
import json, os, sys, threading, time
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
print(json.dumps([seconds]))
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
print(json.dumps([seconds]))
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
secs = []
for _ in range(200):
    started = time.perf_counter()
    plan(x)
    secs.append(time.perf_counter() - started)
print(json.dumps(secs))
print(f"{sum(secs) / 200 * 1e3:.2f} ms a call; threads {tasks()}")
sys.exit(tasks() > before + os.cpu_count())
"""


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--workload", default="mb1ic32ih28oc32oh28kh3ph1")
    parser.add_argument("--callers", type=int, default=1000)
    return parser


Case = tuple[str, str, int, tuple[int, ...]]


def cases(callers: int) -> list[Case]:
    """Name, body, threads of the library and the body's arguments."""
    one_by_one = f"{callers:,} callers, one after another"
    together, at_once = f"{AT_ONCE} callers at once", (AT_ONCE, CALLS)
    return [
        ("a child after fork", FORK, 2, ()),
        ("a mask of one CPU", MASK, 2, ()),
        (one_by_one, CALLERS, 2, (callers,)),
        (f"{one_by_one}, one thread", CALLERS, 1, (callers,)),
        (together, AT_ONCE_BODY, 2, at_once),
        (f"{together}, one thread", AT_ONCE_BODY, 1, at_once),
        ("the end of the process", ENDING, 2, ()),
        (MANY_THREADS, FAR_TOO_MANY, MANY, ()),
    ]


def figures(options: argparse.Namespace, sheet: Sheet) -> bool:
    workload = convtvm.ConvWorkload.parse(options.workload)
    cores = resolve("native", physical_cores())
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for threads in (1, 2, MANY):
            paths[threads] = Path(folder, f"{threads}.so")
            made = convtvm.compile([workload], "native", threads=threads, keep="best")
            made.export(paths[threads])
        for name, body, threads, more in cases(options.callers):
            said, status = show(name, body, paths[threads], *more)
            sheet.found[name] = {"said": said[-1:], "status": status}
            if not status and said[0].startswith("["):
                timing = Timing.of(json.loads(said[0]))
                # The others' seconds are those of many calls, of which some wait for others.
                flops = workload.flops if name == MANY_THREADS else 0
                shown = sheet.time(name, timing, flops, cores)
                print(f"    {1e3 * timing.seconds:.2f} ms{shown.mark}, {shown.about}")
    return any(row["status"] for row in sheet.found.values())


def show(name: str, body: str, *arguments: object) -> tuple[list[str], int]:
    """Run `body` in a new process and print the last that it says: its lines, its exit status."""
    command = [sys.executable, "-c", BEGINNING + textwrap.dedent(body), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        said, status = (done.stdout or done.stderr).strip().splitlines(), done.returncode
    except subprocess.TimeoutExpired:
        said, status = [f"not over after {PATIENCE} s"], 1
    print(f"{name}: {''.join(said[-1:])} (exit status {status})", flush=True)
    return said, status


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
