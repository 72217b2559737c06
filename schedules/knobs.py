"""Knobs: the tunable choices of a template, declared before the schedule that uses them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

Decisions = Mapping[str, int]


@dataclass(frozen=True)
class Space:
    """All decisions of a template on one workload.

    `knobs` maps a name to its values; `is_valid` says which combinations may be built, and
    `is_worthwhile` which of them are not hopeless from the start; `cost` is a rough estimate
    (lower is better) that picks the default decisions without measuring; `features` are derived
    quantities that the cost model learns from besides the knobs.
    """

    knobs: Mapping[str, tuple[int, ...]]
    is_valid: Callable[[Decisions], bool]
    is_worthwhile: Callable[[Decisions], bool]
    cost: Callable[[Decisions], float]
    features: Callable[[Decisions], Mapping[str, float]] = field(default=lambda d: {})

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
        return min(self.points, key=self.cost)

    def contains(self, decisions: Decisions) -> bool:
        """Whether `decisions` name exactly these knobs with values that may be built."""
        return (
            set(decisions) == set(self.knobs)
            and all(decisions[name] in values for name, values in self.knobs.items())
            and self.is_valid(decisions)
        )
