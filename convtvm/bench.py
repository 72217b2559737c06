"""Layer by layer, in one run: every compiled algorithm beside other libraries."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convtvm.dispatch import KernelLibrary
from convtvm.errors import ConvtvmError
from convtvm.peers import Peer, Run
from convtvm.reference import conv2d_reference, random_inputs, relative_error
from convtvm.workload import ConvWorkload


@dataclass(frozen=True)
class Measured:
    """Median seconds a call, error relative to the largest output, workspace if known."""

    seconds: float
    max_error: float
    workspace_bytes: int | None = None


@dataclass(frozen=True)
class BenchRow:
    """One workload: our algorithms and the peers by name; `chosen` is what `plan` would take."""

    workload: ConvWorkload
    chosen: str
    algorithms: Mapping[str, Measured]
    peers: Mapping[str, Measured]

    @property
    def best_peer(self) -> tuple[str, float] | None:
        if not self.peers:
            return None
        name = min(self.peers, key=lambda p: self.peers[p].seconds)
        return name, self.peers[name].seconds

    @property
    def speedup(self) -> float | None:
        """Time of the best peer over the time of the chosen algorithm."""
        best = self.best_peer
        return best[1] / self.algorithms[self.chosen].seconds if best else None


def bench(
    library: KernelLibrary, peers: Mapping[str, Peer], repeat: int = 25
) -> Iterator[BenchRow]:
    """Measure every workload of `library`, whose layout must be NCHW if there are peers.

    All contestants of a workload run in turn, `repeat` times, so that a slow moment of the machine
    hits all of them; each starts with a warm-up and is checked against float64.
    """
    if peers and library.layout != "NCHW":
        raise ConvtvmError(f"peers run NCHW, the library is {library.layout}")
    for w in library.workloads:
        data, weight, bias = random_inputs(w, seed=0, layout=library.layout)
        reference = conv2d_reference(w, data, weight, bias, library.layout)
        runs: dict[str, Run] = {}
        workspace: dict[str, int] = {}
        for candidate in library.candidates(w):
            plan = library.plan(w, weight, bias, algorithm=candidate.algorithm)
            out = np.empty(w.out_shape(library.layout), np.float32)
            runs[candidate.algorithm] = _bound(plan, data, out)
            workspace[candidate.algorithm] = candidate.workspace_bytes
        for peer in peers.values():
            runs.update(peer(w, data, weight, bias, library.threads))
        errors = {name: relative_error(np.asarray(run()), reference) for name, run in runs.items()}
        seconds = _interleave(runs, repeat)
        measured = {
            name: Measured(seconds[name], errors[name], workspace.get(name)) for name in runs
        }
        yield BenchRow(
            workload=w,
            chosen=library.candidates(w)[0].algorithm,
            algorithms={name: m for name, m in measured.items() if name in workspace},
            peers={name: m for name, m in measured.items() if name not in workspace},
        )


def _bound(plan: Any, data: np.ndarray, out: np.ndarray) -> Run:
    return lambda: plan(data, out=out)


def _interleave(runs: Mapping[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Median seconds of each, one call of each in turn; two calls in a row, the second counts."""
    samples: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(repeat):
        for key, run in runs.items():
            run()  # brings its own weights and code back into the caches
            started = time.perf_counter()
            run()
            samples[key].append(time.perf_counter() - started)
    return {key: statistics.median(values) for key, values in samples.items()}
