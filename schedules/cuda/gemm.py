"""The matrix product in float32: tiles in shared memory, smaller ones in registers.

A block of threads computes tile_p pixels by tile_c channels. It walks over the depth in steps of
tile_k; each step's operands are fetched into shared memory by all threads together, `stages` - 1
steps ahead of their use. A thread multiplies thread_p by thread_c of them.

A thread's pixels (and channels) are whole vectors, as far apart as the threads are many: so
neighbouring threads read neighbouring vectors, and no two of them want the same bank of shared
memory.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from schedules.knobs import Decisions

VECTOR = 4  # floats of the widest load


def attribute(sch: Schedule, name: str) -> int:
    """A number that the compute states about itself."""
    return int(sch.mod["main"].attrs[name])


def layout(sch: Schedule) -> str:
    """Interface layout of the function, which its compute states as an attribute."""
    return str(sch.mod["main"].attrs["layout"])


def find_block(sch: Schedule, name: str) -> SBlockRV | None:
    """The block called `name`, or None where the compute has no such stage."""
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        if sch.get(block).name_hint == name:
            return block
    return None


def thread_extents(d: Decisions, depth_inner: bool) -> tuple[int, int]:
    """Threads of a block along y and x; neighbours share what lies together in memory."""
    pixels, channels = d["tile_p"] // d["thread_p"], d["tile_c"] // d["thread_c"]
    return (pixels, channels) if depth_inner else (channels, pixels)


def multiply(sch: Schedule, d: Decisions, store: SBlockRV, vectors: bool) -> None:
    """Schedule lhs, rhs and gemm as one kernel.

    `store` takes the sums from the registers; its innermost loop runs along memory, and if
    `vectors`, by whole vectors.
    """
    gemm, depth_inner = sch.get_sblock("gemm"), bool(attribute(sch, "depth_inner"))

    # Blocks of threads, threads along what lies together in memory, steps through the depth, and
    # a thread's own tile.
    part, batch, p, c, k = sch.get_loops(gemm)[-5:]
    p_block, p_group, p_thread, pi = _split(sch, p, d["tile_p"], d["thread_p"], not depth_inner)
    c_block, c_group, c_thread, ci = _split(sch, c, d["tile_c"], d["thread_c"], True)
    step, ki, kv = sch.split(k, [None, d["tile_k"] // VECTOR, VECTOR])
    own = (pi, ci) if depth_inner else (ci, pi)
    sch.reorder(
        part, batch, c_block, p_block, c_group, p_group, c_thread, p_thread, step, ki, kv, *own
    )
    sch.bind(sch.fuse(part, batch), "blockIdx.z")
    for loop, axis in (
        (c_block, "blockIdx.y"),
        (p_block, "blockIdx.x"),
        (c_group, "vthread.y"),
        (p_group, "vthread.x"),
        (c_thread, "threadIdx.x" if depth_inner else "threadIdx.y"),
        (p_thread, "threadIdx.y" if depth_inner else "threadIdx.x"),
    ):
        sch.bind(loop, axis)

    # The sums leave the registers of the threads that made them.
    sch.set_scope(gemm, 0, "local")
    sch.reverse_compute_at(store, p_thread, preserve_unit_loops=True)
    *_, outer, inner = sch.get_loops(store)
    if vectors:
        sch.vectorize(inner)
    unroll(sch, outer, *([] if vectors else [inner]))

    _load_operands(sch, d, depth_inner, step, ki, kv)
    init = sch.decompose_reduction(gemm, step)
    unroll(sch, *sch.get_loops(init)[-2:])
    unroll(sch, ki, kv, *own)
    if d["stages"] > 1:
        sch.annotate(step, "software_pipeline_stage", [0, 0, d["stages"] - 1])
        sch.annotate(step, "software_pipeline_order", [0, 1, 2])
        sch.annotate(step, "software_pipeline_async_stages", [0])


def _load_operands(
    sch: Schedule, d: Decisions, depth_inner: bool, step: LoopRV, ki: LoopRV, kv: LoopRV
) -> None:
    """Both operands: into shared memory once a step, from there into registers."""
    gemm, lhs, rhs = (sch.get_sblock(name) for name in ("gemm", "lhs", "rhs"))
    for index, operand in enumerate((lhs, rhs)):
        sch.set_scope(operand, 0, "shared.dyn")
        sch.compute_at(operand, step, preserve_unit_loops=True)
        fragment = sch.cache_read(gemm, index, "local")
        by_depth = depth_inner and index == 0
        sch.compute_at(fragment, ki if by_depth else kv, preserve_unit_loops=True)
        *_, k, other = sch.get_loops(fragment)
        if by_depth:
            sch.reorder(other, k)
        sch.vectorize(k if by_depth else other)
    extents = thread_extents(d, depth_inner)
    _fetch(sch, lhs, extents, attribute(sch, "vector"), depth_inner)
    _fetch(sch, rhs, extents, VECTOR, False)
    if depth_inner:
        # Rows of an odd number of vectors: the same column of neighbouring rows, in other banks.
        sch.transform_layout(lhs, ("write", 0), lambda b, k, p: [b, p, k])
        sch.storage_align(lhs, 0, -2, 2 * VECTOR, VECTOR)


def multiply_to_parts(sch: Schedule, d: Decisions) -> None:
    """`multiply` into the block `parts`: sums in memory, where tiles are whole."""
    vectors = d["thread_c" if layout(sch) == "NHWC" else "thread_p"] >= VECTOR
    multiply(sch, d, sch.get_sblock("parts"), vectors)


def store_vectors(sch: Schedule, d: Decisions) -> bool:
    """Whether a thread's vectors of `out` are whole, and lie together."""
    *_, rows, columns = sch.mod["main"].params[3].shape
    nchw = layout(sch) == "NCHW"
    inner = rows * columns if nchw else columns
    batch = sch.mod["main"].params[1].shape[0]
    return (
        int(inner) % VECTOR == 0
        and (nchw or int(inner // batch) % VECTOR == 0)
        and (d["thread_p" if nchw else "thread_c"] >= VECTOR)
    )


def _split(sch: Schedule, loop: LoopRV, tile: int, thread: int, vectors: bool) -> list[LoopRV]:
    """[blocks, groups, threads, vector]: a thread has `groups` vectors of a block's `tile`."""
    vector = min(VECTOR, thread) if vectors else 1
    return sch.split(loop, [None, thread // vector, tile // thread, vector])


def _fetch(
    sch: Schedule, block: SBlockRV, extents: tuple[int, int], vector: int, depth_inner: bool
) -> None:
    """Share one step of lhs or rhs out among the threads, `vector` neighbours at once."""
    batch, k, other = sch.get_loops(block)[-3:]
    if depth_inner:
        sch.reorder(other, k)
    fused = sch.fuse(batch, *((other, k) if depth_inner else (k, other)))
    turns, y, x, lanes = sch.split(fused, [None, *extents, vector])
    unroll(sch, turns)
    sch.bind(y, "threadIdx.y")
    sch.bind(x, "threadIdx.x")
    if vector > 1:
        sch.vectorize(lanes)


def unroll(sch: Schedule, *loops: LoopRV) -> None:
    """Have nvcc unroll nested loops, outermost first: to it a register tile is an array, which is
    in registers only if every index is a constant."""
    for loop in loops:
        sch.unroll(loop)
    sch.annotate(loops[0], "pragma_unroll_explicit", 0)
