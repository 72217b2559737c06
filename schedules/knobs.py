"""Knobs: the tunable choices of a template, declared before the schedule that uses them."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

Decisions = Mapping[str, int]

_EVEN = 1.2  # times the ideal: up to this, threads count as equally busy


class Rules(ABC):
    """What a template says of its decisions on one workload; sizes are a subclass's fields."""

    @property
    @abstractmethod
    def knobs(self) -> Mapping[str, tuple[int, ...]]:
        """Every knob with its values."""

    def is_valid(self, d: Decisions) -> bool:
        """Whether these decisions may be built."""
        return True

    def is_worthwhile(self, d: Decisions) -> bool:
        """Whether valid decisions are not hopeless from the start."""
        return True

    @abstractmethod
    def cost(self, d: Decisions) -> float:
        """A rough estimate (lower is better) of one thread's work, that picks the default decisions
        without measuring."""

    def features(self, d: Decisions) -> Mapping[str, float]:
        """Derived quantities that the cost model learns from besides the knobs."""
        return {}

    def turns(self, d: Decisions) -> int:
        """Iterations of the parallel loop that does most of the work, which threads share."""
        return 1


@dataclass(frozen=True)
class Space:
    """All decisions of a template on one workload, for so many threads."""

    rules: Rules
    threads: int = 1

    @cached_property
    def knobs(self) -> Mapping[str, tuple[int, ...]]:
        return self.rules.knobs

    @property
    def is_valid(self) -> Callable[[Decisions], bool]:
        return self.rules.is_valid

    @property
    def is_worthwhile(self) -> Callable[[Decisions], bool]:
        return self.rules.is_worthwhile

    @property
    def cost(self) -> Callable[[Decisions], float]:
        return self.rules.cost

    @property
    def turns(self) -> Callable[[Decisions], int]:
        return self.rules.turns

    @property
    def features(self) -> Callable[[Decisions], Mapping[str, float]]:
        return self.rules.features

    @property
    def size(self) -> int:
        """Number of combinations, valid or not."""
        total = 1
        for values in self.knobs.values():
            total *= len(values)
        return total

    @cached_property
    def points(self) -> list[dict[str, int]]:
        """The combinations to search, in a fixed order: the worthwhile, else all valid ones."""
        names = list(self.knobs)
        combinations = itertools.product(*self.knobs.values())
        every = (dict(zip(names, values, strict=True)) for values in combinations)
        valid = [d for d in every if self.is_valid(d)]
        if not valid:
            raise ValueError(f"a template left no valid decisions among {self.size} combinations")
        return [d for d in valid if self.is_worthwhile(d)] or valid

    @cached_property
    def default(self) -> dict[str, int]:
        """The decisions of an untuned kernel: the cheapest by estimate, the first on a tie."""
        return min(self.points, key=self.estimate)

    def idling(self, decisions: Decisions) -> float:
        """How much longer the busiest thread takes than if all had the same work."""
        turns = self.turns(decisions)
        return -(-turns // self.threads) * self.threads / turns

    def estimate(self, decisions: Decisions) -> float:
        """`cost`, with the time that threads wait for the busiest."""
        return self.cost(decisions) * self.idling(decisions)

    def spread(self, decisions: Decisions) -> dict[str, int]:
        """`decisions`, made for any number of threads, as these threads can share them.

        If some would idle, the cheapest decisions that keep all busy and differ in one knob, else
        in two; if there are none, what the estimate likes best of all these.
        """
        if self.idling(decisions) <= _EVEN:
            return dict(decisions)
        seen = [dict(decisions)]
        for count in (1, 2):
            seen += (d for d in self._changed(decisions, count) if self.is_valid(d))
            busy = [d for d in seen if self.idling(d) <= _EVEN and self.is_worthwhile(d)]
            if busy:
                return min(busy, key=self.cost)
        return min(seen, key=self.estimate)

    def best_of(self, knob: str, decisions: Decisions) -> dict[str, int]:
        """`decisions` with that value of one knob which the estimate likes best, these on a tie and
        where none may be built."""
        values = sorted(self.knobs[knob], key=lambda value: value != decisions[knob])
        every = ({**decisions, knob: value} for value in values)
        valid = (d for d in every if self.contains(d))
        return min(valid, key=self.estimate, default=dict(decisions))

    def _changed(self, decisions: Decisions, count: int) -> Iterator[dict[str, int]]:
        """All that differ from `decisions` in `count` knobs."""
        for names in itertools.combinations(self.knobs, count):
            others = ([v for v in self.knobs[n] if v != decisions[n]] for n in names)
            for values in itertools.product(*others):
                yield {**decisions, **dict(zip(names, values, strict=True))}

    def contains(self, decisions: Decisions) -> bool:
        """Whether `decisions` name exactly these knobs with values that may be built."""
        return (
            set(decisions) == set(self.knobs)
            and all(decisions[name] in values for name, values in self.knobs.items())
            and self.is_valid(decisions)
        )
