"""The matrix product on tensor cores: tiles in shared memory, fragments of them in registers.

A block of threads computes tile_p pixels by tile_c channels like `gemm`, a warp of it warp_p by
warp_c, in squares of 16 by 16. A step of `DEPTH` is one matrix multiply-add of a square; its
factors and sums are spread over the warp's 32 lanes as the instruction wants them (PTX ISA, "Matrix
fragments for mma.m16n8k16", and k8 for tf32). With v elements in a register of 32 bits, v = 2 for
float16 and bfloat16, 1 for tf32, and 4v * r + v * q + i a place along the depth:

    left  [lane, 2v*r + v*h + i]   pixel 8h + g, lane 4g + q
    right [lane, 2v*h + v*r + i]   channel 8h + g, lane 4g + q
    sums  [lane, 4h + 2y + x]      pixel 8y + g, channel 8h + 2q + x, lane 4g + q

Where the compute has its own order of channels (convtvm.compute.cuda.gemm), channels of a lane are
neighbours in the output: 8 of two squares side by side, with h = 0..3, or 4 of one square:

    sums  [lane, 8y + 2h + x]      or [lane, 4y + 2h + x]

Here the product is loops over these axes, which any machine can run. Annotations say which loops a
warp executes as one instruction: MULTIPLY_ADD, and LOAD_MATRICES for fragments of 16 bits.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from schedules.cuda.gemm import attribute, unroll
from schedules.knobs import Decisions

MULTIPLY_ADD = "convtvm.multiply_add"  # value: the operands
WIDE = "convtvm.wide_store"  # of a loop over neighbours that are stored at once
LOAD_MATRICES = "convtvm.load_matrices"  # value: 1 if the depth is the outer axis in memory
SWIZZLED = "convtvm.swizzled"  # of a block that fills a tile; value: elements that stay together
GATHERED = "convtvm.gathered"  # of the loops that fill a tile by vectors of elements that are apart

SQUARE = 16  # pixels and channels of a fragment
LANES = 32
DEPTH = {"float16": 16, "bfloat16": 16, "tf32": 8}
VECTOR = {"float16": 8, "bfloat16": 8, "tf32": 4}  # elements of 16 bytes


def operands(sch: Schedule) -> str:
    """What the product multiplies, which its compute states as an attribute."""
    return str(sch.mod["main"].attrs["operands"])


def warps(d: Decisions) -> int:
    """Warps of a block."""
    return (d["tile_p"] // d["warp_p"]) * (d["tile_c"] // d["warp_c"])


def stores_pairs(sch: Schedule) -> bool:
    """Whether two channels that lie together in `out` are of one group, and never beyond the
    last."""
    channels, groups = (int(sch.mod["main"].params[i].shape[j]) for i, j in ((3, 3), (1, 0)))
    return channels // groups % 2 == 0


def multiply(sch: Schedule, d: Decisions, store: SBlockRV, vectors: bool, wide: bool) -> None:
    """Schedule lhs, rhs and gemm as one kernel.

    `store` takes the sums from the registers; if `vectors`, channels lie together, in pairs; if
    `wide`, all those of a lane do.
    """
    gemm, lhs, rhs = (sch.get_sblock(name) for name in ("gemm", "lhs", "rhs"))
    kind, depth_inner = operands(sch), bool(attribute(sch, "depth_inner"))
    depth = DEPTH[kind]
    pair = depth // 8

    # Blocks of threads, warps, steps through the depth, squares, and the axes of their fragments.
    part, batch, p, c, k = sch.get_loops(gemm)[-5:]
    p_block, p_warp, p_tile, ph, pg = sch.split(
        p, [None, d["tile_p"] // d["warp_p"], d["warp_p"] // SQUARE, 2, 8]
    )
    c_block, c_warp, c_tile, ch, cq, cx = sch.split(
        c, [None, d["tile_c"] // d["warp_c"], d["warp_c"] // SQUARE, 2, 4, 2]
    )
    step, ki, kr, kq, kv = sch.split(k, [None, d["tile_k"] // depth, 2, 4, pair])
    fragment_axes = (pg, cq, ch, ph, cx, kr, kq, kv)
    blocks = (part, batch, c_block, p_block, c_warp, p_warp)
    sch.reorder(*blocks, step, ki, p_tile, c_tile, *fragment_axes)
    sch.bind(sch.fuse(part, batch), "blockIdx.z")
    sch.bind(c_block, "blockIdx.y")
    sch.bind(p_block, "blockIdx.x")
    warp = sch.fuse(c_warp, p_warp)
    sch.bind(warp, "threadIdx.y")
    lane = sch.fuse(pg, cq)
    sch.bind(lane, "threadIdx.x")

    # Operands: into shared memory once a step, from there into fragments.
    for index, operand in enumerate((lhs, rhs)):
        sch.set_scope(operand, 0, "shared.dyn")
        sch.compute_at(operand, step, preserve_unit_loops=True)
        fragment = sch.cache_read(gemm, index, "local")
        sch.compute_at(fragment, ki, preserve_unit_loops=True)
        inner = depth_inner and index == 0
        _fragment(sch, fragment, kind, index == 0, None if kind == "tf32" else int(not inner))
        vector = attribute(sch, "vector") if index == 0 else VECTOR[kind]
        if index == 0 and attribute(sch, "loads") > 1:
            _gather(sch, operand, warps(d), vector, kind)
        else:
            _fetch(sch, operand, warps(d), vector, inner)
        _arrange(sch, operand, kind, inner)

    sch.set_scope(gemm, 0, "local")
    _store(sch, store, warp, vectors, wide)
    _hold(sch, gemm, min(2 * SQUARE, d["warp_c"]))
    init = sch.decompose_reduction(gemm, step)
    unroll(sch, *sch.get_loops(init)[-6:-4])
    unroll(sch, *sch.get_loops(init)[-3:])
    unroll(sch, ki, p_tile, c_tile)
    sch.annotate(lane, MULTIPLY_ADD, kind)
    if d["stages"] > 1:
        sch.annotate(step, "software_pipeline_stage", [0, 0, d["stages"] - 1])
        sch.annotate(step, "software_pipeline_order", [0, 1, 2])
        sch.annotate(step, "software_pipeline_async_stages", [0])


def _fragment(
    sch: Schedule, fragment: SBlockRV, kind: str, left: bool, transposed: int | None
) -> None:
    """Lay a fragment out over the lanes; by one instruction unless `transposed` is None."""
    depth = DEPTH[kind]
    pair = depth // 8
    k, other = sch.get_loops(fragment)[-2:]
    kr, kq, kv = sch.split(k, [2, 4, pair])
    tile, half, group = sch.split(other, [None, 2, 8])
    sch.reorder(tile, group, kq, *((kr, half) if left else (half, kr)), kv)
    lane = sch.fuse(group, kq)
    sch.bind(lane, "threadIdx.x")
    if transposed is None:
        unroll(sch, *sch.get_loops(fragment)[-3:])
    else:
        sch.annotate(lane, LOAD_MATRICES, transposed)
    unroll(sch, tile)

    def place(b: Any, k: Any, other: Any) -> list[Any]:
        register = (k % depth // (4 * pair), other % SQUARE // 8)
        outer, inner = register if left else register[::-1]
        lane = other % 8 * 4 + k % (4 * pair) // pair
        within = outer * 2 * pair + inner * pair + k % pair
        return [b, k // depth, other // SQUARE, lane, within]

    sch.transform_layout(fragment, ("write", 0), place)


def _store(sch: Schedule, store: SBlockRV, warp: LoopRV, vectors: bool, wide: bool) -> None:
    """The sums leave the registers of the lanes that have them."""
    sch.reverse_compute_at(store, warp, preserve_unit_loops=True)
    *_, first, second = sch.get_loops(store)
    p, c = (second, first) if _channels_first(sch) else (first, second)
    p_tile, ph, pg = sch.split(p, [None, 2, 8])
    halves = min(4, int(sch.get(c).extent) // 8) if wide else 2
    c_tile, ch, cq, cx = sch.split(c, [None, halves, 4, 2])
    sch.reorder(p_tile, c_tile, pg, cq, *((ph, ch) if wide else (ch, ph)), cx)
    sch.bind(sch.fuse(pg, cq), "threadIdx.x")
    unroll(sch, p_tile, c_tile)
    if wide:
        neighbours = sch.fuse(ch, cx)
        sch.annotate(neighbours, WIDE, 1)
        unroll(sch, ph, neighbours)
        return
    if vectors:
        sch.vectorize(cx)
    unroll(sch, ch, ph, *([] if vectors else [cx]))


def _hold(sch: Schedule, gemm: SBlockRV, columns: int) -> None:
    """Lay the sums out over the lanes; a warp has so many columns or more."""
    if attribute(sch, "own_columns"):

        def register(p: Any, c: Any) -> Any:
            return p % SQUARE // 8 * (columns // 4) + c % columns // 8 * 2 + c % 2
    else:
        columns = SQUARE

        def register(p: Any, c: Any) -> Any:
            return c % SQUARE // 8 * 4 + p % SQUARE // 8 * 2 + c % 2

    def place(s: Any, b: Any, p: Any, c: Any) -> list[Any]:
        lane = p % 8 * 4 + c % 8 // 2
        return [s, b, p // SQUARE, c // columns, lane, register(p, c)]

    sch.transform_layout(gemm, ("write", 0), place)


def _channels_first(sch: Schedule) -> bool:
    """Whether pixels are neighbours in data and output."""
    return str(sch.mod["main"].attrs["layout"]) == "NCHW"


def _fetch(sch: Schedule, block: SBlockRV, count: int, vector: int, depth_inner: bool) -> None:
    """Share one step of lhs or rhs out among the threads of `count` warps."""
    batch, k, other = sch.get_loops(block)[-3:]
    if depth_inner:
        sch.reorder(other, k)
    fused = sch.fuse(batch, *((other, k) if depth_inner else (k, other)))
    turns, y, x, lanes = sch.split(fused, [None, count, LANES, vector])
    _in_turns(sch, turns, y, x)
    if vector > 1:
        sch.vectorize(lanes)


def _gather(sch: Schedule, block: SBlockRV, count: int, vector: int, kind: str) -> None:
    """The same of lhs, where elements of a vector along the depth are fetched one by one."""
    batch, k, p = sch.get_loops(block)[-3:]
    k, lanes = sch.split(k, [None, vector])
    # Neighbouring threads fetch neighbouring pixels where these are neighbours in memory; narrow
    # vectors would conflict as they are stored.
    across = vector == VECTOR[kind] and _channels_first(sch)
    outer, inner = (k, p) if across else (p, k)
    sch.reorder(outer, inner, lanes)
    turns, y, x = sch.split(sch.fuse(batch, outer, inner), [None, count, LANES])
    _in_turns(sch, turns, y, x)
    sch.vectorize(lanes)
    sch.annotate(turns, GATHERED, 1)


def _in_turns(sch: Schedule, turns: LoopRV, y: LoopRV, x: LoopRV) -> None:
    """Warps and their lanes take part in every turn."""
    unroll(sch, turns)
    sch.bind(y, "threadIdx.y")
    sch.bind(x, "threadIdx.x")


def _arrange(sch: Schedule, block: SBlockRV, kind: str, depth_inner: bool) -> None:
    """Rows of a tile so that no lanes that are served at once want the same bank: swizzled for
    matrices of 16 bits; padded for lanes that read tf32 themselves, along the depth by 4 words or,
    across it, to 8 banks apart."""
    if depth_inner:
        sch.transform_layout(block, ("write", 0), lambda b, k, p: [b, p, k])
    if kind != "tf32":
        sch.annotate(block, SWIZZLED, VECTOR[kind])
    elif depth_inner:
        sch.storage_align(block, 0, -2, 2 * VECTOR[kind], VECTOR[kind])
    else:
        sch.storage_align(block, 0, -2, LANES, 8)
