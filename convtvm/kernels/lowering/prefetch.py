"""Software prefetch: while register tiles reuse a block of weight or data, the next one comes.

A kernel reads a block of the weight once for every register tile, and a panel of the data once for
every tile of channels. The first reading waits for memory and the others do not: the core is idle
first, the memory afterwards, and the processor's own prefetcher looks ahead a page at most.
Fetching the next block in small parts during all readings evens that out.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad, Var
from tvm.tirx import For, ForKind, IntImm

from schedules.cpu.registers import PREFETCH, PREFETCH_DATA

_LINE = 16  # elements of a cache line
_READ, _INTO_L2, _DATA = (tirx.const(i, "int32") for i in (0, 2, 1))  # of llvm.prefetch


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.Prefetch")
def insert(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func`, lowered to flat buffers, with fetches in the loops that schedules have annotated."""

    def on_for(loop: For) -> For:
        notes = loop.annotations or {}
        if PREFETCH in notes:
            return _fetching(loop, *map(int, notes[PREFETCH]))
        if PREFETCH_DATA in notes:
            around = [shared for shared in _loops(func.body) if _is_shared_around(shared, loop)]
            return _fetching_planes(loop, around[0], *map(int, notes[PREFETCH_DATA]))
        return loop

    return tvm_ffi.structural_map(func, [(For, on_for)], order="post")


@dataclass(frozen=True)
class _Place:
    """The body of `loop`; `position` numbers its `iterations` under the loops around it."""

    loop: For
    iterations: int
    position: tirx.PrimExpr


def _fetching(tiles: For, block: int, distance: int, most: int) -> For:
    """`tiles`, `most` iterations that read the same `block` elements of the weight, fetching those
    `distance` further, a part each time."""
    loads = _loads(tiles)
    if not loads:
        return tiles
    lines = -(-block // _LINE)
    place = _place(tiles, lines, most)
    each = -(-lines // place.iterations)
    start = _at_start(loads[0].indices[0].base, tiles) + distance + place.position * (each * _LINE)
    fetches = [_fetch(loads[0].source, start + i * _LINE) for i in range(each)]

    def on_for(loop: For) -> For:
        if not loop.loop_var.same_as(place.loop.loop_var):
            return loop
        body = tirx.SeqStmt([*fetches, loop.body])
        return For(loop.loop_var, loop.min, loop.extent, loop.kind, body)

    return tvm_ffi.structural_map(tiles, [(For, on_for)], order="post")


def _fetching_planes(
    tiles: For, shared: For, planes: int, plane: int, run: int, most: int, readings: int
) -> For:
    """`tiles`, `most` iterations that read the same `run` elements of each of the `planes` in
    `readings` iterations of `shared`, fetching the runs that follow, a part each time."""
    loads = _loads(tiles, "data")
    if not loads:
        return tiles
    lines = -(-run // _LINE)
    each = -(-planes * lines // (readings * most))
    reading = tirx.floormod(shared.loop_var, readings)
    part = (reading * most + tiles.loop_var) * each
    i = tirx.Var("i", "int32")
    start = _at_start(loads[0].indices[0].base, tiles) + run
    index = tirx.floordiv(part + i, lines) * plane + tirx.floormod(part + i, lines) * _LINE
    fetch = For(i, 0, each, ForKind.SERIAL, _fetch(loads[0].source, start + index))
    body = tirx.SeqStmt([fetch, tiles.body])
    return For(tiles.loop_var, tiles.min, tiles.extent, tiles.kind, body)


def _is_shared_around(loop: For, inner: For) -> bool:
    """Whether the threads share out `loop`, and `inner` is in its body."""
    inside = (found.loop_var.same_as(inner.loop_var) for found in _loops(loop.body))
    return loop.kind == ForKind.PARALLEL and any(inside)


def _place(tiles: For, lines: int, most: int) -> _Place:
    """The innermost loop around all reading that has no more iterations than `lines`."""
    # How many tiles are whole may be known at run time only; then less is fetched than could be.
    whole = int(tiles.extent) if isinstance(tiles.extent, IntImm) else most
    place = _Place(tiles, whole, tiles.loop_var)
    while True:
        reading = [loop for loop in _loops(place.loop.body) if _loads(loop)]
        if not reading or len(_loads(reading[0])) < len(_loads(place.loop)):
            return place
        loop = reading[0]
        if loop.kind != ForKind.SERIAL or not isinstance(loop.extent, IntImm):
            return place
        iterations = place.iterations * int(loop.extent)
        if iterations > lines:
            return place
        place = _Place(loop, iterations, place.position * loop.extent + loop.loop_var)


def _loops(node: object) -> list[For]:
    found: list[For] = []
    tvm_ffi.structural_walk(node, (For, found.append), order="pre")
    return found


def _loads(node: object, buffer: str = "weight") -> list[TensorLoad]:
    """Vector loads from the buffer."""
    found: list[TensorLoad] = []

    def on_load(load: TensorLoad) -> None:
        if load.source.name == buffer and isinstance(load.indices[0], tirx.Ramp):
            found.append(load)

    tvm_ffi.structural_walk(node, (TensorLoad, on_load), order="pre")
    return found


def _at_start(index: tirx.PrimExpr, tiles: For) -> tirx.PrimExpr:
    """`index` in the first iteration of `tiles` and all loops inside."""
    inside = [tiles.loop_var, *(loop.loop_var for loop in _loops(tiles.body))]

    def on_var(var: Var) -> tirx.PrimExpr:
        return tirx.const(0, "int32") if any(var.same_as(v) for v in inside) else var

    return tvm_ffi.structural_map(index, [(Var, on_var)], order="post")


def _fetch(buffer: Var, index: tirx.PrimExpr) -> tirx.Evaluate:
    address = tirx.address_of(tirx.BufferLoad(buffer, [index]))
    return tirx.Evaluate(
        tirx.call_llvm_intrin("void", "llvm.prefetch", address, _READ, _INTO_L2, _DATA)
    )
