"""Nodes that hold graphs: branches, and loops written out turn by turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import onnx
from tvm import relax

from convtvm.errors import ModelError
from convtvm.models.constants import array_of, constant, static_shape
from convtvm.models.onnx import deciding
from convtvm.models.onnx.checking import InvalidNode
from convtvm.models.onnx.node import Node
from convtvm.models.onnx.turns import turns_of

_MOST_NODES = 20_000  # that a loop may be when it is written out
_UNROLLED = "loops are written out when a model is compiled"


class Walker(Protocol):
    """What computes the values of a graph within those of the graph around it."""

    values: dict[str, relax.Expr]
    decided: dict[str, float]  # inputs of the model that choose a branch, at a number that does
    repeated: int  # how often what is walked will be, by loops around it of known turns
    written: int  # nodes of loops so far

    def weights(self, graph: onnx.GraphProto) -> None:
        """Add the graph's weights to the values."""

    def walk(self, graph: onnx.GraphProto) -> None:
        """Add what its nodes compute."""


def _results(walker: Walker, graph: onnx.GraphProto) -> list[relax.Expr]:
    """The outputs of a graph whose inputs are among the values."""
    walker.walk(graph)
    missing = [value.name for value in graph.output if value.name not in walker.values]
    if missing:
        raise ModelError(f"output {missing[0]} of graph {graph.name} is computed by no node")
    return [walker.values[value.name] for value in graph.output]


def _body(walker: Walker, node: Node) -> onnx.GraphProto:
    body = node.get("body")
    if body is None:
        raise node.fails("has no body")
    walker.weights(body)
    return body


# --- branches ----------------------------------------------------------------------------------


def _branch(walker: Walker, node: Node) -> list[relax.Expr]:
    """The branch that a constant condition takes; else both, and of each result the right one.

    A branch that is not valid for the shapes at hand cannot be taken in the original either, so
    that the other one is.
    """
    condition = node.input(0)
    known = array_of(condition)
    taken: tuple[str, ...] = ("then_branch", "else_branch")
    if known is not None:
        taken = taken[:1] if known.reshape(-1)[0] else taken[1:]
    results: dict[str, list[relax.Expr]] = {}
    invalid: InvalidNode | None = None
    for name in taken:
        graph = node.get(name)
        if graph is None:
            raise node.fails(f"lacks its {name}")
        walker.weights(graph)
        try:
            results[name] = _results(walker, graph)
        except InvalidNode as error:
            invalid = error
    if invalid is not None and not results:
        raise invalid
    if len(results) == 1:
        ((name, made),) = results.items()
        if known is None:
            walker.decided.update(deciding.inputs(node.builder, condition, name == taken[0]))
        return made
    flag = node.emit(relax.op.reshape(condition, ()))
    return [_either(node, flag, *pair) for pair in zip(*results.values(), strict=True)]


def _either(node: Node, flag: relax.Expr, a: relax.Expr, b: relax.Expr) -> relax.Expr:
    if isinstance(a, relax.Tuple) or isinstance(b, relax.Tuple):
        raise node.fails("chooses between sequences at run time, which nothing computes")
    shapes = static_shape(a), static_shape(b)
    if shapes[0] != shapes[1] or str(a.ty.dtype.dtype) != str(b.ty.dtype.dtype):
        raise node.fails(
            "its condition is computed at run time, and its branches make "
            f"{' and '.join('x'.join(map(str, s)) or 'a scalar' for s in shapes)}; a compiled "
            "model's shapes are fixed: export it with the condition decided"
        )
    return node.emit(relax.op.where(flag, a, b))


# --- loops -------------------------------------------------------------------------------------


def _loop(walker: Walker, node: Node) -> list[relax.Expr]:
    """Turns as long as their number and the condition, both known, say so."""
    body = _body(walker, node)
    limit = _known(node, node.inputs[0], "number of turns") if node.has(0) else None
    goes_on = _known(node, node.inputs[1], "condition") if node.has(1) else True
    carried = [node.input(index) for index in range(2, len(node.inputs))]
    names = [value.name for value in body.input]
    collected: list[list[relax.Expr]] = [[] for _ in range(len(body.output) - 1 - len(carried))]
    certain = _foreseen(walker, node, body, limit) if goes_on else 1
    turn = 0
    with _written_out(walker, node, body, certain) as begin:
        while goes_on and (limit is None or turn < limit):
            begin()
            given = [constant(np.array(turn, "int64")), constant(np.array(True)), *carried]
            walker.values.update(zip(names, given, strict=True))
            after, *made = _results(walker, body)
            goes_on = _known(node, after, "condition")
            carried, pieces = made[: len(carried)], made[len(carried) :]
            for pile, piece in zip(collected, pieces, strict=True):
                pile.append(piece)
            turn += 1
    return [*carried, *(_stacked(node, pile, 0) for pile in collected)]


