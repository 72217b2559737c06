"""Seconds a call on a shared machine: in windows during which nothing took the cores away."""

from __future__ import annotations

import math
import random
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from convtvm.measure.jobs import Limits
from convtvm.measure.pace import Pace, pace

_PATIENCE = 0.02  # seconds to wait for full speed before a window
_WARM_UP = 0.015  # seconds; two cores that were idle need 10 ms
_WAIT_SHARE = 0.02  # of a window that threads may wait for a core and the window still counts
_ROUNDS = 6  # times the number of samples wanted: after so many a side-by-side timing ends
NOISY = 0.1  # of the median: how far apart the middle half of good samples may lie


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: the median of so many `samples`, the least of them, and the `spread`, how
    far apart their middle half lies as a share of the median. `disturbed`: too few were taken at
    full speed, and these are all."""

    seconds: float
    least: float
    spread: float = 0.0
    samples: int = 1
    disturbed: bool = False

    @classmethod
    def of(cls, taken: Sequence[float], disturbed: bool = False) -> Timing:
        """Of samples in seconds, one at least; of a single one nobody knows the spread."""
        median, spread = statistics.median(taken), 0.0
        if len(taken) > 1:
            low, _, high = statistics.quantiles(taken, n=4, method="inclusive")
            spread = (high - low) / median if median else 0.0
        return cls(median, min(taken), spread, len(taken), disturbed)

    @property
    def is_noisy(self) -> bool:
        """Whether another run would hardly find the same."""
        return self.disturbed or self.spread > NOISY


def timed(evaluate: Callable[[int], float], limits: Limits) -> tuple[list[float], bool]:
    """Seconds a call in the fastest third of the windows at full speed that nothing disturbed;
    whether there were enough.

    Medians of plain timings are wrong by half on a shared machine, and with several threads they
    do not even look noisy. What disturbs only ever slows down, and some of it, such as strangers in
    the shared cache, cannot be seen: hence the fastest. With too few clean windows the fastest
    of all are used and marked.
    """
    once = evaluate(1)
    number = max(1, int(limits.window / max(once, 1e-7)))
    if limits.tracker:  # this process only waits; what disturbs the device cannot be seen
        return [evaluate(number) for _ in range(limits.samples)], True
    clean: list[float] = []
    disturbed: list[float] = []
    deadline = time.monotonic() + limits.patience
    while len(clean) < 3 * limits.samples:
        taken = [*clean, *disturbed]
        over = time.monotonic() >= deadline or min(taken, default=0.0) > limits.hopeless
        if over and len(taken) >= limits.samples:
            break
        seconds, alone = window(lambda: evaluate(number), pace(limits.threads), limits.threads)
        (clean if alone else disturbed).append(seconds)
    enough = len(clean) >= limits.samples
    fastest = sorted(clean if enough else clean + disturbed)
    return fastest[: min(limits.samples, math.ceil(len(fastest) / 3))], enough


Figure = TypeVar("Figure")
Timer = Callable[[Callable[[], Any]], tuple[Figure, bool]]


def in_turn(
    runs: Mapping[str, Callable[[], Any]],
    repeat: int,
    timer: Timer[Figure],
    at_most: float = math.inf,
) -> dict[str, tuple[list[Figure], bool]]:
    """A figure, such as its seconds, of each of a contestant's calls, and whether too many were
    disturbed: one call a round.

    Rounds go on until everyone has `repeat` calls that count, which `timer` says along with the
    figure; a few times as many at most, and none is begun after `at_most` seconds. Every round
    has its own order, so that nobody always follows the same contestant. All calls are used where
    less than half of `repeat` count.
    """
    clean: dict[str, list[Figure]] = {key: [] for key in runs}
    every: dict[str, list[Figure]] = {key: [] for key in runs}
    order, shuffle = list(runs), random.Random(0).shuffle
    end = time.monotonic() + at_most
    for _ in range(_ROUNDS * repeat):
        shuffle(order)
        for key in order:
            if len(clean[key]) < repeat:
                figure, counts = timer(runs[key])
                every[key].append(figure)
                if counts:
                    clean[key].append(figure)
        if time.monotonic() >= end:
            break
    enough = {key: len(clean[key]) >= repeat // 2 for key in runs}
    return {key: (clean[key] if enough[key] else every[key], not enough[key]) for key in runs}


def mean_seconds(call: Callable[[], Any], number: int) -> float:
    """Seconds of a call, the mean of `number` in a row."""
    started = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - started) / number


def warm_up(call: Callable[[], Any]) -> float:
    """Bring a contestant to its steady state; seconds of the last call.

    After a break, or calls of others, its first calls take up to twice as long: weights and code
    come back into the caches, threads wake up, cores speed up.
    """
    end = time.perf_counter() + _WARM_UP
    call()
    seconds = mean_seconds(call, 1)
    while time.perf_counter() < end:
        seconds = mean_seconds(call, 1)
    return seconds


def window(run: Callable[[], float], cores: Pace, threads: int) -> tuple[float, bool]:
    """The result of `run`, and whether this process had the cores that it wanted meanwhile.

    It had not if they were slower than they can be before or after, if it was preempted, if its
    threads waited in line for a core while runnable, or if a single thread got less processor time
    than time passed.
    """
    full = cores.wait(_PATIENCE)
    preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    waited = _waited()
    cpu, wall = time.process_time(), time.perf_counter()
    result = run()
    full = full and (cores.is_full() or cores.is_full())  # its operands may have left the cache
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    waited = _waited() - waited
    preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - preempted
    busy = threads > 1 or cpu >= (1 - _WAIT_SHARE) * wall
    return result, full and not preempted and busy and waited <= _WAIT_SHARE * wall


def _waited() -> float:
    """Seconds that this process's threads have waited for a core; 0 where the kernel keeps none."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text(encoding="ascii").split()[1])
        except (OSError, IndexError, ValueError):
            continue
    return total / 1e9
