"""Tiles in shared memory whose vectors change places from row to row, so that no banks conflict.

Shared memory serves 8 vectors of 16 bytes at once if each lies in banks of its own. Copies of a
tile come row by row, loads of matrices down a column of vectors; with rows of a power of two as
they are, such a column lies in the same banks. Here vector v of row r lies at the place v ^ key(r),
where the key counts lines of 128 bytes: 8 neighbours along a row and 8 along a column are in 8
different places. Padded rows would do for one of the two, and take room.

Templates say SWIZZLED of a block that fills a tile. To all of TVM's passes that analyse regions the
tile is an ordinary one; the places change once its final extents are known.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad, Var
from tvm.s_tir.stmt import SBlock
from tvm.tirx import BufferLoad, BufferStore

from schedules.cuda.mma import SWIZZLED

_NAMES = "convtvm.swizzled_tiles"  # attribute of a function: names of tiles, and their vectors
_AT_ONCE = 8  # vectors that are served at once: a line of all banks


def with_names(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with an attribute that names its swizzled tiles, as blocks will not be there later."""
    found: dict[str, int] = {}

    def on_block(block: SBlock) -> None:
        if SWIZZLED in block.annotations:
            found[str(block.writes[0].source.name)] = int(block.annotations[SWIZZLED])

    tvm_ffi.structural_walk(func.body, (SBlock, on_block), order="pre")
    return func.with_attr(_NAMES, found) if found else func


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.Swizzle")
def apply(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func` with the elements of swizzled tiles at their places. Comes when tiles have their final
    extents, and before they are flattened."""
    tiles = {str(k): int(v) for k, v in (func.attrs or {}).get(_NAMES, {}).items()}

    def is_tile(buffer: Var) -> bool:
        return str(buffer.name) in tiles and str(buffer.scope()).startswith("shared")

    def on_load(load: TensorLoad) -> Any:
        buffer = load.source
        if not is_tile(buffer):
            return load
        return BufferLoad(buffer, _placed(buffer, load.indices, tiles[str(buffer.name)]))

    def on_store(store: BufferStore) -> BufferStore:
        buffer = store.buffer
        if not is_tile(buffer):
            return store
        at = _placed(buffer, store.indices, tiles[str(buffer.name)])
        return BufferStore(buffer, store.value, at)

    if not tiles:
        return func
    return tvm_ffi.structural_map(
        func, [(TensorLoad, on_load), (BufferStore, on_store)], order="post"
    )


def _placed(buffer: Any, indices: Any, vector: int) -> list[Any]:
    """Indices of an element's place: another vector of the same row."""
    *outer, row, column = indices
    vectors = int(buffer.shape[-1]) // vector  # a power of two
    rows = max(1, _AT_ONCE // vectors)  # of a line
    key = tirx.floormod(tirx.floordiv(row, rows), min(vectors, _AT_ONCE))
    place = tirx.floordiv(column, vector) ^ key
    return [*outer, row, place * vector + tirx.floormod(column, vector)]