def _foreseen(walker: Walker, node: Node, body: onnx.GraphProto, limit: int | None) -> int:
    """Turns of a loop that begins, 1 where nothing is known of them before they are written out."""
    carried = zip((value.name for value in body.input[2:]), node.inputs[2:], strict=False)
    around = {**walker.values, **dict(carried)}

    def known(name: str) -> np.ndarray | None:
        return array_of(around[name]) if name in around else None

    found = turns_of(body, known, limit, node.opset, _MOST_NODES // _size(body))
    if found == math.inf:
        raise node.fails(f"never ends: it has no number of turns, and {_UNROLLED}")
    return 1 if found is None else int(found)


def _known(node: Node, expr: relax.Expr | None, what: str) -> int:
    array = None if expr is None else array_of(expr)
    if array is None:
        raise node.fails(
            f"its {what} is computed at run time, and {_UNROLLED}; export the model with a fixed "
            "number of turns"
        )
    return int(array.reshape(-1)[0])


def _size(body: onnx.GraphProto) -> int:
    """Nodes of a turn; an empty one takes its time, too."""
    return max(1, len(body.node))


@contextmanager
def _written_out(
    walker: Walker, node: Node, body: onnx.GraphProto, certain: int
) -> Iterator[Callable[[], None]]:
    """A loop that makes `certain` turns at least; each begins with a call of what is given.

    Raises ModelError as soon as the loop, with those around it and in it, is known to be more than
    a model may have.
    """
    size, before, outer = _size(body), walker.written, walker.repeated
    turns = 0

    def check(nodes: int, many: int) -> None:
        if nodes > _MOST_NODES:
            around = f" in loops of {outer} turns" if outer > 1 else ""
            raise node.fails(
                f"has a body of {len(body.node)} nodes and {many} turns or more{around}, and "
                f"{_UNROLLED}, to at most {_MOST_NODES} nodes"
            )

    def begin() -> None:
        nonlocal turns
        turns += 1
        walker.written += size
        check(max(walker.written - before, outer * turns * size), turns)

    check(outer * certain * size, certain)
    walker.repeated = outer * max(1, certain)
    try:
        yield begin
    finally:
        walker.repeated = outer


def _stacked(node: Node, pieces: Sequence[relax.Expr], axis: int) -> relax.Expr:
    """One result of every turn along a new axis."""
    if not pieces:
        raise node.fails("makes no turn, so that what it collects would be empty")
    ndim = len(static_shape(pieces[0])) + 1
    at = node.axis(axis, ndim)
    wide = [node.emit(relax.op.expand_dims(piece, [at])) for piece in pieces]
    return wide[0] if len(wide) == 1 else node.emit(relax.op.concat(wide, at))


def _scan(walker: Walker, node: Node) -> list[relax.Expr]:
    """One turn for each place along an axis of the inputs that are scanned."""
    if node.opset < 9:
        raise node.fails("is of opset 8, which scans batches; export with opset 9 or newer")
    body, scanned = _body(walker, node), int(node.get("num_scan_inputs"))
    count = len(node.inputs) - scanned
    states = [node.input(index) for index in range(count)]
    axes = node.get("scan_input_axes") or [0] * scanned
    places = [node.axis(a, len(node.shape(count + i))) for i, a in enumerate(axes)]
    turns = node.shape(count)[places[0]]
    backwards = node.get("scan_input_directions") or [0] * scanned
    outputs = len(body.output) - count
    collected: list[list[relax.Expr]] = [[] for _ in range(outputs)]
    names = [value.name for value in body.input]
    with _written_out(walker, node, body, turns) as begin:
        for turn in range(turns):
            begin()
            slices = [
                _slice(node, count + i, axis, turns - 1 - turn if backwards[i] else turn)
                for i, axis in enumerate(places)
            ]
            walker.values.update(zip(names, [*states, *slices], strict=True))
            made = _results(walker, body)
            states = made[:count]
            for pile, piece in zip(collected, made[count:], strict=True):
                pile.append(piece)
    directions = node.get("scan_output_directions") or [0] * outputs
    into = node.get("scan_output_axes") or [0] * outputs
    return [
        *states,
        *(
            _stacked(node, pile[::-1] if back else pile, axis)
            for pile, back, axis in zip(collected, directions, into, strict=True)
        ),
    ]


def _slice(node: Node, index: int, axis: int, place: int) -> relax.Expr:
    array = array_of(node.input(index))
    if array is not None:
        return constant(np.take(array, place, axis))
    part = node.emit(relax.op.strided_slice(node.input(index), [axis], [place], [place + 1]))
    return node.emit(relax.op.squeeze(part, [axis]))


def _map(walker: Walker, node: Node) -> list[relax.Expr]:
    """One turn for each tensor of a sequence; tensors beside it are the same at each."""
    body = _body(walker, node)
    first = node.input(0)
    if not isinstance(first, relax.Tuple):
        raise node.fails("has a tensor for its input 0, expected a sequence of tensors")
    names = [value.name for value in body.input]
    made: list[list[relax.Expr]] = [[] for _ in body.output]
    with _written_out(walker, node, body, len(first.fields)) as begin:
        for turn in range(len(first.fields)):
            begin()
            given = [e.fields[turn] if isinstance(e, relax.Tuple) else e for e in node.inputs]
            walker.values.update(zip(names, given, strict=True))
            for pile, piece in zip(made, _results(walker, body), strict=True):
                pile.append(piece)
    return [relax.Tuple(pile) for pile in made]


CONVERTERS: dict[str, Callable[[Walker, Node], list[relax.Expr]]] = {
    "If": _branch,
    "Loop": _loop,
    "Scan": _scan,
    "SequenceMap": _map,
}
