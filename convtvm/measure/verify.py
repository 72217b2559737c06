"""Check kernels against float64, many at a time: the tool behind the shape tests."""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.target import Target

from convtvm.kernels import codegen, lowering
from convtvm.kernels.lowering import borders, loops, pipeline, prefetch, transpose
from convtvm.kernels.task import Task
from convtvm.machine.targets import CompileTarget
from convtvm.measure import places
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import Limits
from convtvm.problem.reference import Array, conv2d_reference, random_inputs, relative_error
from convtvm.problem.workload import ConvWorkload

# Algorithms that only multiply and add the inputs, or sums of them: on small integers they must be
# exact.
EXACT_FAMILIES = ("direct", "im2col", "mec", "strassen")
CHECK_SECONDS = 120.0  # one kernel built and run, on a machine that has other work too


@dataclass(frozen=True)
class Check:
    """One kernel to build, run once and compare with the reference, by calling this object.

    `decisions` are the default ones for None; for a whole number, a random choice by that seed.
    `known` is the fingerprint of a kernel that has passed: the same one is not built again.
    `opt_level` is LLVM's: 0 builds several times faster and checks all but its optimiser.
    """

    task: Task
    decisions: Mapping[str, int] | int | None = None
    seed: int = 0
    known: str = ""
    opt_level: int = 3

    def __call__(self) -> Verdict:
        decisions = self._decisions()
        kernel, pack = self.task.instantiate(decisions)["main"], self.task.pack()
        seen = _fingerprint(kernel, pack, f"{self.task.target.options} {self.opt_level}")
        if seen == self.known:
            return Verdict(self, decisions, fingerprint=seen, repeated=True)
        exact = self.task.algorithm.family in EXACT_FAMILIES
        w, layout = self.task.workload, self.task.layout
        data, weight, bias, reference = _problem(w, layout, self.seed, exact)
        compiled = partial(loaded, target=self.task.target, opt_level=self.opt_level)
        packed = _packed.of(weight, pack, compiled)
        out = np.full(reference.shape, np.nan, np.float32)  # an element left out shows
        compiled(kernel)(*map(tvm_ffi.from_dlpack, (data, packed, bias, out)))
        error = relative_error(out, reference)
        tolerance = 0.0 if exact else self.task.algorithm.tolerance
        problem = "" if error <= tolerance else f"relative error {error:.1e} > {tolerance:.0e}"
        return Verdict(self, decisions, error, problem, seen)

    def _decisions(self) -> Mapping[str, int]:
        space = self.task.space
        if self.decisions is None:
            return space.default
        if isinstance(self.decisions, int):
            return random.Random(self.decisions).choice(space.points)
        return self.decisions

    def __str__(self) -> str:
        return f"{self.task.workload} {self.task.algorithm_name} {self.task.layout}"


@dataclass(frozen=True)
class Verdict:
    """What one kernel did: `error` relative to the largest output, or the `problem` in words."""

    check: Check
    decisions: Mapping[str, int] = field(default_factory=dict)
    error: float = 0.0
    problem: str = ""
    fingerprint: str = ""
    repeated: bool = False


def verify(
    checks: Sequence[Check], helpers: Sequence[Zygote], chunk: int = 48
) -> Iterator[Verdict]:
    """Run all checks, in children forked by the helpers, a list of verdicts as it is finished.

    A child takes `chunk` checks in turn; one that crashes or hangs costs its kernel, whose problem
    says so, and one more fork. Keep the kernels of a workload together: they share its reference
    and packed weights.
    """
    parts = [checks[i : i + chunk] for i in range(0, len(checks), chunk)]
    free = list(helpers)

    def run(part: Sequence[Check]) -> list[Verdict]:
        helper = free.pop()
        outcomes = list(helper.call("run", part, Limits(timeout=CHECK_SECONDS)))
        free.append(helper)
        return [
            Verdict(part[i], problem=f"{o.kind}: {o.message}") if o.kind else o.value
            for i, o in outcomes
        ]

    with ThreadPoolExecutor(len(helpers)) as pool:
        for done in as_completed([pool.submit(run, part) for part in parts]):
            yield from done.result()


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
    if kernel == (1, 1) and rng.random() < 0.7:  # seldom padded in practice, and never if pointwise
        top = left = bottom = right = 0
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


# ---- inside a child of a helper ------------------------------------------------------------------


@lru_cache(maxsize=2)
def _problem(w: ConvWorkload, layout: str, seed: int, exact: bool) -> tuple[Array, ...]:
    """data, weight, bias and the float64 answer; small integers where the answer must be exact."""
    data, weight, bias = random_inputs(w, seed, layout, "integer" if exact else "normal")
    return data, weight, bias, conv2d_reference(w, data, weight, bias, layout)


class _Packed:
    """The weights packed last, so that algorithms which pack alike compile that only once."""

    def __init__(self) -> None:
        self.owner: Array | None = None
        self.kept: dict[int, Array] = {}

    def of(self, weight: Array, pack: tirx.PrimFunc, compiled: Callable[..., Any]) -> Array:
        if self.owner is not weight:
            self.owner, self.kept = weight, {}
        key = tvm_ffi.structural_hash(pack)
        if key not in self.kept:
            shape = tuple(int(extent) for extent in pack.params[1].shape)
            packed = np.full(shape, np.nan, np.float32)
            compiled(pack)(*map(tvm_ffi.from_dlpack, (weight, packed)))
            self.kept[key] = packed
        return self.kept[key]


_packed = _Packed()


@cache
def _place() -> Path:
    """The folder for folders of this process."""
    folder = places.workplace()
    folder.rmdir()
    return folder.parent


def loaded(func: tirx.PrimFunc, target: CompileTarget, opt_level: int) -> Any:
    """The function as a library has it: compiled, linked, loaded."""
    chosen = Target({**target.options, "num-cores": 1, "opt-level": opt_level})
    lowered = lowering.lower(codegen.merge({"main": func}), chosen)
    with TemporaryDirectory(dir=_place()) as folder:
        path = Path(folder, "kernel.so")
        codegen.write_object(codegen.compile_lowered(lowered, chosen), f"{folder}/kernel.o")
        codegen.link_objects([f"{folder}/kernel.o"], path, target)
        return tvm.runtime.load_module(str(path))["main"]


def _fingerprint(kernel: tirx.PrimFunc, pack: tirx.PrimFunc, target: str) -> str:
    """Equal for kernels that become the same code and get the same packed weight."""
    hashes = [f"{tvm_ffi.structural_hash(func):x}" for func in (kernel, pack)]
    made_by = (pipeline, borders, loops, prefetch, transpose, codegen.compile_lowered)
    steps = [inspect.getsource(step) for step in made_by]
    text = " ".join([*hashes, target, tvm.__version__, *steps])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
