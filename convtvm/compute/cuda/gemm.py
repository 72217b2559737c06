"""The matrix products of every GPU algorithm, as stages of tiles.

    gemm[s, b, p, c] = sum_{k in part s} lhs[b, k, p] * rhs[b, k, c]                    in float32

`b` counts independent products (groups, or elements of a Winograd tile), p pixels (or tiles), c
output channels and k whatever is summed over. Sizes are rounded up to whole tiles: lhs is zero
where k does not exist, so that tiles need no tests; what is computed for pixels and channels that
do not exist is never stored. Operands that do not exist are read from the last ones that do.
`split_k` parts of a sum are computed by different blocks of threads; the consumer adds them up.
Operands are float32, float16, bfloat16, or `tf32`: float32 of which 10 bits of the fraction count,
rounded to the nearest. All but the first are for tensor cores.

On tensor cores a thread gets two neighbouring columns of the product of every 8. Where channels are
neighbours in the output, the columns are channels in another order (`column`), so that those of one
thread are neighbours there, up to 16 bytes; weights are packed in it. `parts` have it as well.

`lhs` and `rhs` are the tiles that are fetched into shared memory. `depth_inner` says which of k and
p are neighbours in a tile of `lhs`, stored by vectors of `vector` elements. Those are neighbours in
memory as well, which exist together and are fetched at once; or, with `loads` > 1, elements of
which so many have to be fetched one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import tvm_ffi
from tvm import te, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.stmt import SBlock
from tvm.sym import Analyzer

from convtvm.compute import stages
from convtvm.problem.dtypes import BYTES, HALVES
from convtvm.problem.workload import ConvWorkload

_COLUMNS = 32  # that change places among each other
_LOAD = {dtype: 16 // size for dtype, size in BYTES.items()}  # elements of the widest load


@dataclass(frozen=True)
class Tiling:
    """Sizes that the compute has to be rounded up to: pixels, channels, depth; parts of a sum."""

    tile_p: int = 1
    tile_c: int = 1
    tile_k: int = 1
    split_k: int = 1


@dataclass(frozen=True)
class Problem:
    """`batch` products of [pixels, depth] by [depth, channels].

    `read(b, k, p)` is an element of the left operand, and the conditions under which it is not zero
    instead (it is read under no other, nor for k beyond `depth`). It is defined for p up to
    `stored` pixels, by default as many as there are. `operands` says what is multiplied.
    """

    batch: int
    pixels: int
    channels: int
    depth: int
    read: Callable[..., tuple[list[tirx.PrimExpr], tirx.PrimExpr]]
    depth_inner: bool
    vector: int
    loads: int = 1
    stored: int = 0
    operands: str = "float32"


def padded_channels(channels: int, dtype: str = "float32") -> int:
    """Channels of a packed weight: whole vectors."""
    return stages.ceil_div(channels, _LOAD[dtype]) * _LOAD[dtype]


def has_own_columns(w: ConvWorkload, layout: str) -> bool:
    """Whether the columns of the product are channels in the order of `column`."""
    return layout == "NHWC" and w.dtype in HALVES and (w.oc // w.groups) % _COLUMNS == 0


def column(w: ConvWorkload, layout: str, channel):
    """The column of a group's channel: of 32 channels thread q of a quad gets 8q to 8q + 7, which
    are columns 2q and 2q + 1 of four times 8. The other way round it is the same."""
    if not has_own_columns(w, layout):
        return channel
    inner = channel % 8 // 2 * 8 + channel % _COLUMNS // 8 * 2 + channel % 2
    return inner if w.oc // w.groups == _COLUMNS else channel // _COLUMNS * _COLUMNS + inner


def vector_of(extent: int, dtype: str = "float32") -> int:
    """Neighbours that can be read at once along a contiguous axis of this extent."""
    return next(v for v in (8, 4, 2, 1) if v <= _LOAD[dtype] and extent % v == 0)


def product(problem: Problem, weight: te.Tensor, tiling: Tiling) -> te.Tensor:
    """The stages lhs, rhs and gemm [split_k, batch, pixels, channels], rounded up to tiles.

    `weight` is [batch, depth, padded_channels].
    """
    dtype = str(weight.dtype)
    step = tiling.tile_k * tiling.split_k
    depth = stages.ceil_div(problem.depth, step) * step
    pixels = stages.ceil_div(problem.pixels, tiling.tile_p) * tiling.tile_p
    channels = stages.ceil_div(problem.channels, tiling.tile_c) * tiling.tile_c
    stored = problem.stored or problem.pixels
    pixel_vector = 1 if problem.depth_inner else problem.vector

    def left(b, k, p):
        conditions, value = problem.read(b, k, clamped(p, pixels, stored, pixel_vector))
        # One condition, not one inside another: so it can become that of an asynchronous copy.
        inside = [k < problem.depth] * (depth > problem.depth) + conditions
        if not inside:
            return value
        return te.if_then_else(tirx.all(*inside), value, tirx.const(0, dtype))

    def right(b, k, c):
        row = clamped(k, depth, problem.depth, 1)
        return weight[b, row, clamped(c, channels, int(weight.shape[2]), _LOAD[dtype])]

    lhs = te.compute((problem.batch, depth, pixels), left, name="lhs")
    rhs = te.compute((problem.batch, depth, channels), right, name="rhs")
    part = depth // tiling.split_k
    k = te.reduce_axis((0, part), "k")
    factor = tf32 if problem.operands == "tf32" else lambda value: value.astype("float32")

    def dot(s, b, p, c):
        at = s * part + k
        return te.sum(factor(lhs[b, at, p]) * factor(rhs[b, at, c]), axis=k)

    return te.compute((tiling.split_k, problem.batch, pixels, channels), dot, name="gemm")


def tf32(value: tirx.PrimExpr) -> tirx.PrimExpr:
    """A finite float32, rounded as cvt.rna.tf32.f32 does it: to the nearest, away from zero if
    halfway."""
    bits = tirx.reinterpret("uint32", value)
    kept = bits & tirx.const(0xFFFFE000, "uint32")
    half = (bits & tirx.const(0x1000, "uint32")) << tirx.const(1, "uint32")
    return tirx.reinterpret("float32", kept + half)


def in_memory(pixels: int, channels: int, tiling: Tiling) -> bool:
    """Whether sums go through memory: partial ones, and those of a single pixel or channel, whose
    axis TVM would drop and then not know which of a block's threads has it."""
    return tiling.split_k > 1 or min(pixels, channels) == 1


