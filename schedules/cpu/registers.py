"""The register tile: which tiles fit the vector registers, and the steps that make LLVM keep
them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from schedules.knobs import Decisions

# Annotation of a loop over register tiles that read the same elements of the weight: how many these
# are, how much further the next ones lie, and how many tiles the loop has before lowering cuts off
# those that overhang. Lowering makes it prefetches.
PREFETCH = "convtvm.prefetch"

# Annotation of a loop over register tiles that read a panel of the data, a run of pixels from each
# of its planes, the next panel following it: the number of planes, elements from one to the next,
# elements of a run, tiles of the panel, and how many iterations of the parallel loop around, one
# after another, read this panel.
PREFETCH_DATA = "convtvm.prefetch_data"

# Annotations of loops around a store that changes between NCHW and vectors of channels, which
# lowering makes transposes in registers. Out: the outermost loop over the channels and pixels of a
# tile; lanes of a vector, and pixels of a row that the edge of the image cuts off, 0 if it cuts off
# none. In: the loop over the pixels of a row, around that over the lanes of a vector.
TRANSPOSE_OUT = "convtvm.transpose_out"
TRANSPOSE_IN = "convtvm.transpose_in"

# Annotation of a loop over the tiles of a row, whose sums read pixels that may lie outside the
# image: lowering makes loops of their own for the first, the middle and the last tiles.
BORDERS = "convtvm.borders"

# Planes of an image that lie multiples of so many bytes apart take each other's place in the L1
# cache: sixteen lines of them overfill its sets.
ALIAS_BYTES = 2048

_MAX_TERMS = 768  # of one partial sum


@dataclass(frozen=True)
class CpuModel:
    """What templates need to know of a CPU: fp32 lanes and number of vector registers, threads,
    caches."""

    lanes: int
    registers: int
    threads: int
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10


def live_registers(rows: int, vectors: int) -> int:
    """Vector registers that a tile of `rows` x `vectors` accumulators needs.

    LLVM keeps every operand of the inner unrolled loop alive across the outer one, so the inner
    loop runs over the operand with fewer distinct values; one more register holds the outer
    operand.
    """
    shared = 0 if rows == 1 or vectors == 1 else min(rows, vectors)
    return rows * vectors + 1 + shared


def fits(rows: int, vectors: int, cpu: CpuModel) -> bool:
    """Whether the tile avoids spilling, which costs 2x and makes timings depend on stack
    alignment."""
    return live_registers(rows, vectors) <= cpu.registers


def tile_order(rows: int, vectors: int, row_loops: list, vector_loops: list) -> list:
    """The unrolled loops of a tile, the operand with fewer distinct values innermost."""
    return [*row_loops, *vector_loops] if rows >= vectors else [*vector_loops, *row_loops]


def loads_per_fma(rows: int, vectors: int) -> float:
    """Vector loads and broadcasts that one multiply-add needs in the inner loop."""
    return (rows + vectors) / (rows * vectors)


def tile_cost(rows: int, vectors: int, cpu: CpuModel, together: float = 1.0) -> float:
    """Estimated cycles per multiply-add: too few accumulators wait for latency, too many loads
    stall. Of short sums `together` are computed at a time."""
    latency = max(1.0, 8.0 / (rows * vectors * together))
    return latency * (1.0 + max(0.0, loads_per_fma(rows, vectors) - 0.7))


def waste(extent: int, tile: int) -> float:
    """Share of extra work when `extent` is covered by whole tiles."""
    return -(-extent // tile) * tile / extent - 1.0


def vectorize_innermost(sch: Schedule, block: SBlockRV, unroll: int) -> list[LoopRV]:
    """Vectorise the innermost loop of `block`, unroll the `unroll` loops around it."""
    loops = list(sch.get_loops(block))
    sch.vectorize(loops[-1])
    for loop in loops[-1 - unroll : -1]:
        sch.unroll(loop)
    return loops


def accumulate_in_tile(sch: Schedule, store: SBlockRV, d: Decisions, unroll_ic: int = 1) -> None:
    """Schedule the products `partial` and `conv` such that a tile stays in registers.

    A tile is tile_oh x tile_ow pixels by tile_oc vectors; `store` takes it from `conv` right after
    the reduction. Loops over tiles: images, channels and rows are shared out among the threads.
    With `panel`, tiles of a row come in panels, and every panel meets all channels. With `images`,
    so many images meet a channel tile before the next one. With `prefetch`, the weight of the next
    channel tile comes while these tiles use theirs.
    """
    conv, partial = sch.get_sblock("conv"), sch.get_sblock("partial")
    block = oc_block(sch)

    # Cut the output into register tiles; one thread owns the rows of a channel tile.
    n, c, y, x, k = sch.get_loops(conv)
    co, ci, cb = sch.split(c, [None, d["tile_oc"], block])
    yo, yi = sch.split(y, [None, d["tile_oh"]])
    xo, xi = sch.split(x, [None, d["tile_ow"]])
    no, ni = sch.split(n, [None, d.get("images", 1)])
    outer = [no, ni, yo, co] if d["rows_outer"] else [no, co, ni, yo]
    if d.get("panel", 1) > 1:
        panel, xo = sch.split(xo, [None, d["panel"]])
        outer = [no, panel, co, ni, yo]
    sch.reorder(*outer, xo, k, yi, xi, ci, cb)
    sch.parallel(sch.fuse(*outer))
    # A ragged last tile gets its own copy of the loop nest, so that full tiles test nothing.
    sch.annotate(xo, "pragma_loop_partition_hint", 1)
    if is_inplace(sch):
        sch.annotate(xo, BORDERS, 1)
    if d.get("prefetch", 0):
        elements = d["tile_oc"] * math.prod(map(int, sch.mod["main"].params[1].shape[1:]))
        sch.annotate(xo, PREFETCH, [elements, elements, int(sch.get(xo).extent)])
    sch.vectorize(cb)
    for loop in (yi, xi, ci):
        sch.unroll(loop)

    # The partial sum over a few channel blocks lives in the same tile, as does what follows.
    sch.compute_at(partial, k, preserve_unit_loops=True)
    sch.reverse_compute_at(store, xo, preserve_unit_loops=True)
    sch.transform_layout(conv, ("write", 0), lambda n, c, y, x: [n, c // block, y, x, c % block])
    sch.transform_layout(
        partial, ("write", 0), lambda k, n, c, y, x: [k, n, c // block, y, x, c % block]
    )

    # Reduction outside, tile inside; the channel block is innermost in the packed weight.
    _, _, c, y, x, io, ky, kx, ii = sch.get_loops(partial)[-9:]
    ci, cb = sch.split(c, [None, block])
    iio, iii = sch.split(ii, [None, unroll_ic])
    tile = tile_order(d["tile_ow"] * d["tile_oh"], d["tile_oc"], [y, x], [ci])
    sch.reorder(io, ky, kx, iio, iii, *tile, cb)
    sch.vectorize(cb)
    for loop in (iii, *tile):
        sch.unroll(loop)
    vectorize_innermost(sch, sch.decompose_reduction(partial, io), unroll=3)
    vectorize_innermost(sch, sch.decompose_reduction(conv, k), unroll=3)


def image_counts(sch: Schedule) -> tuple[int, ...]:
    """How many images may meet a block of the weight in turn: the divisors of the batch."""
    batch = extents(sch, "out")[0]
    return tuple(i for i in range(1, batch + 1) if batch % i == 0)


def unroll_values(terms: int) -> tuple[int, ...]:
    """By how much a sum over `terms` may be unrolled."""
    return tuple(u for u in (1, 2, 4) if terms % u == 0)


def tile_ic_values(chunks_in: int, terms: int) -> tuple[int, ...]:
    """Channel blocks, of `terms` products each, that one partial sum may take: divisors of
    `chunks_in`. Longer sums lose accuracy, shorter ones speed."""
    return tuple(
        t
        for t in range(1, chunks_in + 1)
        if chunks_in % t == 0 and (t == 1 or t * terms <= _MAX_TERMS)
    )


def number_pixels(sch: Schedule, order: Callable[..., tuple]) -> None:
    """Let `out` count pixels as the products do: `order(n, c, y, x, ow)` gives its three axes, of
    which the second is the channel and the third the pixel."""
    out = sch.get_sblock("out")
    if layout(sch) == "NHWC":
        ow = extents(sch, "out")[2]
        pixel_before_channel = (0, 2, 1)
        sch.transform_block_layout(
            out, lambda n, y, x, c: [order(n, c, y, x, ow)[i] for i in pixel_before_channel]
        )
    else:
        ow = extents(sch, "out")[3]
        sch.transform_block_layout(out, lambda n, c, y, x: list(order(n, c, y, x, ow)))


def ic_block(sch: Schedule) -> int:
    """Input channels that are neighbours in the packed weight."""
    return int(sch.mod["main"].params[1].shape[-2])


def oc_block(sch: Schedule) -> int:
    """Lanes of an output-channel vector: the last axis of the packed weight."""
    return int(sch.mod["main"].params[1].shape[-1])


def find_block(sch: Schedule, name: str) -> SBlockRV | None:
    """The block called `name`, or None where the compute has no such stage."""
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        if sch.get(block).name_hint == name:
            return block
    return None


def extents(sch: Schedule, block: str) -> list[int]:
    """Extents of the loops around a block, outermost first."""
    return [int(sch.get(loop).extent) for loop in sch.get_loops(sch.get_sblock(block))]


def layout(sch: Schedule) -> str:
    """Interface layout of the function, which its compute states as an attribute."""
    return str(sch.mod["main"].attrs["layout"])


def is_inplace(sch: Schedule) -> bool:
    """Whether the function reads pixels outside the image as zeros, which its compute states as an
    attribute."""
    return "inplace" in sch.mod["main"].attrs
