"""Sorting, the largest of a row, and running sums and products, row by row.

A row is what lies along one axis. Rows are shared out over the threads; within one, every step
waits for the one before it, so there is nothing to put into vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import relax, te, tirx, topi
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

_OPAQUE = {"op_pattern": 8}  # nothing is fused with loops that are written out


@dataclass(frozen=True)
class _Rows:
    """Rows of `length` along an axis: `outer` times `inner` of them, elements `inner` apart."""

    outer: int
    length: int
    inner: int

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: int) -> _Rows:
        axis %= len(shape)
        return cls(prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :]))

    def first(self, row: Any, length: int) -> Any:
        """Where a row of so many elements begins."""
        return row // self.inner * (self.inner * length) + row % self.inner


def top(data: te.Tensor, count: int, axis: int, largest: bool, dtype: str) -> list[te.Tensor]:
    """The `count` first of every row in order, and where they were, as `dtype`; equal ones stay in
    their order."""
    shape = [int(extent) for extent in data.shape]
    rows = _Rows.of(tuple(shape), axis)
    shape[axis] = count

    def loops(source: Any, values: Any, places: Any) -> Any:
        with IRBuilder() as builder:
            source, values, places = map(T.buffer_proxy, (source, values, places))
            with T.parallel(0, rows.outer * rows.inner) as row:
                _insert(source, values, places, rows, row, count, largest, dtype)
            return builder.get()

    kinds = {"values": data.dtype, "places": dtype}
    buffers = [tirx.decl_buffer(shape, kind, name) for name, kind in kinds.items()]
    made = te.extern(
        [shape, shape],
        [data],
        lambda ins, outs: loops(ins[0], *outs),
        dtype=[data.dtype, dtype],
        out_buffers=buffers,
        name="top",
    )
    return list(made)


def _insert(
    source: Any,
    values: Any,
    places: Any,
    rows: _Rows,
    row: Any,
    count: int,
    largest: bool,
    dtype: str,
) -> None:
    """The loops of one row: each element moves up past those kept that come after it."""
    begin, kept, step = rows.first(row, rows.length), rows.first(row, count), rows.inner

    def is_before(value: Any, at: Any) -> Any:
        other = values[kept + at * step]
        return value > other if largest else value < other

    free = T.buffer_proxy(T.alloc_buffer((1,), "int32", scope="local"))
    at = T.buffer_proxy(T.alloc_buffer((1,), "int32", scope="local"))
    found = T.buffer_proxy(T.alloc_buffer((1,), source.dtype, scope="local"))
    free[0] = T.int32(0)
    with T.serial(0, rows.length) as i:
        found[0] = source[begin + i * step]
        at[0] = tirx.min(free[0], T.int32(count - 1))
        enters = tirx.if_then_else(free[0] < count, T.bool(True), is_before(found[0], at[0]))
        with T.If(enters), T.Then():
            moves = is_before(found[0], at[0] - 1)
            with T.While(tirx.if_then_else(at[0] > 0, moves, T.bool(False))):
                values[kept + at[0] * step] = values[kept + (at[0] - 1) * step]
                places[kept + at[0] * step] = places[kept + (at[0] - 1) * step]
                at[0] = at[0] - 1
            values[kept + at[0] * step] = found[0]
            places[kept + at[0] * step] = tirx.Cast(dtype, i)
            free[0] = tirx.min(free[0] + 1, T.int32(count))


# --- legalisation ------------------------------------------------------------------------------


def _ordered(
    builder: relax.BlockBuilder, x: relax.Expr, count: int, axis: int, largest: bool, dtype: str
) -> relax.Expr:
    """The tuple of values and places that `top` makes."""
    axis %= len(x.ty.shape)

    def compute(data: te.Tensor) -> list[te.Tensor]:
        return top(data, count, axis, largest, dtype)

    return builder.emit(
        builder.call_te(compute, x, primfunc_name_hint="top", primfunc_attrs=_OPAQUE)
    )


def _top(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    attrs = call.attrs
    both = _ordered(
        builder, call.args[0], int(attrs.k), int(attrs.axis), bool(attrs.largest), str(attrs.dtype)
    )
    kind = str(attrs.ret_type)
    return both if kind == "both" else relax.TupleGetItem(both, int(kind == "indices"))


def _sort(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, axis, falling = call.args[0], int(call.attrs.axis), bool(call.attrs.descending)
    both = _ordered(builder, x, int(x.ty.shape[axis]), axis, falling, "int32")
    return relax.TupleGetItem(both, 0)


def _argsort(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, axis, falling = call.args[0], int(call.attrs.axis), bool(call.attrs.descending)
    both = _ordered(builder, x, int(x.ty.shape[axis]), axis, falling, str(call.attrs.dtype))
    return relax.TupleGetItem(both, 1)


def _running(compute: Callable[..., te.Tensor]) -> Callable[..., relax.Expr]:
    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        attrs = call.attrs
        axis = None if attrs.axis is None else int(attrs.axis)
        dtype = str(call.ty.dtype.dtype)
        return builder.call_te(
            compute, call.args[0], axis, dtype, bool(attrs.exclusive),
            primfunc_name_hint="running", primfunc_attrs=_OPAQUE,
        )  # fmt: skip

    return legalize


LEGALIZE: dict[str, Callable[[relax.BlockBuilder, relax.Call], relax.Expr]] = {
    "relax.topk": _top,
    "relax.sort": _sort,
    "relax.argsort": _argsort,
    "relax.cumsum": _running(topi.cumsum),
    "relax.cumprod": _running(topi.cumprod),
}
