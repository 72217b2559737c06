"""Builds candidates for a GPU and says what each part of that costs: the child of
measure_gpu_builds.py, which may run the code of another checkout.

A line of JSON comes in for each question, a list of candidates, and one goes out: for each of them
CPU seconds by part, or the text of its error.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from convtvm.kernels.cuda import codegen, nvrtc
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.measure.building import build
from convtvm.measure.jobs import BuildJob
from convtvm.problem.workload import ConvWorkload

# The template; TVM's passes, the source and the host code; NVRTC's front end and optimiser; its
# ptxas; and what is left of a whole build: machine code for the host and the linker.
PARTS = ("schedule", "lowering", "PTX", "ptxas", "library")


def seconds() -> float:
    """CPU time of this process and of the children that have ended."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def parts(text: dict[str, Any], folder: Path) -> dict[str, float]:
    """CPU seconds by PARTS, and of the `whole`, of one candidate of a log."""
    target, decisions = resolve(text["target"], 1), text["decisions"]
    task = Task(ConvWorkload.parse(text["workload"]), text["algorithm"], target, text["layout"])
    started = seconds()
    func = task.instantiate(decisions)["main"]
    scheduled = seconds()
    source = codegen.generate(func, "main", target)[1].source
    lowered = seconds()
    (arch,) = target.arches
    options = ["--std=c++17", "-default-device"]
    virtual = f"--gpu-architecture={arch.replace('sm', 'compute')}"
    nvrtc.compile_program(source, [virtual, *options], "PTX")
    translated = seconds()
    nvrtc.compile_program(source, [f"--gpu-architecture={arch}", *options], "CUBIN")
    assembled = seconds()
    path = str(folder / "candidate.so")
    outcome = build(BuildJob(task, decisions, path))
    whole = seconds() - assembled
    if outcome.kind:
        raise ValueError(f"{outcome.kind}: {outcome.message}")
    os.unlink(path)
    found = {
        "schedule": scheduled - started,
        "lowering": lowered - scheduled,
        "PTX": translated - lowered,
        "ptxas": (assembled - translated) - (translated - lowered),
    }
    return {**found, "library": whole - sum(found.values()), "whole": whole}


def serve() -> None:
    gc.disable()  # as in a process that builds
    with TemporaryDirectory() as folder:
        for line in sys.stdin:
            answers: list[Any] = []
            for text in json.loads(line):
                try:
                    answers.append(parts(text, Path(folder)))
                except Exception as error:
                    answers.append(f"{type(error).__name__}: {error}".splitlines()[0])
            print(json.dumps(answers), flush=True)
