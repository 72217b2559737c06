"""Zero padding while loading: tiles in the middle of a row test nothing, those at its ends leave
out what lies outside.

A kernel that reads the image itself, and no padded copy of it, adds `(pixel if it is inside else 0)
* weight`. Here that becomes `if it is inside: add pixel * weight`, each part of the test stands as
far outside as it can, so that a row outside is passed over at once, and the tiles of a row are cut
in three: those between the first and the last ones test no column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Range, Var
from tvm.sym import Analyzer
from tvm.tirx import AttrStmt, BufferStore, For, ForKind, IfThenElse

from convtvm.kernels.lowering.loops import (
    Expr,
    Nest,
    Unexpected,
    const,
    put,
    sequence_of,
    terms_of,
    uses,
    variables,
)
from schedules.cpu.registers import BORDERS

HINT = "pragma_loop_partition_hint"
_MOST_COPIES = 4  # tiles of one end that get code of their own, in which their columns are known
_MOST_PRODUCTS = 512  # vector products of such a tile, all unrolled


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.Borders")
def split(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func`, in which loops are not yet what they are annotated to become, with the ends of rows
    apart in the loops over tiles that schedules have annotated."""

    def on_attr(attr: AttrStmt) -> Any:
        loop = attr.body
        if isinstance(loop, For) and BORDERS in (loop.annotations or {}):
            return _split(loop)
        return attr

    return tvm_ffi.structural_map(func, [(AttrStmt, on_attr)], order="post")


@dataclass(frozen=True)
class _Sum:
    """Loops around `total = total + if_then_else(all(inside), pixel, 0) * weight`."""

    nest: Nest
    inside: Sequence[Expr]
    around: Sequence[Var]
    """Of the loops inside a tile, which may be outside the nest."""

    @classmethod
    def of(cls, stmt: Any, around: Sequence[Var]) -> _Sum:
        """Raises Unexpected."""
        nest = Nest.of(stmt)
        return cls(nest, terms_of(_guard(nest.store).args[0]), around)

    def columns(self, tile: Var) -> list[Expr]:
        return [term for term in self.inside if uses(term, tile)]

    def rows(self, tile: Var) -> list[Expr]:
        """The terms that depend on what is around the tiles of a row."""
        nest = [loop.loop_var for loop in self.nest.loops]

        def is_row(term: Expr) -> bool:
            known = [v for v in variables(term) if any(v.same_as(o) for o in (tile, *self.around))]
            ours = all(any(v.same_as(o) for o in nest) for v in known)
            return ours and len(known) < len(variables(term))

        return [term for term in self.inside if is_row(term)]

    def rows_are_inside(self, tile: Var) -> list[Expr]:
        """When all rows are, if tests of them would stand among unrolled sums; else nothing."""
        rows = self.rows(tile)
        loops = [o for o in self.nest.loops if any(uses(term, o.loop_var) for term in rows)]
        if not any(o.kind == ForKind.UNROLLED and int(o.extent) > 1 for o in loops):
            return []
        ends = ({o.loop_var: const(int(o.extent) * e - e) for o in loops} for e in (0, 1))
        return [put(term, at) for at in ends for term in rows]

    def is_inside(self, tile: Var, position: int) -> bool:
        """Whether all columns are that this tile of the row reads."""
        analyzer = Analyzer()
        for loop in self.nest.loops:
            analyzer.bind(loop.loop_var, Range.from_min_extent(loop.min, loop.extent))
        at = {tile: const(position)}
        return all(analyzer.can_prove(put(t, at, simplify=False)) for t in self.columns(tile))


def _guard(store: BufferStore) -> Expr:
    """The `if_then_else` of a store that adds a product with one. Raises Unexpected."""
    total = store.value
    if isinstance(total, tirx.Add) and isinstance(total.b, tirx.Mul):
        pixel = total.b.a
        if getattr(getattr(pixel, "op", None), "name", "") == "prim.if_then_else":
            return pixel
    raise Unexpected


def _sums(tiles: For) -> Iterator[_Sum]:
    seen: list[BufferStore] = []
    loops: list[For] = []
    tvm_ffi.structural_walk(tiles.body, (For, loops.append), order="pre")
    for loop in loops:
        try:
            found = _Sum.of(loop, [o.loop_var for o in loops])
        except Unexpected:
            continue
        if not any(found.nest.store.same_as(store) for store in seen):
            seen.append(found.nest.store)
            yield found


