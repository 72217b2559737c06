"""Layer by layer, in one run: every compiled algorithm beside other libraries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from convtvm.compare.peers import Peer, Run
from convtvm.dispatch import KernelLibrary, Plan
from convtvm.errors import ConvtvmError
from convtvm.kernels.algorithms import ALGORITHMS
from convtvm.measure.jobs import failure, wrong_answer
from convtvm.measure.pace import pace
from convtvm.measure.timing import Timing, in_turn, mean_seconds, warm_up
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.workload import ConvWorkload

_PATIENCE = 0.02  # seconds to wait for full speed
_VALID = 0.5  # seconds that full speed of several cores is believed
_IN_A_ROW = 0.005  # seconds
_LOOK = 0.004  # seconds, longer than the gaps between ONNX Runtime's bursts of spinning
_BUSY = 0.1  # of a core
_MOST_SPINNING = 0.5  # seconds
WRONG = 1e-2  # relative error that no algorithm has


@dataclass(frozen=True)
class Measured:
    """Median seconds a call, error relative to the largest output, workspace if known.

    `disturbed`, `spread`, `least` and `samples` are those of a Timing. On a GPU `seconds` are with
    a cold L2 cache and `warm` those of calls in a row.
    """

    seconds: float
    max_error: float
    workspace_bytes: int | None = None
    disturbed: bool = False
    warm: float | None = None
    spread: float = 0.0
    least: float | None = None
    samples: int = 1

    @classmethod
    def of(cls, timing: Timing, max_error: float, workspace_bytes: int | None = None) -> Measured:
        return cls(max_error=max_error, workspace_bytes=workspace_bytes, **vars(timing))

    @property
    def timing(self) -> Timing:
        least = self.seconds if self.least is None else self.least
        return Timing(self.seconds, least, self.spread, self.samples, self.disturbed)

    @property
    def is_noisy(self) -> bool:
        return self.timing.is_noisy


@dataclass(frozen=True)
class BenchRow:
    """One workload: our algorithms and the peers by name; `chosen` is what `plan` would take, empty
    where limits leave nothing.

    `absent`: peers that took no part, and why. `without_bias`: peers on a GPU that add the bias in
    a kernel of its own, without that; they do not count, since ours adds it.
    """

    workload: ConvWorkload
    chosen: str
    algorithms: Mapping[str, Measured]
    peers: Mapping[str, Measured]
    absent: Mapping[str, str] = field(default_factory=dict)
    without_bias: Mapping[str, Measured] = field(default_factory=dict)

    @property
    def best_peer(self) -> tuple[str, float] | None:
        if not self.peers:
            return None
        name = min(self.peers, key=lambda p: self.peers[p].seconds)
        return name, self.peers[name].seconds

    @property
    def figures(self) -> list[Measured]:
        """All that were measured and are shown."""
        return [*self.algorithms.values(), *self.peers.values(), *self.without_bias.values()]

    @property
    def multiplied(self) -> float:
        """FLOP/s of the products that the chosen algorithm computes, of which Winograd has fewer
        than the convolution: no algorithm gets above the machine's peak in these."""
        products = ALGORITHMS[self.chosen].multiplications(self.workload)
        return 2 * products / self.algorithms[self.chosen].seconds

    @property
    def speedup(self) -> float | None:
        """Time of the best peer over the time of the chosen algorithm."""
        best, ours = self.best_peer, self.algorithms.get(self.chosen)
        return best[1] / ours.seconds if best and ours else None


