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
        runs: dict[tuple[str, int], Run] = {}
        workspace: dict[str, int] = {}
        for candidate in library.candidates(w):
            plan = library.plan(w, weight, bias, algorithm=candidate.algorithm)
            out = np.empty(w.out_shape(library.layout), np.float32)
            runs[(candidate.algorithm, -1)] = _bound(plan, data, out)
            workspace[candidate.algorithm] = candidate.workspace_bytes
        for name, peer in peers.items():
            settings = peer(w, data, weight, bias, library.threads)
            runs.update({(name, i): run for i, run in enumerate(settings)})
        errors = {key: relative_error(np.asarray(run()), reference) for key, run in runs.items()}
        seconds = _interleave(runs, repeat)
        ours = {
            name: Measured(seconds[name, i], errors[name, i], workspace[name])
            for name, i in runs
            if i < 0
        }
        theirs: dict[str, Measured] = {}
        for name, i in runs:
            if i >= 0 and (name not in theirs or seconds[name, i] < theirs[name].seconds):
                theirs[name] = Measured(seconds[name, i], errors[name, i])
        yield BenchRow(w, library.candidates(w)[0].algorithm, ours, theirs)


def _bound(plan: Any, data: np.ndarray, out: np.ndarray) -> Run:
    return lambda: plan(data, out=out)


def _interleave(
    runs: Mapping[tuple[str, int], Callable[[], Any]], repeat: int
) -> dict[tuple[str, int], float]:
    """Median seconds of each, one call of each in turn; two calls in a row, the second counts."""
    samples: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for _ in range(repeat):
        for key, run in runs.items():
            run()  # brings its own weights and code back into the caches
            started = time.perf_counter()
            run()
            samples[key].append(time.perf_counter() - started)
    return {key: statistics.median(values) for key, values in samples.items()}