def _split(tiles: For) -> Any:
    """The loop over the tiles of a row: the first ones, those in the middle, the last ones.

    Where a test of rows would stand among unrolled sums, rows of tiles that are inside the image
    have code of their own.
    """
    sums = list(_sums(tiles))
    rows = [condition for s in sums for condition in s.rows_are_inside(tiles.loop_var)]
    if not rows:
        return _parts(tiles, sums, [])
    done = [term for s in sums for term in s.rows(tiles.loop_var)]
    tested = _loop(tiles, range(int(tiles.extent)))
    return IfThenElse(tirx.all(*rows), _parts(tiles, sums, done), tested)


def _parts(tiles: For, sums: Sequence[_Sum], done: Sequence[Expr]) -> Any:
    """The first, middle and last tiles, without the tests in `done`."""
    tile, count = tiles.loop_var, int(tiles.extent)

    def is_border(position: int) -> bool:
        return not all(s.is_inside(tile, position) for s in sums)

    first = next((t for t in range(count) if not is_border(t)), count)
    last = next((t for t in range(count, first, -1) if not is_border(t - 1)), first)
    columns = [term for s in sums for term in s.columns(tile)]
    middle = [_loop(tiles, range(first, last), [*done, *columns])] if first < last else []
    left, right = (_ends(tiles, which, sums, done) for which in (range(first), range(last, count)))
    return sequence_of([*left, *middle, *right])


def _ends(tiles: For, which: range, sums: Sequence[_Sum], done: Sequence[Expr]) -> list[Any]:
    """Tiles that test columns: a few have code of their own, in which their columns are known."""
    if len(which) > _MOST_COPIES:
        return [_loop(tiles, which, done)]
    body = _unrolled_columns(_guarded(tiles.body, done), tiles.loop_var, sums)
    return [put(body, {tiles.loop_var: const(t)}, simplify=False) for t in which]


def _loop(tiles: For, which: range, done: Sequence[Expr] = ()) -> AttrStmt:
    """A loop over these of the tiles, without the tests in `done`."""
    tile = Var(tiles.loop_var.name, "int32")
    body = put(_guarded(tiles.body, done), {tiles.loop_var: tile + which.start}, simplify=False)
    annotations = {k: v for k, v in tiles.annotations.items() if k != BORDERS}
    loop = For(tile, 0, len(which), tiles.kind, body, annotations=annotations)
    return AttrStmt(tile, HINT, const(1), loop)


def _guarded(body: Any, done: Sequence[Expr] = ()) -> Any:
    """`body` with tests around its sums instead of in them, but those in `done`."""

    def on_store(store: BufferStore) -> Any:
        try:
            condition, pixel, _ = _guard(store).args
        except Unexpected:
            return store
        total = store.value
        value = total.a + pixel * total.b.b
        terms = [t for t in terms_of(condition) if not any(t.same_as(other) for other in done)]
        return _if(terms, BufferStore(store.buffer, value, store.indices))

    def on_for(loop: For) -> Any:
        terms, inside = [], loop.body
        while isinstance(inside, IfThenElse) and inside.else_case is None:
            terms += terms_of(inside.condition)
            inside = inside.then_case
        here = [t for t in terms if uses(t, loop.loop_var)]
        if len(here) == len(terms):
            return loop
        outside = [t for t in terms if not uses(t, loop.loop_var)]
        return _if(outside, _with(loop, _if(here, inside)))

    guarded = tvm_ffi.structural_map(body, [(BufferStore, on_store)], order="post")
    return tvm_ffi.structural_map(guarded, [(For, on_for)], order="post")


def _unrolled_columns(body: Any, tile: Var, sums: Sequence[_Sum]) -> Any:
    """`body` without loops that tests of columns depend on, unless that is too much code."""
    chosen = [
        loop.loop_var
        for s in sums
        for loop in s.nest.loops
        if loop.kind == ForKind.SERIAL and any(uses(t, loop.loop_var) for t in s.columns(tile))
    ]

    def products(s: _Sum) -> int:
        unrolled = (
            int(loop.extent)
            for loop in s.nest.loops
            if loop.kind == ForKind.UNROLLED or any(loop.loop_var.same_as(v) for v in chosen)
        )
        return math.prod(unrolled)

    if sum(map(products, sums)) > _MOST_PRODUCTS:
        return body

    def on_for(loop: For) -> For:
        unroll = any(loop.loop_var.same_as(v) for v in chosen)
        return _with(loop, loop.body, ForKind.UNROLLED) if unroll else loop

    return tvm_ffi.structural_map(body, [(For, on_for)], order="post")


def _with(loop: For, body: Any, kind: int | None = None) -> For:
    kind = loop.kind if kind is None else kind
    return For(
        loop.loop_var, loop.min, loop.extent, kind, body, loop.thread_binding, loop.annotations
    )


def _if(terms: Sequence[Expr], body: Any) -> Any:
    return IfThenElse(tirx.all(*terms), body, None) if terms else body
