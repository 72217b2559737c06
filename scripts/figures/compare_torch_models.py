"""ResNet-18 in PyTorch: eager, torch.compile, torch.jit.optimize_for_inference, convtvm.

    python scripts/figures/compare_torch_models.py [--threads N] [--log FILE ...]
        [--size 224] [--rounds N]

Batch 1, float32, no gradients. Every way is called in turn, round by round, so that a disturbance
meets all of them; shown are medians in milliseconds and the ratio to eager, and the largest
difference of an output from eager's in double precision, relative to the largest output. Without
--log the convolutions run by untuned decisions.

Quoted by README.md.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from resnet18 import resnet18

from convtvm.torch import optimize


def ways_of(
    example: torch.Tensor, threads: int, logs: list[Path], without: list[str]
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"eager": resnet18()}
    planned = resnet18()
    handle = optimize(planned, example, threads=threads, logs=logs)
    eager_sites = [s for s in handle.sites if s.plan is None]
    print(f"{len(handle.sites)} convolutions, {len(eager_sites)} of them left eager")
    for site in handle.sites:
        print(f"  {site.name}: {site.plan.algorithm if site.plan else site.why_not}")
    ways["convtvm"] = planned
    if "jit" not in without:
        scripted = torch.jit.freeze(torch.jit.trace(resnet18(), example))
        ways["jit.optimize_for_inference"] = torch.jit.optimize_for_inference(scripted)
    if "compile" not in without:
        ways["torch.compile"] = torch.compile(resnet18())
    wide = resnet18().to(memory_format=torch.channels_last)
    ways["eager, channels_last"] = lambda x: wide(x.to(memory_format=torch.channels_last))
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log", type=Path, action="append", default=[])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--without", action="append", default=[], choices=["jit", "compile"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    example = torch.randn(1, 3, options.size, options.size)
    exact = copy.deepcopy(resnet18()).double()
    with torch.no_grad():
        ways = ways_of(example, options.threads, options.log, options.without)
        reference = exact(example.double())
        errors = {}
        for name, way in ways.items():
            way(example)
            difference = (way(example).double() - reference).abs().max()
            errors[name] = float(difference / reference.abs().max())
        secs: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                way(example)  # warm after another way had the caches
                started = time.perf_counter()
                way(example)
                secs[name].append(time.perf_counter() - started)
    base = statistics.median(secs["eager"])
    print(f"{'':30}{'ms':>9}{'min':>9}{'eager/this':>12}{'error':>11}")
    for name, times in secs.items():
        median = statistics.median(times)
        print(
            f"{name:30}{median * 1e3:9.2f}{min(times) * 1e3:9.2f}{base / median:12.2f}"
            f"{errors[name]:11.1e}"
        )


if __name__ == "__main__":
    main()
