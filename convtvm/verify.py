"""Check kernels against float64, many at a time: the tool behind the shape tests."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from convtvm.cpu import physical_cores
from convtvm.jobs import BuildJob, Limits, Outcome, RunJob
from convtvm.measure import BUILD_SECONDS, RUN_SECONDS, Zygote, write_problem
from convtvm.task import Task
from convtvm.workload import ConvWorkload

# Algorithms that only multiply and add the inputs: on small integers they must be exact.
EXACT_FAMILIES = ("direct", "im2col", "mec")


@dataclass(frozen=True)
class Verdict:
    """What one kernel did: `error` relative to the largest output, or `problem` in words."""

    task: Task
    decisions: Mapping[str, int]
    error: float = 0.0
    problem: str = ""


def verify(
    kernels: Sequence[tuple[Task, Mapping[str, int]]], zygote: Zygote, seed: int = 0
) -> Iterator[Verdict]:
    """Build each (task, decisions), run it once and compare it with the reference, in order.

    Exact algorithms get small integers and must match bit by bit; the others get normal data and
    their algorithm's tolerance.
    """
    builds = [BuildJob(t, dict(d), str(zygote.fresh_path(".so"))) for t, d in kernels]
    packs = [BuildJob(t, None, str(zygote.fresh_path("-pack.so"))) for t, _ in kernels]
    limits = Limits(workers=physical_cores(), timeout=BUILD_SECONDS)
    built: dict[int, Outcome] = dict(zygote.call("build", [*builds, *packs], limits))
    count = len(builds)
    outcomes = {i: built[i] if built[i].kind else built[count + i] for i in range(count)}
    good = [i for i, outcome in outcomes.items() if not outcome.kind]
    runs = [_run_job(kernels[i][0], builds[i].path, packs[i].path, zygote, seed) for i in good]
    threads = max((task.target.threads for task, _ in kernels), default=1)
    limits = Limits(threads=threads, timeout=RUN_SECONDS, samples=0)
    for position, outcome in zygote.call("run", runs, limits):
        outcomes[good[position]] = outcome
    _remove([*(run.inputs for run in runs), *(job.path for job in [*builds, *packs])])
    for i, (task, decisions) in enumerate(kernels):
        outcome = outcomes[i]
        if outcome.kind:
            yield Verdict(task, decisions, problem=f"{outcome.kind}: {outcome.message}")
        else:
            yield Verdict(task, decisions, error=outcome.value[1])


def random_workload(rng: random.Random) -> ConvWorkload:
    """A small convolution, odd on purpose: every size, stride, padding and grouping may differ."""
    groups = rng.choice((1, 1, 1, 2, 3, rng.randint(1, 16)))
    ic, oc = (groups * rng.randint(1, max(1, 70 // groups)) for _ in range(2))
    if rng.random() < 0.15:
        groups = ic
        oc = ic * rng.choice((1, 1, 2))
    kernel = rng.choice(((1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1), (2, 2), (3, 5)))
    plain = rng.random() < 0.5  # half of them stride 1 without dilation, for Winograd
    stride = (1, 1) if plain else (rng.randint(1, 4), rng.randint(1, 4))
    dilation = (1, 1) if plain else (rng.randint(1, 3), rng.randint(1, 3))
    top, left, bottom, right = (rng.randint(0, kernel[axis]) for axis in (0, 1, 0, 1))
    smallest = [(kernel[a] - 1) * dilation[a] + 1 for a in (0, 1)]
    ih = max(1, smallest[0] - top - bottom) + rng.randint(0, 20)
    iw = max(1, smallest[1] - left - right) + rng.randint(0, 20)
    return ConvWorkload.make(
        ic,
        oc,
        ih,
        iw,
        *kernel,
        n=rng.randint(1, 3),
        stride=stride,
        padding=(top, left, bottom, right),
        dilation=dilation,
        groups=groups,
    )


def _run_job(task: Task, path: str, pack: str, zygote: Zygote, seed: int) -> RunJob:
    exact = task.algorithm.family in EXACT_FAMILIES
    inputs = write_problem(
        task.workload, task.layout, zygote, seed, "integer" if exact else "normal"
    )
    tolerance = 0.0 if exact else task.algorithm.tolerance
    return RunJob(path, pack, task.packed_shape(), str(inputs), tolerance)


def _remove(paths: Sequence[str]) -> None:
    for path in paths:
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.unlink(path)
