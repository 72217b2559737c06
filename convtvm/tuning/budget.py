"""Where the next trials go: to the task that is expected to save the most time a second; but no
workload is left with a few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convtvm.machine.cpu import physical_cores
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning.progress import TaskProgress, fastest
from convtvm.tuning.search import TaskSearch

_BATCH = 16  # candidates built together at least; the cost model learns after each batch
_FAIR = 24  # trials that an algorithm gets before it may be dropped
_FLOOR = 0.25  # of an equal share of all trials: what the best tried algorithm of a workload gets
_NO_CHANCE = 0.002  # expected gain of all its trials below which an algorithm is dropped
_FOREVER = 1e9  # seconds; the system's calls that wait take no more than a few times that
_RESERVE = (3.0, 0.2)  # seconds for confirming a workload, and the most of the time limit


@dataclass
class Contender:
    """A task with its search."""

    progress: TaskProgress
    search: TaskSearch

    @property
    def left(self) -> int:
        """Trials that it may still be given; some may be pending."""
        progress = self.progress
        return progress.trials - progress.done - len(self.search.pending)


class Budget:
    """Time and trials of one run, shared by its tasks."""

    def __init__(
        self, started: float, seconds: float | None, trials: int | None, min_gain: float
    ) -> None:
        endless = seconds is None or seconds > _FOREVER
        self._seconds = math.inf if endless else float(seconds or 0.0)
        self.deadline = started + self._seconds
        self._left = math.inf if trials is None else trials
        self._min_gain = min_gain

    @property
    def is_spent(self) -> bool:
        """Whether all trials were made."""
        return self._left <= 0

    def spend(self) -> None:
        self._left -= 1

    def tuning_deadline(self, workloads: int, confirmed: bool) -> float:
        """When to end tuning, such that there is time to confirm the best."""
        each, most = _RESERVE
        if not confirmed or math.isinf(self._seconds):
            return self.deadline
        return self.deadline - min(each * workloads, most * self._seconds)

    def batch(self, contender: Contender, pending: int = 0) -> int:
        """How many trials a task gets at once, where all tasks together have some pending."""
        most = max(_BATCH, 2 * physical_cores())
        return max(0, int(min(most, contender.left, self._left - pending)))

    def choose(self, contenders: Sequence[Contender]) -> Contender | None:
        """The task for the next batch, None if no trial is left or wanted, or all are pending.

        Sets `ended` of the tasks that get no more, with the reason.
        """
        if self.is_spent:
            return None
        best = fastest(c.progress for c in contenders)
        ranked = []
        for contender in contenders:
            progress = contender.progress
            rival = best[progress.task.workload]
            pending = contender.search.pending
            if progress.ended or self._ends(contender, rival):
                continue
            if pending and (contender.left <= 0 or not contender.search.known):
                continue
            if contender.search.lacks_default:
                return contender
            value = self._value(contender, rival) / (1 + len(pending))
            ranked.append((value, -progress.done - len(pending), contender))
        poor = _neglected(contenders)
        ranked = [r for r in ranked if r[2].progress.task.workload in poor] or ranked
        return max(ranked, key=lambda r: r[:2])[2] if ranked else None

    def _ends(self, contender: Contender, rival: float) -> bool:
        progress, search = contender.progress, contender.search
        left = progress.trials - progress.done
        if left <= 0:
            progress.ended = "all its trials"
        elif search.is_exhausted:
            progress.ended = "its whole space"
        elif progress.done >= _FAIR and progress.best is not None:
            seconds = progress.best.seconds
            gain = search.expected_gain(left, rival)
            if seconds > rival and gain < _NO_CHANCE:
                progress.ended = f"dropped: {seconds / rival:.2f}x the best, no hope to win"
            elif gain < self._min_gain:
                progress.ended = f"the model expects {100 * gain:.1g} % more"
        return bool(progress.ended)

    def _value(self, contender: Contender, rival: float) -> float:
        """Seconds that the next batch is expected to save in a network, for each second it
        takes."""
        progress = contender.progress
        gain = contender.search.expected_gain(self.batch(contender), rival)
        saved = progress.task.workload.multiplicity * rival * gain
        cost = progress.seconds / progress.measured if progress.measured else 1.0
        return saved / cost if math.isfinite(saved) else math.inf


def _neglected(contenders: Sequence[Contender]) -> set[ConvWorkload]:
    """Workloads none of whose algorithms has its floor of trials."""
    most: dict[ConvWorkload, int] = {}
    for progress in (c.progress for c in contenders):
        workload = progress.task.workload
        most[workload] = max(most.get(workload, 0), progress.done)
    floor = _FLOOR * sum(c.progress.done for c in contenders) / len(most)
    return {workload for workload, done in most.items() if done < floor}
