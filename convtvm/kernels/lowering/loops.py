"""Lowered loops around a store: what they are, and what is known of the expressions inside."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad, Var
from tvm.sym import Analyzer
from tvm.tirx import For, IfThenElse, IntImm

Expr = Any
Values = Mapping[Var, Expr]


class Unexpected(Exception):
    """The loop is not of the form that can be transposed."""


@dataclass(frozen=True)
class Nest:
    """Perfectly nested loops of constant extents, the terms of the conditions in between, and the
    one store inside."""

    loops: Sequence[For]
    terms: Sequence[Expr]
    store: tirx.BufferStore

    @classmethod
    def of(cls, stmt: Any) -> Nest:
        loops, terms = [], []
        while not isinstance(stmt, tirx.BufferStore):
            if isinstance(stmt, For) and isinstance(stmt.extent, IntImm) and stmt.min == 0:
                loops.append(stmt)
                stmt = stmt.body
            elif isinstance(stmt, IfThenElse) and stmt.else_case is None:
                terms += terms_of(stmt.condition)
                stmt = stmt.then_case
            else:
                raise Unexpected
        return cls(loops, terms, stmt)

    def loop(self, expr: Expr, step: int) -> For | None:
        """The loop whose iterations follow each other at a distance of `step` in `expr`."""
        return next((o for o in self.loops if step_of(expr, o.loop_var) == step), None)


def unrolled(stmt: Any) -> Any:
    """`stmt` with a copy of the body for each iteration of its outermost loops."""
    if isinstance(stmt, IfThenElse) and stmt.else_case is None:
        return IfThenElse(stmt.condition, unrolled(stmt.then_case), None)
    if not isinstance(stmt, For) or not isinstance(stmt.extent, IntImm):
        return stmt
    inside = unrolled(stmt.body)
    return sequence_of(
        put(inside, {stmt.loop_var: stmt.min + i}, simplify=False) for i in range(int(stmt.extent))
    )


def iterations(loops: Sequence[For]) -> Iterator[dict[Var, Expr]]:
    """The values of the variables of loops in all their iterations."""
    for values in itertools.product(*(range(int(o.extent)) for o in loops)):
        yield {o.loop_var: const(v) for o, v in zip(loops, values, strict=True)}


def loads(expr: Expr, like: Expr = None) -> list[TensorLoad]:
    """All loads in `expr`, or those that are in `like` as well."""
    found: list[TensorLoad] = []
    tvm_ffi.structural_walk(expr, (TensorLoad, found.append), order="pre")
    if like is None:
        return found
    return [o for o in found if any(tvm_ffi.structural_equal(o, p) for p in loads(like))]


def terms_of(condition: Expr) -> list[Expr]:
    """The parts of a conjunction."""
    if isinstance(condition, tirx.And):
        return [*terms_of(condition.a), *terms_of(condition.b)]
    return [condition]


def conjunction(terms: Sequence[Expr], at: Values) -> Expr:
    """The conjunction of `terms` with the values of variables in `at`."""
    return put(tirx.all(*terms), at) if terms else tirx.const(True, "bool")


def variables(expr: Expr) -> list[Var]:
    found: list[Var] = []
    tvm_ffi.structural_walk(expr, (Var, found.append), order="pre")
    return found


def uses(expr: Expr, var: Var | None) -> bool:
    return var is not None and any(v.same_as(var) for v in variables(expr))


def step_of(expr: Expr, var: Var, values: range | None = None) -> int | None:
    """By how much `expr` grows with `var`, from each of `values` to the next or everywhere; None if
    that is not always the same."""
    if not uses(expr, var):
        return 0
    step = _difference(expr, {var: var + 1}, {})
    if step is None and values is not None and len(values) > 1:
        pairs = itertools.pairwise(values)
        steps = {_difference(expr, {var: const(j)}, {var: const(i)}) for i, j in pairs}
        step = steps.pop() if len(steps) == 1 else None
    return step


def _difference(expr: Expr, there: Values, here: Values) -> int | None:
    """`expr` there less `expr` here, None if that depends on anything."""
    found = Analyzer().simplify(put(expr, there, simplify=False) - put(expr, here, simplify=False))
    return int(found) if isinstance(found, IntImm) else None


def put(node: Any, at: Values, simplify: bool = True) -> Any:
    """`node` with values for variables."""

    def on_var(var: Var) -> Expr:
        return next((value for v, value in at.items() if v.same_as(var)), var)

    result = tvm_ffi.structural_map(node, [(Var, on_var)], order="post")
    return Analyzer().simplify(result) if simplify else result


def holds_before(term: Expr, x: Var, pixels: int) -> bool:
    """Whether a term that holds for one of so many pixels holds for those before it."""
    if not uses(term, x):
        return True
    if not isinstance(term, (tirx.LT, tirx.LE)) or uses(term.b, x):
        return False
    steps = (_difference(term.a, {x: const(i + 1)}, {x: const(i)}) for i in range(pixels - 1))
    return all(step is not None and step >= 0 for step in steps)


def sequence_of(stmts: Iterable[Any]) -> Any:
    """All in one, which TVM wants without another sequence in it."""
    made: list[Any] = []
    for stmt in stmts:
        # Not +=: a list becomes one of TVM's arrays, which are copied by every addition.
        made.extend(stmt.seq if isinstance(stmt, tirx.SeqStmt) else [stmt])
    return tirx.SeqStmt(made) if len(made) > 1 else made[0] if made else tirx.Evaluate(0)


def const(value: int) -> IntImm:
    return tirx.const(value, "int32")
