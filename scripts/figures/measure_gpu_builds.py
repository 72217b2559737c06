#!/usr/bin/env python3
"""What a candidate for a GPU costs until it can be measured, part by part. Needs NVRTC and no GPU.

    python scripts/figures/measure_gpu_builds.py [LOG]... [--candidates 24] [--rounds 3]
        [--beside CHECKOUT]

Candidates are drawn from the logs' trials; without a log from those of an H200, which come along.
Seconds are CPU time of one core, the mean of the candidates, without the start of the process that
builds:

  schedule   the template
  lowering   TVM's passes, the CUDA source, the host's code
  PTX        NVRTC's front end and optimiser
  ptxas      from PTX to machine code
  library    machine code for the host, the linker
  whole      all of it, as the tuner's builders do it
  a minute   how many a core builds in a minute

With --beside, the code of another checkout builds the same candidates, in turn with this one's.

Quoted by docs/tuning.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sheet import Sheet, main, parser_of
from trials import H200, load

from convtvm.errors import ConvtvmError, EnvironmentProblem
from convtvm.kernels.cuda import nvrtc
from convtvm.logs.records import TuningRecord
from convtvm.measure.timing import Timing

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COLUMNS = ("schedule", "lowering", "PTX", "ptxas", "library", "whole")
# Without PyTorch, which tvm_ffi would import, for two seconds.
_SERVE = """import sys
sys.modules["torch"] = None
sys.path.insert(0, sys.argv[1])
import gpu_build_parts
gpu_build_parts.serve()"""

Candidate = dict[str, Any]


class Builder:
    """A process that builds with the code of a checkout."""

    def __init__(self, checkout: Path) -> None:
        path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(HERE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            cwd=checkout,
            text=True,
        )

    def build(self, candidates: Sequence[Candidate]) -> list[Any]:
        """CPU seconds by part of each, or the text of its error."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(candidates)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ConvtvmError("a process that builds has died; see its message above")
        found: list[Any] = json.loads(line)
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def drawn(history: Sequence[TuningRecord], count: int) -> list[Candidate]:
    """Candidates that ran on a GPU."""
    ran = [r for r in history if r.target.startswith("cuda") and r.run_secs]
    fields = ("workload", "algorithm", "target", "layout", "decisions")
    some = random.Random(0).sample(ran, min(count, len(ran)))
    return [{field: getattr(r, field) for field in fields} for r in some]


def means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.fmean(row[part] for row in rows) for part in COLUMNS}


def measure(
    builders: dict[str, Builder], candidates: Sequence[Candidate], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """The mean of the candidates by part, of every round; those that one cannot build are named and
    count for nobody."""
    first = {name: builder.build(candidates) for name, builder in builders.items()}  # warm-up
    fine = []
    for index, candidate in enumerate(candidates):
        errors = [
            f"{n}: {rows[index]}" for n, rows in first.items() if isinstance(rows[index], str)
        ]
        if errors:
            print(f"left out, {candidate['algorithm']} {candidate['workload']}: {errors[0]}")
        else:
            fine.append(candidate)
    if not fine:
        raise ConvtvmError("none of the candidates can be built")
    found = defaultdict[str, list[dict[str, float]]](list)
    for _ in range(rounds):
        for name, builder in builders.items():
            found[name].append(means(builder.build(fine)))
    print(f"{len(fine)} candidates, {rounds} rounds")
    return found


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("logs", nargs="*", type=Path, default=[H200], metavar="LOG")
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT")
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    if not nvrtc.is_available():
        raise EnvironmentProblem("NVRTC is not here: pip install 'convtvm[cuda]'")
    candidates = drawn(load(options.logs), options.candidates)
    if not candidates:
        raise ConvtvmError("the logs hold no candidate for a GPU that ran")
    checkouts = {"here": ROOT, **({"beside": options.beside} if options.beside else {})}
    builders = {name: Builder(path) for name, path in checkouts.items()}
    try:
        found = measure(builders, candidates, options.rounds)
    finally:
        for builder in builders.values():
            builder.close()
    print(f"{'CPU seconds':12}" + "".join(f"{part:>10}" for part in (*COLUMNS, "a minute")))
    for name, rounds in found.items():
        shown = sheet.time(f"a build, {name}", Timing.of([row["whole"] for row in rounds]))
        taken = {part: statistics.median(row[part] for row in rounds) for part in COLUMNS}
        sheet.found[name] = {**taken, "a_minute": 60 / taken["whole"]}
        cells = "".join(f"{taken[part]:10.3f}" for part in COLUMNS)
        print(f"{name:12}{cells}{60 / taken['whole']:9.0f}{shown.mark} ({shown.about})")
    if options.beside:
        sheet.found["ratio"] = sheet.found["beside"]["whole"] / sheet.found["here"]["whole"]
        print(f"beside over here: {sheet.found['ratio']:.2f}")


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
