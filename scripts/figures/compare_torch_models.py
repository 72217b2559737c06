"""Whole models in PyTorch: eager, torch.compile, the same with channels-last and freezing, convtvm.

    python scripts/figures/compare_torch_models.py [MODEL ...] [--threads 1,2] [--log FILE ...]
        [--size 224] [--rounds N] [--json FILE]

Batch 1, float32, no gradients. Every way is called in turn, round by round, so that a disturbance
meets all of them; shown are medians in milliseconds, and the largest difference of an output from
eager's in double precision, relative to the largest output. `gain` is the best of the others'
medians over ours. Each number of threads runs in a process of its own.
Without --log the convolutions run by the logs that came with convtvm.

Quoted by README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from torch_models import MODELS, build

from convtvm.torch import optimize

OURS = "convtvm"
Way = Callable[[torch.Tensor], torch.Tensor]


def ways_of(name: str, example: torch.Tensor, options: argparse.Namespace) -> dict[str, Way]:
    ways: dict[str, Way] = {"eager": build(name)}
    ways["compile"] = torch.compile(build(name), dynamic=False)
    wide = build(name).to(memory_format=torch.channels_last)
    frozen = torch.compile(wide, dynamic=False, options={"freezing": True})
    ways["frozen"] = lambda x: frozen(x.to(memory_format=torch.channels_last))
    planned = build(name)
    handle = optimize(planned, example, threads=options.threads, logs=options.log or None)
    left = [s for s in handle.sites if s.plan is None]
    print(f"{name}: {len(handle.sites)} convolutions, {len(left)} of them PyTorch's")
    for site in left if not options.sites else handle.sites:
        print(f"    {site}")
    ways[OURS] = planned
    return ways


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    torch._dynamo.reset()
    example = torch.randn(1, 3, options.size, options.size, generator=torch.Generator())
    with torch.no_grad():
        ways = ways_of(name, example, options)
        reference = build(name).double()(example.double())
        errors, secs = {}, {way: [] for way in ways}
        for way, call in ways.items():
            call(example)
            difference = (call(example).double() - reference).abs().max()
            errors[way] = float(difference / reference.abs().max())
        for _ in range(options.rounds):
            for way, call in ways.items():
                call(example)  # warm after another way had the caches
                started = time.perf_counter()
                call(example)
                secs[way].append(time.perf_counter() - started)
    medians = {way: statistics.median(times) for way, times in secs.items()}
    gain = min(m for way, m in medians.items() if way != OURS) / medians[OURS]
    print(
        f"{name:16}{options.threads:8}"
        + "".join(f"{m * 1e3:10.2f}" for m in medians.values())
        + f"{gain:8.2f}{errors['eager']:10.1e}{errors[OURS]:10.1e}",
        flush=True,
    )
    row = {"model": name, "threads": options.threads, "gain": gain, "error": errors}
    return {**row, "ms": {way: 1e3 * m for way, m in medians.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--log", type=Path, action="append", default=[])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sites", action="store_true", help="list every convolution")
    parser.add_argument("--json", type=Path, help="append a line a model")
    options = parser.parse_args()
    if "," in options.threads:
        for threads in options.threads.split(","):
            subprocess.run([sys.executable, *sys.argv, "--threads", threads], check=True)
        return
    options.threads = int(options.threads)
    torch.set_num_threads(options.threads)
    heads = ("ms: eager", "compile", "frozen", OURS)
    print(f"{'':16}{'threads':>8}" + "".join(f"{h:>10}" for h in heads), end="")
    print(f"{'gain':>8}{'error':>10}{'ours':>10}")
    rows = [compare(name, options) for name in options.models]
    mean = math.exp(statistics.mean(math.log(row["gain"]) for row in rows))
    print(f"geometric mean of the gain with {options.threads} threads: {mean:.2f}")
    if options.json:
        with options.json.open("a", encoding="utf8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
