"""Fit the coefficients of the GPU templates' estimates to a log, and say what such a fit is worth
on layers that it has not seen.

    python scripts/figures/fit_gpu_costs.py [LOG]... [--folds 8] [--sweeps 12] [--kinds float32,...]

The coefficients are those of schedules/cuda/gemm_space.py and mma_space.py. A fit begins with each
of them off by up to twice, and changes one after the other as long as the loss of the tasks (of at
least 5 candidates) falls: what the candidate costs that the estimate likes best, softened, and a
little for a wrong order. Layers are dealt out to folds, each at every batch and in every dtype;
every fold is judged by a fit to the others. Shown, means of the tasks as in evaluate_costs.py: what
the coefficients say as they stand, by a fit to all, and on layers left out.

Quoted by docs/tuning.md.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
from sheet import Sheet, main, parser_of
from trials import H200, LEAST, Measured, geomean, load, measured, spearman

from schedules.cuda import gemm_space, mma_space
from schedules.cuda.estimate import Delays

_SOFT = 0.05  # of the logarithm of an estimate: candidates so close are as likely to be chosen
_ORDER = 0.2  # what the rank correlation counts beside the loss of the choice
_STEPS = (1.5, 1.2, 1.05)  # factors by which a coefficient changes, sweep by sweep
_DELAYS = ("fetch", "launch", "sharpness")
_FLOAT32 = ("_ISSUED", "_ALONE", "_SHARPNESS", "_READ", "_COPY", "_GATHER", "_CACHED", "_UNCACHED")
_TENSOR = ("_RATE", "_FRAGMENT", "_COPY", "_GATHER", "_ALONE")
_BOTH = ("_WARP", "_STEP", "_STORE")

Values = dict[str, float]


@dataclass(frozen=True)
class Kind:
    """Kernels that share coefficients, which are variables of a module."""

    module: ModuleType
    names: tuple[str, ...]

    def values(self) -> Values:
        found = {name: float(getattr(self.module, name)) for name in self.names}
        return {**found, **{name: getattr(self.module._DELAYS, name) for name in _DELAYS}}

    def set(self, values: Values) -> None:
        for name in self.names:
            setattr(self.module, name, values[name])
        self.module._DELAYS = Delays(**{name: values[name] for name in _DELAYS})  # type: ignore[attr-defined]


KINDS = {
    "float32": Kind(gemm_space, _FLOAT32 + _BOTH),
    "tensor cores": Kind(mma_space, _TENSOR + _BOTH),
}


class Trials:
    """Candidates of a task, with the logarithm of their seconds over the best's."""

    def __init__(self, found: Measured) -> None:
        workload = found.task.workload
        self.kind = "float32" if found.operands == "float32" else "tensor cores"
        self.layer = replace(workload, n=1, dtype="float32")
        self._cost, self._decisions = found.task.space.cost, found.decisions
        self._losses = np.log(np.array(found.seconds) / min(found.seconds))

    def judge(self) -> tuple[float, float, float]:
        """(rank correlation, what is chosen over the best, loss), by the coefficients of now."""
        estimates = np.log([self._cost(d) for d in self._decisions])
        rank = spearman(estimates.tolist(), self._losses.tolist())
        likely = np.exp((estimates.min() - estimates) / _SOFT)
        loss = float(likely @ self._losses / likely.sum()) + _ORDER * (1 - rank)
        return rank, math.exp(self._losses[int(np.argmin(estimates))]), loss


def loss(tasks: Sequence[Trials]) -> float:
    return statistics.fmean(t.judge()[2] for t in tasks)


@contextlib.contextmanager
def kept(kind: Kind) -> Iterator[None]:
    """Let the coefficients be what they were, afterwards."""
    before = kind.values()
    try:
        yield
    finally:
        kind.set(before)


def fit(kind: Kind, tasks: Sequence[Trials], sweeps: int, draw: random.Random) -> Values:
    """Coefficients that suit the tasks; they are set when it ends."""
    values = {name: v * 2 ** draw.uniform(-1, 1) for name, v in kind.values().items()}
    kind.set(values)
    least = loss(tasks)
    for sweep in range(sweeps):
        step = _STEPS[len(_STEPS) * sweep // sweeps]
        for name in draw.sample(list(values), len(values)):
            for factor in (step, 1 / step):
                changed = {**values, name: values[name] * factor}
                kind.set(changed)
                if (found := loss(tasks)) < least:
                    values, least = changed, found
                    break
    kind.set(values)
    return values


def summed_up(judged: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """(mean rank correlation, what is chosen over the best)"""
    return statistics.fmean(j[0] for j in judged), geomean([j[1] for j in judged])


def judged(tasks: Sequence[Trials]) -> tuple[float, float]:
    return summed_up([t.judge() for t in tasks])


def left_out(kind: Kind, tasks: Sequence[Trials], folds: int, sweeps: int) -> tuple[float, float]:
    """As `judged`, every layer by coefficients that were fitted without it."""
    draw = random.Random(0)
    layers = sorted({t.layer for t in tasks}, key=str)
    draw.shuffle(layers)
    found: list[tuple[float, float, float]] = []
    for fold in range(min(folds, len(layers))):
        mine = set(layers[fold::folds])
        with kept(kind):
            fit(kind, [t for t in tasks if t.layer not in mine], sweeps, draw)
            found += [t.judge() for t in tasks if t.layer in mine]
    return summed_up(found)


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("logs", nargs="*", type=Path, default=[H200], metavar="LOG")
    parser.add_argument("--folds", type=int, default=8)
    parser.add_argument("--sweeps", type=int, default=12)
    parser.add_argument("--kinds", default=",".join(KINDS))
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    found = [Trials(m) for m in measured(load(options.logs)) if len(m.seconds) >= LEAST]
    print(f"{'':14}{'tasks':>6}{'':>14}{'rank':>7}{'chosen':>9}")
    for name in options.kinds.split(","):
        kind, tasks = KINDS[name], [t for t in found if t.kind == name]
        if not tasks:
            continue
        rows = {"as they stand": judged(tasks)}
        with kept(kind):
            values = fit(kind, tasks, options.sweeps, random.Random(0))
            rows["fitted to all"] = judged(tasks)
        rows["left out"] = left_out(kind, tasks, options.folds, options.sweeps)
        for number, (what, (rank, chosen)) in enumerate(rows.items()):
            start = f"{name:14}{len(tasks):6}" if number == 0 else " " * 20
            print(f"{start}{what:>14}{rank:7.2f}{chosen:9.3f}")
        print("fitted: " + ", ".join(f"{n.strip('_')} {v:.3g}" for n, v in values.items()))
        sheet.found[name] = {
            **{what: {"rank": r, "chosen": c} for what, (r, c) in rows.items()},
            "tasks": len(tasks),
            "coefficients": values,
        }


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
