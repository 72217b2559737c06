"""How many turns a loop makes, found from what decides it before any is written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

Known = Callable[[str], np.ndarray | None]  # the array that a name stands for, if that is known

_LARGEST = 64  # elements of what decides a turn; larger things are not worth computing twice


def turns_of(
    body: onnx.GraphProto, known: Known, limit: int | None, opset: int, most: int
) -> float | None:
    """How many turns a Loop makes that begins with one: infinite without an end, and for more than
    `most` that a condition ends at last, `most` and one.

    `known` gives values around the body, and what it carries by the names of its inputs. None where
    these do not decide it.
    """
    part = _Part.of(body, opset)
    if part is None or (values := part.values(known)) is None:
        return None
    end = math.inf if limit is None else limit
    changes = bool(part.counter or part.carried)
    turn = 0
    while turn <= most and turn < end:
        if part.counter:
            values[part.counter] = np.array(turn, "int64")
        try:
            goes_on, *carried = part.run(values)
        except Exception:  # it checks nothing itself, so whatever numpy raises
            return None
        turn += 1
        if not np.all(goes_on):
            return turn
        if not changes:
            return end
        values.update(zip(part.carried, carried, strict=True))
    return turn


@dataclass(frozen=True)
class _Part:
    """The nodes of a body that its condition depends on, in this turn or a later one.

    They read the turn's number as `counter`, where it has a name, the condition that it was given
    as `condition`, `carried` by the names it has before and after a turn, and names of `outside`.
    """

    nodes: Sequence[onnx.NodeProto]
    result: str
    counter: str
    condition: str
    carried: Mapping[str, str]
    outside: Sequence[str]
    opset: int

    @classmethod
    def of(cls, body: onnx.GraphProto, opset: int) -> _Part | None:
        """None if they hold graphs of their own, which may read anything."""
        inputs, outputs = ([value.name for value in side] for side in (body.input, body.output))
        after = dict(zip(inputs[2:], outputs[1:], strict=False))
        needed, before, kept = {outputs[0]}, 0, set[int]()
        while len(needed) > before:
            before = len(needed)
            for number, node in reversed(list(enumerate(body.node))):
                if needed.intersection(node.output):
                    kept.add(number)
                    needed |= {name for name in node.input if name}
            needed |= {after[name] for name in needed if name in after}
        nodes = [body.node[number] for number in sorted(kept)]
        if any(attribute.HasField("g") for node in nodes for attribute in node.attribute):
            return None
        made = {name for node in nodes for name in node.output}
        return cls(
            nodes,
            outputs[0],
            counter=next((name for name in inputs[:1] if name in needed), ""),
            condition=next(iter(inputs[1:2]), ""),
            carried={name: new for name, new in after.items() if name in needed},
            outside=sorted(needed - made - set(inputs)),
            opset=opset,
        )

    def values(self, known: Known) -> dict[str, np.ndarray] | None:
        """What it reads in the first turn, None where that is not known."""
        values = {}
        for name in (*self.carried, *self.outside):
            array = known(name)
            if array is None or array.size > _LARGEST:
                return None
            values[name] = array
        return {**values, self.condition: np.array(True)}

    def run(self, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The condition after a turn, and what is carried."""
        results = dict(values)
        results.update(zip(self._computed, self._evaluator.run(None, results), strict=True))
        return [results[name] for name in (self.result, *self.carried.values())]

    @cached_property
    def _computed(self) -> list[str]:
        return [name for node in self.nodes for name in node.output if name]

    @cached_property
    def _evaluator(self) -> ReferenceEvaluator:
        names = (*filter(None, (self.counter, self.condition)), *self.carried, *self.outside)
        inputs, outputs = (
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in side]
            for side in (names, self._computed)
        )
        graph = helper.make_graph(self.nodes, "part", inputs, outputs)
        opsets = [helper.make_opsetid("", self.opset)]
        return ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets))
