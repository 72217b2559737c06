"""im2col and one matrix product a group: a kernel writes the columns, a second one multiplies.

    columns[g, (ky, kx, i), (n, y, x)] = data_pad[n, g*icg + i, y*sh + ky*dh, x*sw + kx*dw]

NHWC has the pixels before the depth, and all channels that the product has; the others hold those
of the data. A 1x1 kernel with stride 1 and without padding needs no columns and is the direct
product. The weight is packed as for `direct`.
"""

from __future__ import annotations

from dataclasses import replace

from tvm import te, tirx

from convtvm.compute import stages
from convtvm.compute.cuda import direct, gemm
from convtvm.compute.im2col import has_columns
from convtvm.problem.workload import ConvWorkload

pack_weight = direct.pack_weight


def columns_shape(w: ConvWorkload, layout: str) -> tuple[int, int, int]:
    """[groups, depth, pixels rounded up to vectors], or [groups, pixels, depth] for NHWC."""
    pixels = w.n * w.oh * w.ow
    if layout == "NHWC":
        return (w.groups, pixels, direct.depth(w))
    rows = w.kh * w.kw * (w.ic // w.groups)
    return (w.groups, rows, gemm.padded_channels(pixels, w.dtype))


def conv2d(
    w: ConvWorkload,
    layout: str,
    lanes: int,
    tile_p: int = 1,
    tile_c: int = 1,
    tile_k: int = 1,
    split_k: int = 1,
    tf32: bool = False,
) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out, columns) in `layout`, and the partial sums if there
    are several; blocks columns, lhs, rhs, gemm, out. With `tf32` the products are of rounded
    factors."""
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder(direct.packed_weight_shape(w), w.dtype, name="weight")
    tiling = gemm.Tiling(tile_p, tile_c, tile_k, split_k)
    window = direct.implicit(w, data, layout, tf32)
    if not has_columns(w):
        return gemm.convolution(w, layout, window, [data], weight, bias, tiling)

    icg, held = w.ic // w.groups, direct.held_channels(w)

    def element(g, k, p):
        conditions, value = window.read(g, k, tirx.min(p, window.pixels - 1))
        zero = tirx.const(0, w.dtype)
        return te.if_then_else(tirx.all(*conditions), value, zero) if conditions else value

    # Without the zeros of `held_channels`, which NHWC has in its columns.
    def held_row(row):
        return row // icg * held + row % icg if held > icg else row

    def own_row(k):
        return k // held * icg + k % held if held > icg else k

    shape, nhwc = columns_shape(w, layout), layout == "NHWC"
    order = (
        (lambda g, p, k: element(g, k, p)) if nhwc else lambda g, r, p: element(g, held_row(r), p)
    )
    columns = te.compute(shape, order, name="columns")

    def read(g, k, p):
        if nhwc:
            return [], columns[g, p, k]
        return direct.exists(w, k % held), columns[g, own_row(k), p]

    problem = replace(
        window,
        read=read,
        depth_inner=nhwc,
        vector=gemm.vector_of(shape[2], w.dtype),
        loads=1,
        stored=window.pixels if nhwc else shape[2],
    )
    return gemm.convolution(w, layout, problem, [data, columns], weight, bias, tiling)
