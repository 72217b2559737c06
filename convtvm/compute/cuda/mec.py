"""MEC on a GPU: Cho & Brand, arXiv 1706.06873; see `convtvm.compute.mec`.

    L[kx, i, n, r, x]    = data_pad[n, i, r, x*sw + kx*dw]                 lowered along the width
    lhs[g, (ky, kx, i), p] = L[kx, g*icg + i, n, y*sh + ky*dh, x]

The products of all rows are one launch: Solution B numbers the pixels p as (n, y, x), Solution A as
(y, n, x), so that the windows of one output row of all images are neighbours; its sums go through
memory and are repacked. L is [kx, i, r, n, x] there, and [.., x, kx, i] for NHWC, with all channels
that the product has (`direct.held_channels`). The weight is packed as for `direct`.
"""

from __future__ import annotations

from tvm import te, tirx

from convtvm.compute import stages
from convtvm.compute.cuda import direct, gemm
from convtvm.problem.workload import ConvWorkload

pack_weight = direct.pack_weight


def conv2d_a(
    w: ConvWorkload,
    layout: str,
    lanes: int,
    tile_p: int = 1,
    tile_c: int = 1,
    tile_k: int = 1,
    split_k: int = 1,
) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out, L, sums) in `layout`, by Solution A; blocks mec_lower,
    lhs, rhs, gemm, parts, out."""
    return _conv2d(w, layout, gemm.Tiling(tile_p, tile_c, tile_k, split_k), rows_first=True)


def conv2d_b(
    w: ConvWorkload,
    layout: str,
    lanes: int,
    tile_p: int = 1,
    tile_c: int = 1,
    tile_k: int = 1,
    split_k: int = 1,
) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out, L) in `layout`, and the partial sums if there are
    several, by Solution B; blocks mec_lower, lhs, rhs, gemm, out."""
    return _conv2d(w, layout, gemm.Tiling(tile_p, tile_c, tile_k, split_k), rows_first=False)


def _conv2d(w: ConvWorkload, layout: str, tiling: gemm.Tiling, rows_first: bool) -> tirx.PrimFunc:
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder(direct.packed_weight_shape(w), w.dtype, name="weight")
    icg, held, nhwc = w.ic // w.groups, direct.held_channels(w), layout == "NHWC"
    lowered = _lower(w, data, layout, rows_first)

    def read(g, k, p):
        tap, i = k // held, k % held
        outer, x = p // w.ow, p % w.ow
        n, y = (outer % w.n, outer // w.n) if rows_first else (outer // w.oh, outer % w.oh)
        row, kx = y * w.sh + tap // w.kw * w.dh, tap % w.kw
        images = (row, n) if rows_first else (n, row)
        if nhwc:
            return [], lowered[(*images, x, kx, g * held + i)]
        return direct.exists(w, i), lowered[(kx, g * icg + i, *images, x)]

    problem = gemm.Problem(
        batch=w.groups,
        pixels=w.n * w.oh * w.ow,
        channels=w.oc // w.groups,
        depth=direct.depth(w),
        read=read,
        depth_inner=nhwc,
        vector=gemm.vector_of(held if nhwc else w.ow, w.dtype),
        operands=w.dtype,
    )
    pixel = (lambda n, y, x: (y * w.n + n) * w.ow + x) if rows_first else None
    return gemm.convolution(w, layout, problem, [data, lowered], weight, bias, tiling, pixel)


def _lower(w: ConvWorkload, data: te.Tensor, layout: str, rows_first: bool) -> te.Tensor:
    """The block `mec_lower`, L in the order of the module's text."""
    rows, _ = stages.read_rows_cols(w)
    icg, held, order = w.ic // w.groups, direct.held_channels(w), stages.LAYOUTS[layout]

    def element(kx, i, n, r, x):
        row, col = r - w.ph, x * w.sw + kx * w.dw - w.pw
        conditions = direct.inside(w, row, col)
        if layout == "NHWC" and held > icg:
            conditions = [*direct.exists(w, i % held), *conditions]
            i = i // held * icg + i % held
        value = data[order(n, i, row, col)]
        zero = tirx.const(0, w.dtype)
        return te.if_then_else(tirx.all(*conditions), value, zero) if conditions else value

    images = (rows, w.n) if rows_first else (w.n, rows)

    def at(kx, i, outer, inner, x):
        n, r = (inner, outer) if rows_first else (outer, inner)
        return element(kx, i, n, r, x)

    if layout == "NHWC":
        shape = (*images, w.ow, w.kw, w.groups * held)
        return te.compute(shape, lambda a, b, x, kx, i: at(kx, i, a, b, x), name="mec_lower")
    return te.compute((w.kw, w.ic, *images, w.ow), at, name="mec_lower")
