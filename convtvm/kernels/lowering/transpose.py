"""Transposes in registers, between images that are stored by channel and vectors of channels.

Kernels compute vectors of output channels; in NCHW the channels of a pixel lie a plane apart. Left
to the compiler, an element of a tile goes out by itself: hundreds of scalar moves that take most of
the time to compile, and scatter instructions where there are some. Here four pixels at a time are
turned by eight shuffles, so that every access to memory is of four neighbours.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad, Var
from tvm.tirx import For, ForKind, IfThenElse, IntImm

from convtvm.kernels.lowering.loops import (
    Expr,
    Nest,
    Unexpected,
    Values,
    conjunction,
    const,
    holds_before,
    iterations,
    loads,
    put,
    sequence_of,
    step_of,
    terms_of,
    unrolled,
    uses,
)
from schedules.cpu.registers import ALIAS_BYTES, TRANSPOSE_IN, TRANSPOSE_OUT

_QUAD = 4  # pixels that are turned together
# In what pieces so many pixels are stored: from where on, and how many.
_PIECES = {1: ((0, 1),), 2: ((0, 2),), 3: ((0, 2), (2, 1)), 4: ((0, 4),)}
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT)
_ARITHMETIC = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Min, tirx.Max, *_COMPARISONS)
_FUNCTIONS = {f"tirx.{f.__name__}": f for f in (tirx.exp, tirx.log, tirx.sqrt, tirx.tanh, tirx.erf)}
# What the value of a store reads besides the tile.
_OPERANDS = re.compile(r"bias|residual|[rc]\d+")


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.Transpose")
def insert(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func`, lowered to flat buffers, with transposes in the loops that schedules have annotated.

    Where a loop is not of the expected form it is unrolled, and the compiler does what it can.
    """

    def on_for(loop: For) -> For:
        notes = loop.annotations or {}
        try:
            if TRANSPOSE_OUT in notes:
                made = _Store(loop, *map(int, notes[TRANSPOSE_OUT])).transposed()
            elif TRANSPOSE_IN in notes:
                made = _Copy(loop).transposed()
            else:
                return loop
        except Unexpected:
            made = unrolled(loop)
        # A loop of one turn, since it may stand in a sequence and none may stand in another.
        return For(Var("once", "int32"), 0, 1, ForKind.SERIAL, made)

    return tvm_ffi.structural_map(func, [(For, on_for)], order="post")


class _Store:
    """A tile of pixels, each some vectors of `lanes` channels, on its way to NCHW.

    Rows of the tile are cut off behind the image: they have all their pixels, `partial`, or none.
    """

    def __init__(self, loop: For, lanes: int, partial: int) -> None:
        self.nest, self.lanes, self.partial = Nest.of(loop), lanes, partial
        store = self.nest.store
        tiles = [o for o in loads(store.value) if not _OPERANDS.fullmatch(o.source.name)]
        same = all(tvm_ffi.structural_equal(o, tiles[0]) for o in tiles)
        if not tiles or not same or len(store.indices) != 1:
            raise Unexpected
        self.tile, self.index = tiles[0], store.indices[0]
        row = self.nest.loop(self.index, 1)
        rest = [o for o in self.nest.loops if o is not row]
        vector = range(lanes)
        runs = [o for o in rest if step_of(self.tile.indices[0], o.loop_var, vector) == 1]
        channel = max(runs, key=lambda o: int(o.extent), default=None)
        if channel is None:
            raise Unexpected
        self.c, self.channels = channel.loop_var, int(channel.extent)
        self.x: Var | None = row.loop_var if row else None
        self.pixels = int(row.extent) if row else 1
        self.rows = [o for o in rest if o is not channel]
        if row is not None and step_of(self.tile.indices[0], row.loop_var) != lanes:
            raise Unexpected

    def transposed(self) -> tirx.SeqStmt:
        return sequence_of(
            self._row({self.c: const(c), **rows}, min(self.lanes, self.channels - c))
            for rows in iterations(self.rows)
            for c in range(0, self.channels, self.lanes)
        )

    def _row(self, at: Values, channels: int) -> Any:
        """Store a row of the tile by `channels` channels, as far as it is inside the image."""
        of_channels = [t for t in self.nest.terms if uses(t, self.c)]
        of_pixels = [t for t in self.nest.terms if not uses(t, self.c)]
        if self.x is not None and (
            any(uses(t, self.x) for t in of_channels)
            or not all(holds_before(t, self.x, self.pixels) for t in of_pixels)
        ):
            raise Unexpected

        def inside(width: int) -> Expr:
            """Whether so many pixels of the row are."""
            return conjunction(of_pixels, self.pixel(at, width - 1))

        def stored(width: int) -> Any:
            return _Run(self, at, channels, of_channels, width).stored()

        known = [inside(x + 1) for x in range(self.pixels)]
        if all(isinstance(k, IntImm) for k in known):
            return stored(sum(map(bool, known)))
        some = None
        if self.partial:
            some = IfThenElse(inside(self.partial), stored(self.partial), None)
        return IfThenElse(known[-1], stored(self.pixels), some)

    def pixel(self, at: Values, x: int) -> Values:
        return at if self.x is None else {**at, self.x: const(x)}


