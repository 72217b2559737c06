"""Knobs: the tunable choices of a template, declared before the schedule that uses them."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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


class _Watched(Mapping[str, int]):
    """Decisions that know how many of the first knobs were looked at: up to the last one read."""

    def __init__(self, names: Sequence[str]) -> None:
        self._places = {name: place for place, name in enumerate(names, start=1)}
        self.show(())

    def show(self, values: Sequence[int]) -> None:
        """Be these decisions, nothing of which was read yet."""
        self._values, self.depth = values, 0

    def __getitem__(self, name: str) -> int:
        place = self._places[name]
        if place > self.depth:
            self.depth = place
        return self._values[place - 1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def accepted(
    knobs: Mapping[str, tuple[int, ...]], rule: Callable[[Decisions], bool]
) -> Iterator[dict[str, int]]:
    """The combinations that `rule` holds for, in the order of `itertools.product`.

    What the rule says by the first few knobs alone it says for all combinations that share them:
    it is asked once for these.
    """
    names, values = list(knobs), list(knobs.values())
    watched, at = _Watched(names), [0] * len(names)
    while all(values):
        first = [value[i] for value, i in zip(values, at, strict=True)]
        watched.show(first)
        holds, depth = rule(watched), watched.depth
        if holds:
            for rest in itertools.product(*values[depth:]):
                yield dict(zip(names, (*first[:depth], *rest), strict=True))
        at[depth:] = [0] * (len(names) - depth)
        while depth and at[depth - 1] == len(values[depth - 1]) - 1:
            depth -= 1
            at[depth] = 0
        if not depth:
            return
        at[depth - 1] += 1


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
        chosen = list(self._worthwhile())
        chosen = chosen or list(accepted(self.knobs, self.is_valid))
        if not chosen:
            raise ValueError(f"a template left no valid decisions among {self.size} combinations")
        return chosen

    def _worthwhile(self) -> Iterator[dict[str, int]]:
        return accepted(self.knobs, lambda d: self.is_valid(d) and self.is_worthwhile(d))

    def is_within(self, known: Collection[tuple[int, ...]]) -> bool:
        """Whether all `points` are known, by their knobs' values; ends with the first that is
        not, where listing all of them takes a good part of a second."""
        if any(tuple(d.values()) not in known for d in self._worthwhile()):
            return False
        return all(tuple(d.values()) in known for d in self.points)

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
