#!/usr/bin/env python3
"""Registers, shared memory and spills of every CUDA template on networks' layers, without a GPU.

    python scripts/figures/ptxas_figures.py [SOURCE]... [--arches A,B] [--dtype float16]
        [--layout NHWC] [--batches 1,16] [--algorithms direct,im2col] [--jobs N]
        [--distinct] [--kept FILE]

Each algorithm that applies to a layer is compiled by its default decisions, and ptxas says what the
kernels of its function take. A line sums up one algorithm on one architecture; the functions that
spill or keep a stack are named below, and the exit status is 1 if there are any. Opt-in algorithms
are included. Every architecture has defaults of its own, as a library for it alone.

With --distinct, of functions with the same decisions for the same kind of layer only the first one
is compiled: the same kernel, strides and padding, and the same vectors. --kept FILE takes what an
interrupted run of the same code has found, and goes on from there.

Quoted by docs/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sheet import Sheet, main, parser_of
from tvm.s_tir import Schedule

from convtvm.kernels.cuda import codegen, cubin
from convtvm.kernels.cuda.algorithms import CUDA_ALGORITHMS
from convtvm.kernels.task import Task, tasks_of
from convtvm.machine.targets import CudaTarget, resolve
from convtvm.problem.sources import merge_duplicates, read_source
from convtvm.problem.workload import ConvWorkload
from schedules.cuda import gemm

Figures = dict[tuple[str, str], cubin.Figures]


def figures_of(task: Task) -> Figures:
    """Figures of (kernel, architecture) of one task's default decisions."""
    target = task.target
    assert isinstance(target, CudaTarget)
    func = task.instantiate(task.space.default)["main"]
    source = codegen.generate(func, "main", target)[1].source
    return dict(cubin.compile_source(source, target.arches).figures)


def kind_of(task: Task) -> tuple[object, ...]:
    """What functions have in common that are likely to need the same registers."""
    w = task.workload
    window = (w.kh, w.kw, w.sh, w.sw, w.dh, w.dw, w.ph, w.pw, w.ph_r, w.pw_r, w.groups > 1)
    sch = Schedule(task.compute())
    attrs = sch.mod["main"].attrs
    copies = tuple(gemm.attribute(sch, name) for name in ("vector", "loads") if name in attrs)
    decisions = tuple(sorted(task.space.default.items()))
    return task.target.name, task.algorithm_name, w.dtype, task.layout, window, copies, decisions


def distinct(tasks: Sequence[Task]) -> list[Task]:
    """The first task of each kind."""
    found: dict[tuple[object, ...], Task] = {}
    for number, task in enumerate(tasks, start=1):
        print(f"\r{number} of {len(tasks)} functions looked at", end="", file=sys.stderr)
        found.setdefault(kind_of(task), task)
    print(file=sys.stderr)
    return list(found.values())


class Kept:
    """Figures of tasks in a file, a line for each task; of none without a path."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.found = path, dict[str, Figures]()
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf8").splitlines():
                name, made = json.loads(line)
                self.found[name] = {(k, arch): cubin.Figures(*taken) for k, arch, *taken in made}

    @staticmethod
    def name(task: Task) -> str:
        return " ".join(map(str, task.key))

    def add(self, task: Task, made: Figures) -> None:
        self.found[self.name(task)] = made
        if self.path is not None:
            rows = [[*where, *asdict(taken).values()] for where, taken in made.items()]
            with self.path.open("a", encoding="utf8") as file:
                file.write(json.dumps([self.name(task), rows]) + "\n")


def compiled(tasks: Sequence[Task], jobs: int, kept: Kept) -> list[tuple[Task, Figures]]:
    """The figures of each task."""
    missing = [task for task in tasks if kept.name(task) not in kept.found]
    with ProcessPoolExecutor(jobs) as pool:
        for number, (task, made) in enumerate(
            zip(missing, pool.map(figures_of, missing), strict=True), start=1
        ):
            print(f"\r{number} of {len(missing)} functions", end="", file=sys.stderr)
            kept.add(task, made)
    print(file=sys.stderr)
    return [(task, kept.found[kept.name(task)]) for task in tasks]


def workloads_of(sources: Sequence[str], batches: Sequence[int], dtype: str) -> list[ConvWorkload]:
    """Every layer of the sources once for each batch."""
    layers = merge_duplicates([w for source in sources for w in read_source(source)])
    return [replace(w, n=batch, dtype=dtype) for batch in batches for w in layers]


def span(values: list[int]) -> str:
    return f"{min(values)}-{max(values)}" if len(set(values)) > 1 else str(values[0])


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("sources", nargs="*", default=["resnet50"], metavar="SOURCE")
    parser.add_argument("--arches", default="sm_80,sm_90")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--layout", choices=("NCHW", "NHWC"), default="NCHW")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--algorithms", default=",".join(CUDA_ALGORITHMS))
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    parser.add_argument("--distinct", action="store_true", help="one function of each kind")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="go on from an earlier run")
    return parser


def figures(args: argparse.Namespace, sheet: Sheet) -> int:
    batches = [int(batch) for batch in args.batches.split(",")]
    workloads = workloads_of(args.sources, batches, args.dtype)
    targets = [resolve(f"cuda:{arch}") for arch in args.arches.split(",")]
    names = args.algorithms.split(",")
    tasks = [t for each in targets for t in tasks_of(workloads, each, args.layout, names)]
    tasks = distinct(tasks) if args.distinct else tasks
    found: dict[tuple[str, str], list[cubin.Figures]] = defaultdict(list)
    functions: dict[tuple[str, str], int] = defaultdict(int)
    spilling: list[str] = []
    kernels: list[dict[str, Any]] = []
    for task, made in compiled(tasks, args.jobs, Kept(args.kept)):
        name = task.algorithm_name
        functions[name, next(iter(made))[1]] += 1
        for (kernel, arch), taken in made.items():
            found[name, arch].append(taken)
            where = {"workload": task.workload, "algorithm": name, "arch": arch}
            kernels.append({**where, "kernel": kernel, **asdict(taken)})
            if taken.spills or taken.stack:
                spilling.append(f"{task.workload} {name} {arch} {kernel}: {taken}")
    print(
        f"{cubin.find_compiler().name}, {', '.join(args.sources)}, batch {args.batches}, ", end=""
    )
    print(f"{args.dtype}, {args.layout}")
    print("algorithm          arch   functions  kernels  registers  shared, bytes  spills  stack")
    for (name, arch), many in sorted(found.items()):
        print(
            f"{name:18} {arch:6} {functions[name, arch]:9}  {len(many):7}"
            f"  {span([f.registers for f in many]):>9}  {span([f.shared for f in many]):>13}"
            f"  {sum(f.spills for f in many):6}  {sum(f.stack for f in many):5}"
        )
    print("\n".join(spilling) or "nothing spills")
    sheet.found = {"compiler": cubin.find_compiler().name, "kernels": kernels}
    return 1 if spilling else 0


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