class _Run:
    """The first `width` pixels of a row by one vector of channels."""

    def __init__(
        self, store: _Store, at: Values, channels: int, terms: Sequence[Expr], width: int
    ) -> None:
        self.of, self.at, self.channels, self.terms, self.width = store, at, channels, terms, width
        self.is_whole = channels == store.lanes and not terms
        # The largest part of the value that is computed before the transpose, by channels.
        self.core = store.nest.store.value
        while not self._is_by_channel(self.core):
            self.core = next(p for p in _parts(self.core) if loads(p, store.tile))

    def _is_by_channel(self, expr: Expr) -> bool:
        """Whether all that it reads are vectors of channels; a vector of the bias must be whole."""
        if not isinstance(expr, TensorLoad):
            _parts(expr)
        others = [o for o in loads(expr) if not tvm_ffi.structural_equal(o, self.of.tile)]
        by_channel = self.is_whole and all(
            step_of(o.indices[0], self.of.c) == 1
            and (self.of.x is None or step_of(o.indices[0], self.of.x) == 0)
            for o in others
        )
        return not others or by_channel

    def stored(self) -> Any:
        if self.width == 0:
            return tirx.Evaluate(0)
        store, code = self.of, _Code()
        pixels = [
            code.bind(_widened(self.core, store.c, store.pixel(self.at, x), store.lanes))
            for x in range(self.width)
        ]
        first = code.bind(put(store.index, store.pixel(self.at, 0)))
        pieces = _PIECES[min(self.width, _QUAD)]
        # The last quad ends with the run, and may store some pixels once more.
        starts = [*range(0, self.width - _QUAD, _QUAD), max(0, self.width - _QUAD)]
        plane = step_of(store.index, store.c)
        if plane is None:
            raise Unexpected
        # Where planes alias, all of a cache line goes out at once; else the fewer vectors wait in
        # registers the better.
        together = max(1, store.lanes // _QUAD) if 4 * plane % ALIAS_BYTES == 0 else 1
        for i in range(0, len(starts), together):
            quads = {x: self._turned(code, pixels[x : x + _QUAD]) for x in starts[i : i + together]}
            self._store_quads(code, quads, first, plane, pieces)
        return code.sequence()

    def _turned(self, code: _Code, pixels: Sequence[Expr]) -> list[Expr]:
        fill = [pixels[-1]] * (_QUAD - len(pixels))
        return code.turned([*pixels, *fill], self.of.lanes)

    def _store_quads(
        self,
        code: _Code,
        quads: Mapping[int, Sequence[Expr]],
        first: Expr,
        plane: int,
        pieces: Sequence[tuple[int, int]],
    ) -> None:
        """Store `pieces`, each some neighbours, of `quads` by their first pixel, channel after
        channel; the row begins at the index `first` of the output, channels are `plane` apart."""
        store = self.of
        for channel in range(self.channels):
            quad, j = divmod(channel, _QUAD)
            here = {**self.at, store.c: self.at[store.c] + channel}
            for (x, turned), (start, length) in itertools.product(quads.items(), pieces):
                lanes = range(_QUAD * quad + start, _QUAD * quad + start + length)
                part = tirx.Shuffle([turned[j]], [const(i) for i in lanes])
                there = store.pixel(here, x + start)
                value = _finished(store.nest.store.value, self.core, part, store.x, there, length)
                index = _vector(first + (channel * plane + x + start), length)
                stored = tirx.BufferStore(store.nest.store.buffer, value, [index])
                code.add(_guarded(conjunction(self.terms, here), stored))


class _Copy:
    """A row of an image in NCHW on its way to vectors of channels, with zeros around it."""

    def __init__(self, loop: For) -> None:
        self.nest = Nest.of(loop)
        store = self.nest.store
        channel = self.nest.loop(store.indices[0], 1)
        row = next((o for o in self.nest.loops if o is not channel), None)
        if channel is None or row is None or len(self.nest.loops) != 2 or self.nest.terms:
            raise Unexpected
        self.x, self.c, self.lanes = row.loop_var, channel.loop_var, int(channel.extent)
        self.pixels = int(row.extent)
        self.load, terms = _padded(store.value)
        steps = step_of(self.load.indices[0], self.x), step_of(store.indices[0], self.x)
        if steps != (1, self.lanes) or self.lanes % _QUAD:
            raise Unexpected
        self.of_row = [t for t in terms if not uses(t, self.x) and not uses(t, self.c)]
        # Which pixels and which channels are of the image is known here.
        self.image = self._known([t for t in terms if uses(t, self.x)], self.x, self.pixels)
        self.real = self._known([t for t in terms if uses(t, self.c)], self.c, self.lanes)
        if len(self.image) < _QUAD or self.image[-1] - self.image[0] != len(self.image) - 1:
            raise Unexpected

    def _known(self, terms: Sequence[Expr], var: Var, extent: int) -> list[int]:
        """The values of `var` for which all terms hold."""
        holds = [conjunction(terms, {var: const(i)}) for i in range(extent)]
        if not all(isinstance(h, IntImm) for h in holds):
            raise Unexpected
        return [i for i, h in enumerate(holds) if h]

    def transposed(self) -> tirx.SeqStmt:
        first, count = self.image[0], len(self.image)
        i = Var("i", "int32")
        groups = For(i, 0, count // _QUAD, ForKind.SERIAL, self._group(first + i * _QUAD))
        rest = [self._group(const(first + count - _QUAD))] if count % _QUAD else []
        border = [x for x in range(self.pixels) if x not in set(self.image)]
        inside = sequence_of([*map(self._zero, map(const, border)), groups, *rest])
        guard = conjunction(self.of_row, {})
        if isinstance(guard, IntImm):
            return inside
        j = Var("x", "int32")
        outside = For(j, 0, self.pixels, ForKind.SERIAL, self._zero(j))
        return sequence_of([IfThenElse(guard, inside, outside)])

    def _zero(self, x: Expr) -> tirx.BufferStore:
        return self._vector(x, tirx.Broadcast(_zero(), self.lanes))

    def _vector(self, x: Expr, value: Expr) -> tirx.BufferStore:
        """Store the channels of pixel `x`."""
        store = self.nest.store
        index = put(store.indices[0], {self.x: x, self.c: const(0)})
        return tirx.BufferStore(store.buffer, value, [_vector(index, self.lanes)])

    def _group(self, x: Expr) -> tirx.SeqStmt:
        """Copy four pixels from `x` on: rows of channels k, k + 4, k + 8 ... make one vector."""
        code, real = _Code(), set(self.real)

        def row(channel: int) -> Expr:
            if channel not in real:
                return tirx.Broadcast(_zero(), _QUAD)
            index = put(self.load.indices[0], {self.x: x, self.c: const(channel)})
            return tirx.BufferLoad(self.load.source, [_vector(index, _QUAD)])

        rows = [[row(c) for c in range(k, self.lanes, _QUAD)] for k in range(_QUAD)]
        lanes = [const(i) for i in range(self.lanes)]
        mixed = [code.bind(tirx.Shuffle(parts, lanes)) for parts in rows]
        pixels = code.turned(mixed, self.lanes)
        for i, pixel in enumerate(pixels):
            code.add(self._vector(x + i, pixel))
        return code.sequence()


class _Code:
    """Statements in the making."""

    def __init__(self) -> None:
        self._made: list[Any] = []

    def add(self, stmt: Any) -> None:
        self._made.append(stmt)

    def bind(self, value: Expr) -> Var:
        """A variable with this value: an expression is computed wherever it stands."""
        var = Var("t", str(value.ty))
        self.add(tirx.Bind(var, value))
        return var

    def turned(self, vectors: Sequence[Expr], lanes: int) -> list[Expr]:
        """Each quad of the `lanes` of four vectors as a 4x4 matrix, transposed: element i of quad k
        of result j is element j of quad k of vector i. Doing it twice does nothing."""
        a, b, c, d = vectors

        def mixed(p: Expr, q: Expr, order: Sequence[tuple[int, int]]) -> Var:
            """`order` picks the quads of the result, as (0 for p or 1 for q, element of a quad)."""
            picked = [const(o * lanes + k + i) for k in range(0, lanes, _QUAD) for o, i in order]
            return self.bind(tirx.Shuffle([p, q], picked))

        low, high = [(0, 0), (1, 0), (0, 1), (1, 1)], [(0, 2), (1, 2), (0, 3), (1, 3)]
        left, right = [(0, 0), (0, 1), (1, 0), (1, 1)], [(0, 2), (0, 3), (1, 2), (1, 3)]
        halves = [(mixed(a, b, order), mixed(c, d, order)) for order in (low, high)]
        return [mixed(*pair, order) for pair in halves for order in (left, right)]

    def sequence(self) -> tirx.SeqStmt:
        return sequence_of(self._made)


def _widened(expr: Expr, var: Var, at: Values, lanes: int) -> Expr:
    """`expr` for `lanes` values of `var`, from its value in `at` on."""
    if isinstance(expr, TensorLoad):
        index = put(expr.indices[0], at)
        first = int(at[var]) if var is not None else 0
        step = step_of(expr.indices[0], var, range(first, first + lanes)) if var is not None else 0
        if step == 1 and lanes > 1:
            return tirx.BufferLoad(expr.source, [_vector(index, lanes)])
        if step == 0 or lanes == 1:
            return _broadcast(tirx.BufferLoad(expr.source, [index]), lanes)
    if isinstance(expr, (Var, tirx.FloatImm)):
        return _broadcast(expr, lanes)
    if isinstance(expr, TensorLoad):
        raise Unexpected
    return _of_parts(expr, [_widened(part, var, at, lanes) for part in _parts(expr)])


def _finished(expr: Expr, core: Expr, part: Expr, x: Var | None, at: Values, group: int) -> Expr:
    """`expr` for `group` pixels, `part` being what `core` is for them."""
    if tvm_ffi.structural_equal(expr, core):
        return part
    if not isinstance(expr, TensorLoad) and loads(expr, core):
        parts = [_finished(p, core, part, x, at, group) for p in _parts(expr)]
        return _of_parts(expr, parts)
    return _widened(expr, x, at, group)


def _parts(expr: Expr) -> Sequence[Expr]:
    """What an arithmetic expression or a function is of."""
    if isinstance(expr, _ARITHMETIC):
        return expr.a, expr.b
    if isinstance(expr, tirx.Select):
        return expr.condition, expr.true_value, expr.false_value
    if getattr(getattr(expr, "op", None), "name", "") in _FUNCTIONS:
        return tuple(expr.args)
    raise Unexpected


def _of_parts(expr: Expr, parts: Sequence[Expr]) -> Expr:
    """The same of other parts."""
    if isinstance(expr, (*_ARITHMETIC, tirx.Select)):
        return type(expr)(*parts)
    return _FUNCTIONS[expr.op.name](*parts)


def _padded(value: Expr) -> tuple[TensorLoad, list[Expr]]:
    """What is copied, and the terms of the condition under which it is; else it is zero."""
    if isinstance(value, TensorLoad):
        return value, []
    if getattr(getattr(value, "op", None), "name", "") != "prim.if_then_else":
        raise Unexpected
    condition, load, other = value.args
    if not isinstance(load, TensorLoad) or not isinstance(other, tirx.FloatImm) or other.value:
        raise Unexpected
    return load, terms_of(condition)


def _guarded(condition: Expr, stmt: Any) -> Any:
    if isinstance(condition, IntImm):
        return stmt if condition else tirx.Evaluate(0)
    return IfThenElse(condition, stmt, None)


def _vector(index: Expr, lanes: int) -> Expr:
    return tirx.Ramp(index, 1, lanes) if lanes > 1 else index


def _broadcast(value: Expr, lanes: int) -> Expr:
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def _zero() -> tirx.FloatImm:
    return tirx.const(0.0, "float32")
