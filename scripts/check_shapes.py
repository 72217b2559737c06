"""Run every applicable algorithm on many shapes and compare each result with float64.

    python scripts/check_shapes.py --random 1000
    python scripts/check_shapes.py path/to/benchdnn/inputs/conv/shapes_* --max-mflop 100

Kernels are built with their default decisions (or random ones, --random-decisions), for NCHW and
NHWC. Direct, im2col and MEC get small integers and must be exact. Exit status 1 if any is wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from convtvm.errors import ConvtvmError
from convtvm.measure import Zygote
from convtvm.sources import read_source
from convtvm.targets import CompileTarget, resolve
from convtvm.task import LAYOUTS, Task, tasks_of
from convtvm.verify import random_workload, verify
from convtvm.workload import ConvWorkload

_BATCH = 48  # kernels built together


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="workload files or built-in networks")
    parser.add_argument("--random", type=int, default=0, help="number of random workloads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-mflop", type=float, default=100.0, help="skip larger shapes")
    parser.add_argument("--algorithms", help="comma-separated names or families")
    parser.add_argument("--layouts", default="alternate", choices=("both", "alternate", *LAYOUTS))
    parser.add_argument("--random-decisions", action="store_true")
    parser.add_argument("--limit", type=int, help="stop after this many workloads")
    return parser.parse_args()


def workloads_of(arguments: argparse.Namespace, skipped: Counter[str]) -> Iterator[ConvWorkload]:
    """Distinct workloads of the files, line by line, then random ones."""
    seen = set()
    for name in arguments.files:
        for w in read_lines(name, skipped):
            if w.flops > arguments.max_mflop * 1e6:
                skipped["larger than --max-mflop"] += 1
            elif w not in seen:
                seen.add(w)
                yield w
    rng = random.Random(arguments.seed)
    for _ in range(arguments.random):
        yield random_workload(rng)


def read_lines(name: str, skipped: Counter[str]) -> Iterator[ConvWorkload]:
    """The workloads of a source; in a file, lines that are refused are counted and passed over."""
    path = Path(name)
    if not path.is_file():
        yield from read_source(name)
        return
    for line in path.read_text(encoding="utf8").splitlines():
        words = [w for w in line.partition("#")[0].split() if not w.startswith("-")]
        for word in words:
            try:
                yield ConvWorkload.parse(word)
            except ConvtvmError as error:
                skipped["3-D" if "3-D" in str(error) else f"refused: {error}"] += 1


def kernels_of(
    arguments: argparse.Namespace, target: CompileTarget, skipped: Counter[str], count: Counter[str]
) -> Iterator[tuple[Task, dict[str, int]]]:
    rng = random.Random(arguments.seed)
    names = arguments.algorithms.split(",") if arguments.algorithms else None
    for number, w in enumerate(islice(workloads_of(arguments, skipped), arguments.limit)):
        count["workloads"] += 1
        chosen = {"both": LAYOUTS, "alternate": (LAYOUTS[number % 2],)}
        for layout in chosen.get(arguments.layouts, (arguments.layouts,)):
            for task in tasks_of([w], target, layout, names):
                points = task.space.points
                yield task, rng.choice(points) if arguments.random_decisions else task.space.default


def main() -> None:
    arguments = parse_arguments()
    target = resolve("native", 1)
    skipped: Counter[str] = Counter()
    count: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    wrong = 0
    started = time.monotonic()
    kernels = kernels_of(arguments, target, skipped, count)
    with Zygote() as zygote:
        while batch := list(islice(kernels, _BATCH)):
            for verdict in verify(batch, zygote, arguments.seed):
                if not verdict.problem:
                    passed[verdict.task.algorithm_name] += 1
                    continue
                wrong += 1
                t = verdict.task
                print(f"WRONG {t.workload} {t.algorithm_name} {t.layout} {verdict.decisions}: "
                      f"{verdict.problem}", flush=True)  # fmt: skip
            seconds = time.monotonic() - started
            print(f"{count['workloads']} workloads, {sum(passed.values())} kernels passed, "
                  f"{wrong} wrong, {seconds:.0f} s", flush=True)  # fmt: skip
    print("passed by algorithm:", dict(sorted(passed.items())))
    print("skipped:", dict(skipped.most_common(8)))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
