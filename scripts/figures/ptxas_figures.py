#!/usr/bin/env python3
"""Registers, shared memory and spills of every CUDA template on a network's layers, without a GPU.

    python scripts/figures/ptxas_figures.py [SOURCE] [--arches A,B] [--dtype float16]
        [--layout NHWC]

Each algorithm that applies to a layer is compiled by its default decisions, and ptxas says what the
kernels of its function take. A line sums up one algorithm on one architecture; the functions that
spill or keep a stack are named below, and the exit status is 1 if there are any. Opt-in algorithms
are included.

Quoted by docs/gpu.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from dataclasses import replace

from convtvm.kernels.cuda import codegen, cubin
from convtvm.kernels.cuda.algorithms import CUDA_ALGORITHMS
from convtvm.kernels.task import Task, tasks_of
from convtvm.machine.targets import CudaTarget, resolve
from convtvm.problem.sources import merge_duplicates, read_source


def figures_of(task: Task, target: CudaTarget) -> dict[tuple[str, str], cubin.Figures]:
    """Figures of (kernel, architecture) of one task's default decisions."""
    func = task.instantiate(task.space.default)["main"]
    source = codegen.generate(func, "main", target)[1].source
    return dict(cubin.compile_source(source, target.arches).figures)


def span(values: list[int]) -> str:
    return f"{min(values)}-{max(values)}" if len(set(values)) > 1 else str(values[0])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", default="resnet50")
    parser.add_argument("--arches", default="sm_80,sm_90")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--layout", choices=("NCHW", "NHWC"), default="NCHW")
    args = parser.parse_args()
    target = resolve(f"cuda:{args.arches}")
    assert isinstance(target, CudaTarget)
    workloads = [replace(w, dtype=args.dtype) for w in merge_duplicates(read_source(args.source))]
    found: dict[tuple[str, str], list[cubin.Figures]] = defaultdict(list)
    functions: dict[str, int] = defaultdict(int)
    spilling: list[str] = []
    tasks = tasks_of(workloads, target, args.layout, list(CUDA_ALGORITHMS))
    for number, task in enumerate(tasks, start=1):
        name = task.algorithm_name
        print(f"\r{number} of {len(tasks)} functions", end="", file=sys.stderr)
        functions[name] += 1
        for (kernel, arch), figures in figures_of(task, target).items():
            found[name, arch].append(figures)
            if figures.spills or figures.stack:
                spilling.append(f"{task.workload} {name} {arch} {kernel}: {figures}")
    print(file=sys.stderr)
    print(f"{cubin.find_compiler().name}, {args.source}, {args.dtype}, {args.layout}")
    print("algorithm          arch   functions  kernels  registers  shared, bytes  spills  stack")
    for (name, arch), many in sorted(found.items()):
        print(
            f"{name:18} {arch:6} {functions[name]:9}  {len(many):7}"
            f"  {span([f.registers for f in many]):>9}  {span([f.shared for f in many]):>13}"
            f"  {sum(f.spills for f in many):6}  {sum(f.stack for f in many):5}"
        )
    print("\n".join(spilling) or "nothing spills")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