def parts_bytes(batch: int, pixels: int, channels: int, tiling: Tiling) -> int:
    """Bytes of the sums in memory, if they are there."""
    if not in_memory(pixels, channels, tiling):
        return 0
    return sums_bytes(batch, pixels, channels, tiling)


def sums_bytes(batch: int, pixels: int, channels: int, tiling: Tiling) -> int:
    """Bytes of all sums, in whole tiles."""
    rows = stages.ceil_div(pixels, tiling.tile_p) * tiling.tile_p
    columns = stages.ceil_div(channels, tiling.tile_c) * tiling.tile_c
    return 4 * tiling.split_k * batch * rows * columns


def clamped(index: tirx.PrimExpr, extent: int, size: int, vector: int) -> tirx.PrimExpr:
    """`index` below `extent`, but never beyond the last of `size` elements, vector by vector."""
    if extent <= size:
        return index
    if vector == 1 or size % vector:
        return tirx.min(index, size - 1)
    return tirx.min(index // vector, size // vector - 1) * vector + index % vector


def convolution(
    w: ConvWorkload,
    layout: str,
    problem: Problem,
    args: list[te.Tensor],
    weight: te.Tensor,
    bias: te.Tensor,
    tiling: Tiling,
    pixel: Callable[..., tirx.PrimExpr] | None = None,
) -> tirx.PrimFunc:
    """The function over (data, weight, bias, out, workspaces).

    `args` are the data and the workspaces that the problem reads. Sums that go through memory are
    one more: [split_k, groups, channels, pixels] for NCHW, pixels before channels for NHWC.
    `pixel(n, y, x)` numbers the pixels of the product in another order than this one; then sums
    always go through memory.
    """
    sums = product(problem, weight, tiling)
    data, *workspaces = args
    through_memory = bool(pixel) or in_memory(problem.pixels, problem.channels, tiling)
    number = pixel or (lambda n, y, x: (n * w.oh + y) * w.ow + x)
    if through_memory:
        sums = in_layout(sums, layout)
        workspaces.append(sums)
    own = w.oc // w.groups

    def value(n, c, y, x):
        g, p, c = c // own, number(n, y, x), column(w, layout, c % own)
        return total(sums, layout, g, p, c) if through_memory else sums[0, g, p, c]

    out = _output(w, layout, value, bias)
    func = stages.prim_func([data, weight, bias, out, *workspaces], layout)
    if not through_memory:
        func = _flattened(func, w, layout)
    own_columns = int(has_own_columns(w, layout))
    return with_attributes(func, problem).with_attr("own_columns", own_columns)


def with_attributes(func: tirx.PrimFunc, problem: Problem) -> tirx.PrimFunc:
    """`func` with what a template has to know beside its loops."""
    return func.with_attrs(
        {
            "depth_inner": int(problem.depth_inner),
            "vector": problem.vector,
            "loads": problem.loads,
            "operands": problem.operands,
        }
    )


def _output(
    w: ConvWorkload, layout: str, value: Callable[..., tirx.PrimExpr], bias: te.Tensor
) -> te.Tensor:
    """`stages.output`, whose sums are float32 and rounded once."""
    if w.dtype == "float32":
        return stages.output(w, layout, value, bias)

    def element(n, c, y, x):
        return (value(n, c, y, x) + bias[c].astype("float32")).astype(w.dtype)

    order = element if layout == "NCHW" else lambda n, y, x, c: element(n, c, y, x)
    return te.compute(w.out_shape(layout), order, name="out")


def in_layout(sums: te.Tensor, layout: str) -> te.Tensor:
    """The stage `parts`: the sums in memory, neighbours as in `layout`."""
    if layout == "NHWC":
        return te.compute(sums.shape, lambda s, b, p, c: sums[s, b, p, c], name="parts")
    split, batch, pixels, channels = sums.shape
    return te.compute(
        (split, batch, channels, pixels), lambda s, b, c, p: sums[s, b, p, c], name="parts"
    )


def total(parts: te.Tensor, layout: str, b, p, c) -> tirx.PrimExpr:
    """The sum of the parts of an element."""
    at = (b, c, p) if layout == "NCHW" else (b, p, c)
    terms = [parts[(s, *at)] for s in range(int(parts.shape[0]))]
    return sum(terms[1:], terms[0])


def _flattened(func: tirx.PrimFunc, w: ConvWorkload, layout: str) -> tirx.PrimFunc:
    """`func` with its block `out` over [groups, channels, pixels] for NCHW, or [groups, pixels,
    columns] for NHWC, as the product has them, instead of the four axes of `layout`."""
    sch, own = Schedule(func), w.oc // w.groups
    block = sch.get_sblock("out")

    def pixel(n, y, x):
        return (n * w.oh + y) * w.ow + x

    def transposed(n, y, x, c):
        return (c // own, pixel(n, y, x), column(w, layout, c % own))

    if layout == "NCHW":
        sch.transform_block_layout(block, lambda n, c, y, x: (c // own, c % own, pixel(n, y, x)))
    else:
        sch.transform_block_layout(block, transposed)
    return simplified(sch.mod["main"], "out")


def simplified(func: tirx.PrimFunc, name: str) -> tirx.PrimFunc:
    """`func` with the indices of one block simplified under the ranges of its axes."""

    def simplify(index: tirx.PrimExpr, analyzer: Analyzer) -> tirx.PrimExpr:
        return analyzer.simplify(index) if str(index.ty).startswith("int") else index

    def on_block(block: SBlock) -> SBlock:
        if str(block.name_hint) != name:
            return block
        analyzer = Analyzer()
        for axis in block.iter_vars:
            analyzer.bind(axis.var, axis.dom)
        kinds = (tirx.FloorDiv, tirx.FloorMod, tirx.Add)
        rules = [(kind, partial(simplify, analyzer=analyzer)) for kind in kinds]
        return tvm_ffi.structural_map(block, rules, order="post")

    return tvm_ffi.structural_map(func, [(SBlock, on_block)], order="post")
