"""The cheapest of all ways to give every node one of two labels, by a minimum cut."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable, Iterable

_START, _END = "start", "end"
_NEVER = float("inf")


class Labels:
    """Nodes that are labelled False or True at a price, and prices of labels that differ.

    A cut separates the nodes that are False, with the start, from those that are True, with the
    end; the arcs that it cuts are what the labels cost (Ford and Fulkerson; Boykov and Kolmogorov,
    2004).
    """

    def __init__(self) -> None:
        self.price_of_all = 0.0  # of the labels that were solved for
        self._left: dict[Hashable, dict[Hashable, float]] = {_START: {}, _END: {}}

    def price(self, node: Hashable, false: float = 0.0, true: float = 0.0) -> None:
        """What each label of a node costs, infinite for one that it cannot have."""
        self._arc(_START, node, true)
        self._arc(node, _END, false)

    def imply(self, node: Hashable, other: Hashable, price: float) -> None:
        """What it costs that `node` is False and `other` True."""
        self._arc(node, other, price)

    def convert(
        self, name: Hashable, source: Hashable, readers: Iterable[Hashable], price: float
    ) -> None:
        """What it costs, once, that any of the `readers` of a value has another label than its
        `source`."""
        made, unmade = ("made", name), ("unmade", name)
        self.imply(source, made, price)
        self.imply(unmade, source, price)
        for reader in readers:
            self.imply(made, reader, _NEVER)
            self.imply(reader, unmade, _NEVER)

    def solve(self) -> set[Hashable]:
        """The nodes that are True."""
        while (path := self._augmenting()) is not None:
            arcs = list(itertools.pairwise(path))
            room = min(self._left[a][b] for a, b in arcs)
            if room == float("inf"):
                raise ValueError("a node can have neither label")
            self.price_of_all += room
            for a, b in arcs:
                self._left[a][b] -= room
                self._left[b][a] = self._left[b].get(a, 0.0) + room
        reached = self._reached()
        return {node for node in self._left if node not in reached and node != _END}

    def _arc(self, a: Hashable, b: Hashable, room: float) -> None:
        if room > 0:
            self._left.setdefault(a, {})[b] = self._left.get(a, {}).get(b, 0.0) + room
            self._left.setdefault(b, {}).setdefault(a, 0.0)
        else:
            self._left.setdefault(a, {})
            self._left.setdefault(b, {})

    def _reached(self) -> dict[Hashable, Hashable]:
        """The nodes that the start still reaches, each with the one before it on a shortest way."""
        before: dict[Hashable, Hashable] = {_START: _START}
        waiting: deque[Hashable] = deque([_START])
        while waiting:
            node = waiting.popleft()
            for other, room in self._left[node].items():
                if room > 0 and other not in before:
                    before[other] = node
                    waiting.append(other)
        return before

    def _augmenting(self) -> list[Hashable] | None:
        before = self._reached()
        if _END not in before:
            return None
        path: list[Hashable] = [_END]
        while path[-1] != _START:
            path.append(before[path[-1]])
        return path[::-1]
