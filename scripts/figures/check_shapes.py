"""Run every applicable algorithm on many shapes and compare each result with float64.

    python scripts/figures/check_shapes.py --random 1000 --layouts both
    python scripts/figures/check_shapes.py path/to/benchdnn/inputs/conv/shapes_* --max-mflop 100

Kernels are built with their default decisions (or random ones, --random-decisions). Direct, im2col
and MEC get small integers and must be exact. Exit status 1 if any is wrong, with its line above.

With --passed FILE each kernel that passes is noted there, by a hash of all that makes its code. A
second run builds and runs only what is new or has changed since: the way to go on after an
interruption, and to see what an edit did.

Quoted by docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

from sheet import Sheet, main, parser_of

from convtvm.errors import ConvtvmError
from convtvm.kernels.task import tasks_of
from convtvm.machine.cpu import physical_cores
from convtvm.machine.targets import resolve
from convtvm.measure.client import Zygote
from convtvm.measure.verify import Check, Verdict, random_workload, verify
from convtvm.problem.sources import read_source
from convtvm.problem.workload import LAYOUTS, ConvWorkload

_SECONDS = 20.0  # between two lines of progress


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("files", nargs="*", help="workload files or built-in networks")
    parser.add_argument("--random", type=int, default=0, help="number of random workloads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-mflop", type=float, default=100.0, help="skip larger shapes")
    parser.add_argument("--algorithms", help="comma-separated names or families")
    parser.add_argument(
        "--sample", type=int, help="at most so many algorithms of each workload, in turn"
    )
    parser.add_argument("--layouts", default="alternate", choices=("both", "alternate", *LAYOUTS))
    parser.add_argument("--random-decisions", action="store_true")
    parser.add_argument("--limit", type=int, help="stop after this many workloads")
    parser.add_argument("--passed", type=Path, help="file of the kernels that have passed")
    parser.add_argument("--workers", type=int, default=physical_cores())
    parser.add_argument(
        "--opt-level", type=int, default=3, choices=range(4), help="LLVM's; 0 is quick"
    )
    return parser


def workloads_of(options: argparse.Namespace, skipped: Counter[str]) -> Iterator[ConvWorkload]:
    """Distinct workloads of the files, line by line, then random ones."""
    seen = set()
    for name in options.files:
        for w in read_lines(name, skipped):
            if w.flops > options.max_mflop * 1e6:
                skipped["larger than --max-mflop"] += 1
            elif w not in seen:
                seen.add(w)
                yield w
    rng = random.Random(options.seed)
    for _ in range(options.random):
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


class Passed:
    """The fingerprints of the kernels that have passed, in a file that is only appended to."""

    def __init__(self, path: Path | None) -> None:
        self._known: dict[str, str] = {}
        self._file = None
        if path:
            lines = path.read_text(encoding="utf8").splitlines() if path.exists() else []
            for line in lines:
                entry = json.loads(line)
                self._known[entry["kernel"]] = entry["fingerprint"]
            self._file = path.open("a", encoding="utf8", buffering=1)

    def fingerprint(self, check: Check) -> str:
        return self._known.get(f"{check} {check.decisions}", "")

    def note(self, verdict: Verdict) -> None:
        if self._file and not verdict.repeated:
            name = f"{verdict.check} {verdict.check.decisions}"
            entry = {"kernel": name, "fingerprint": verdict.fingerprint}
            self._file.write(json.dumps(entry) + "\n")


def checks_of(
    options: argparse.Namespace, skipped: Counter[str], passed: Passed
) -> Iterator[Check]:
    target = resolve("native", 1)
    names = options.algorithms.split(",") if options.algorithms else None
    turn = 0
    for number, w in enumerate(islice(workloads_of(options, skipped), options.limit)):
        alternate = (LAYOUTS[number % len(LAYOUTS)],)
        chosen = {"both": LAYOUTS, "alternate": alternate}.get(options.layouts)
        for layout in chosen or (options.layouts,):
            tasks = tasks_of([w], target, layout, names)
            count = min(options.sample or len(tasks), len(tasks))
            for task in (tasks[(turn + i) % len(tasks)] for i in range(count)):
                decisions = options.seed + number if options.random_decisions else None
                check = Check(task, decisions, options.seed, "", options.opt_level)
                yield replace(check, known=passed.fingerprint(check))
            turn += count


class Tally:
    """Counts of what was checked, printed as the run goes on."""

    def __init__(self, total: int, workloads: int) -> None:
        self.total, self.workloads = total, workloads
        self.passed: Counter[str] = Counter()
        self.wrong = self.repeated = 0
        self.started = self.printed = time.monotonic()

    def add(self, verdict: Verdict) -> None:
        if verdict.problem:
            self.wrong += 1
            print(f"WRONG {verdict.check} {dict(verdict.decisions)}: {verdict.problem}", flush=True)
        else:
            self.passed[verdict.check.task.algorithm_name] += 1
            self.repeated += verdict.repeated
        if time.monotonic() - self.printed > _SECONDS:
            self.printed = time.monotonic()
            self.print_line()

    def print_line(self) -> None:
        seconds = time.monotonic() - self.started
        passed = sum(self.passed.values())
        print(
            f"{passed + self.wrong} of {self.total} kernels of {self.workloads} workloads: "
            f"{passed} passed, {self.repeated} of them before, {self.wrong} wrong, {seconds:.0f} s",
            flush=True,
        )


def figures(options: argparse.Namespace, sheet: Sheet) -> int:
    skipped: Counter[str] = Counter()
    passed = Passed(options.passed)
    checks = list(checks_of(options, skipped, passed))
    if not checks:
        raise ConvtvmError("no workloads; name files or --random N")
    tally = Tally(len(checks), len({c.task.workload for c in checks}))
    with ExitStack() as stack:
        helpers = [stack.enter_context(Zygote()) for _ in range(options.workers)]
        for verdict in verify(checks, helpers):
            tally.add(verdict)
            if not verdict.problem:
                passed.note(verdict)
    tally.print_line()
    print("passed by algorithm:", dict(sorted(tally.passed.items())))
    print("shapes skipped:", dict(skipped.most_common(8)))
    sheet.found = {
        "workloads": tally.workloads,
        "kernels": tally.total,
        "passed": dict(sorted(tally.passed.items())),
        "wrong": tally.wrong,
        "skipped": dict(skipped),
    }
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
