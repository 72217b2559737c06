"""Rounds of candidates that are built ahead, while a GPU measures those before them.

Measuring on a GPU leaves the host alone, so all its cores build; on CPUs measuring needs quiet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from convtvm.kernels.task import decisions_of
from convtvm.measure.client import Zygote
from convtvm.measure.workbench import Owned, build_jobs, jobs_ahead
from convtvm.tuning.budget import Budget, Contender
from convtvm.tuning.transfer import Neighbours

_HELPERS = 2  # rounds built at once: when the one has few candidates left, the other has many
_ROUNDS = 3  # built or building, beside the one that is measured

_OPENINGS = 16  # tasks whose first candidates are built together

Batch = tuple[Contender, list[Any]]  # a task and its MeasureCandidates


def next_round(
    contenders: Sequence[Contender], budget: Budget, neighbours: Neighbours
) -> list[Batch]:
    """Candidates to be built together: the defaults of several tasks, then a batch of one."""
    pending = sum(len(c.search.pending) for c in contenders)
    # No more are asked than are wanted: a task's first question lists its space, a third of a
    # second.
    lacking = (c for c in contenders if c.left > 0 and c.search.lacks_default)
    chosen = list(islice(lacking, _OPENINGS))
    if not chosen and (promising := budget.choose(contenders)):
        chosen = [promising]
    batches = []
    for contender in chosen:
        count = budget.batch(contender, pending)
        seeds = neighbours.seeds(contender.search.task)
        if count and (proposed := contender.search.propose(count, seeds)):
            batches.append((contender, proposed))
            pending += len(proposed)
    return batches


class Builders:
    """Helper processes that build, each a round at a time. Use as a context manager."""

    def __init__(self, deadline: float) -> None:
        self._helpers = [Zygote(deadline, at_once=False) for _ in range(_HELPERS)]
        self._free: SimpleQueue[Zygote] = SimpleQueue()
        for helper in self._helpers:
            self._free.put(helper)
        for helper in self._helpers:
            helper.start_ahead()
        self._threads = ThreadPoolExecutor(_HELPERS)
        self.waiting: deque[tuple[list[Batch], Future[None]]] = deque()

    @property
    def have_room(self) -> bool:
        """Whether another round should be started."""
        return len(self.waiting) < _ROUNDS

    def start(self, batches: list[Batch]) -> None:
        """Have a round built, after those before it."""
        owned = jobs_ahead(
            [(c.search.bench, [decisions_of(m.sch.mod) for m in many]) for c, many in batches]
        )
        self.waiting.append((batches, self._threads.submit(self._build, owned)))

    def finished(self) -> list[Batch]:
        """The oldest round, once it is built. Raises what went wrong with the helper."""
        batches, built = self.waiting.popleft()
        built.result()
        return batches

    def _build(self, owned: Sequence[Owned]) -> None:
        helper = self._free.get()
        try:
            build_jobs(owned, helper)
        finally:
            self._free.put(helper)

    def __enter__(self) -> Builders:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for helper in self._helpers:
            helper.close()  # which ends the calls in the threads
        self._threads.shutdown()
        for helper in self._helpers:
            helper.close()  # one that was only starting