def bench(
    library: KernelLibrary, peers: Mapping[str, Peer], repeat: int = 25
) -> Iterator[BenchRow]:
    """Measure every workload of `library`, whose layout must be NCHW if there are peers.

    All contestants of a workload run in turn, until each has `repeat` calls that count, so that a
    slow moment of the machine hits all of them; each is checked against float64. A peer that fails
    on a workload, or computes something else, is absent there.
    """
    if peers and library.layout != "NCHW":
        raise ConvtvmError(f"peers run NCHW, the library is {library.layout}")
    for w in library.workloads:
        data, weight, bias = random_inputs(w, seed=0, layout=library.layout)
        reference = conv2d_reference(w, data, weight, bias, library.layout)
        plans = plans_of(library, w, weight, bias)
        runs = {
            name: _bound(plan, data, np.empty(w.out_shape(library.layout), np.float32))
            for name, plan in plans.items()
        }
        workspace = {name: plan.workspace_bytes for name, plan in plans.items()}
        errors = {name: relative_error(np.asarray(run()), reference) for name, run in runs.items()}
        absent: dict[str, str] = {}
        for peer_name, peer in peers.items():
            try:
                settings = peer(w, data, weight, bias, library.threads)
                off = {name: _peer_error(run, reference) for name, run in settings.items()}
            except Exception as error:  # other people's code, which may raise anything
                absent[peer_name] = failure("peer", error).message
            else:
                runs.update(settings)
                errors.update(off)
        measured = {
            name: Measured.of(timing, errors[name], workspace.get(name))
            for name, timing in interleave(runs, repeat, library.threads).items()
        }
        yield BenchRow(
            workload=w,
            chosen=library.candidates(w)[0].algorithm,
            algorithms={name: m for name, m in measured.items() if name in workspace},
            peers={name: m for name, m in measured.items() if name not in workspace},
            absent=absent,
        )


def plans_of(
    library: KernelLibrary, w: ConvWorkload, weight: np.ndarray, bias: np.ndarray | None
) -> dict[str, Plan]:
    """Of every algorithm that `library` has for `w`, the plan of exactly this one: asked for by its
    name, `direct` would stand for the fastest of its family."""
    return {k.algorithm: library.plan_by(k, w, weight, bias) for k in library.kernels(w)}


def _peer_error(run: Run, reference: np.ndarray) -> float:
    """Relative error of a peer's result. Raises ConvtvmError if it is no convolution in fp32."""
    error = relative_error(np.asarray(run()), reference)
    if not error < WRONG:
        raise ConvtvmError(wrong_answer(error, WRONG).message)
    return error


def _bound(plan: Any, data: np.ndarray, out: np.ndarray) -> Run:
    return lambda: plan(data, out=out)


def interleave(
    runs: Mapping[str, Callable[[], Any]], repeat: int, threads: int
) -> dict[str, Timing]:
    """The time of each by `repeat` rounds, in each of which everyone runs for some milliseconds,
    without a break, until it is as fast as it gets."""
    times = in_turn(runs, repeat, partial(_steady, cores=_Cores(threads)))
    return {key: Timing.of(*taken) for key, taken in times.items()}


class _Cores:
    """Whether the cores are at full speed, with all threads: looked up twice a second, since the
    look wakes up threads of our own. Two virtual cores may share a real one for seconds.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._full, self._until = False, 0.0

    def are_full(self) -> bool:
        if time.monotonic() >= self._until:
            self._full = pace(self.threads).wait(_PATIENCE)
            self._until = time.monotonic() + _VALID
        return self._full


def _steady(run: Callable[[], Any], cores: _Cores) -> tuple[float, bool]:
    """Seconds of a call in the steady state, and whether nothing disturbed it."""
    if cores.threads > 1:
        full = cores.are_full()
        _until_others_sleep()
    number = max(1, int(_IN_A_ROW / warm_up(run)))
    if cores.threads > 1:
        return mean_seconds(run, number), full
    core = pace(1)
    full = core.wait(_PATIENCE)
    seconds = mean_seconds(run, number)
    return seconds, full and (core.is_full() or core.is_full())


def _until_others_sleep() -> None:
    """Wait for the threads of the contestant before, which spin for a while in wait for work."""
    quiet, deadline = 0, time.monotonic() + _MOST_SPINNING
    while quiet < 2 and time.monotonic() < deadline:
        cpu, wall = time.process_time(), time.perf_counter()
        time.sleep(_LOOK)
        busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
        quiet = 0 if busy > _BUSY else quiet + 1
