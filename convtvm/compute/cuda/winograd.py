"""Winograd convolution in three kernels: input tiles, matrix products, output tiles.

    V[e, f, i, p]    = (B^T d_p B)[e, f]
    M[(e, f), c, p]  = sum_i U[(e, f), i, c] * V[e, f, i, p]
    Y[c, p]          = A^T M[.., c, p] A

Matrices, tiles and their numbering p are those of `convtvm.compute.winograd`; V and the products M
are workspaces. For NHWC the channels of V and M are innermost. With a dilation, the images are its
phases (`convtvm.compute.phases`). What was padded to fill the last tiles is read as zeros and
cropped.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import te, tirx

from convtvm.compute import stages
from convtvm.compute.cuda import gemm
from convtvm.compute.phases import Phases
from convtvm.compute.winograd import Tiling, transform
from convtvm.problem.workload import ConvWorkload


def input_shape(w: ConvWorkload, m: int, layout: str) -> tuple[int, int, int, int]:
    """V: [alpha_h, alpha_w, ic, tiles rounded up to vectors], or [.., tiles, ic] for NHWC."""
    tiling = Tiling.of(w, m)
    tiles = tiling.count(w)
    alphas = (tiling.rows.alpha, tiling.cols.alpha)
    return (*alphas, tiles, w.ic) if layout == "NHWC" else (*alphas, w.ic, -(-tiles // 4) * 4)


def packed_weight_shape(w: ConvWorkload, m: int) -> tuple[int, int, int]:
    """[alpha_h * alpha_w, ic, oc in whole vectors]."""
    tiling = Tiling.of(w, m)
    return (tiling.rows.alpha * tiling.cols.alpha, w.ic, gemm.padded_channels(w.oc))


def pack_weight(w: ConvWorkload, m: int) -> tirx.PrimFunc:
    """weight [oc, ic, kh, kw] -> U = G g G^T in `packed_weight_shape`, padded with zeros."""
    tiling, wide = Tiling.of(w, m), "float64"
    alpha_w = tiling.cols.alpha
    weight = te.placeholder(w.weight_shape, w.dtype, name="weight")

    def half(c, i, e, kx):
        return transform(tiling.rows.G, e, lambda ky: weight[c, i, ky, kx].astype(wide), wide)

    rows = te.compute((w.oc, w.ic, tiling.rows.alpha, w.kw), half, name="pack_rows")

    def element(b, i, c):
        e, f = b // alpha_w, b % alpha_w
        value = transform(tiling.cols.G, f, lambda kx: rows[c, i, e, kx], wide).astype(w.dtype)
        return te.if_then_else(c < w.oc, value, tirx.const(0, w.dtype))

    packed = te.compute(packed_weight_shape(w, m), element, name="pack")
    return te.create_prim_func([weight, packed])


def conv2d(
    w: ConvWorkload,
    layout: str,
    lanes: int,
    m: int,
    tile_p: int = 1,
    tile_c: int = 1,
    tile_k: int = 1,
    split_k: int = 1,
) -> tirx.PrimFunc:
    """(data, U, bias [oc], out, V, M) in `layout`.

    Blocks patch, input_rows, data_transform, lhs, rhs, gemm, parts, product, inverse_rows, inverse,
    out, all over the images of the phases' convolution.
    """
    tiling, phases = Tiling.of(w, m), Phases.of(w)
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder(packed_weight_shape(w, m), w.dtype, name="weight")
    v, read = _input_tiles(phases, data, layout, m)
    nhwc = layout == "NHWC"
    problem = gemm.Problem(
        batch=tiling.rows.alpha * tiling.cols.alpha,
        pixels=tiling.count(w),
        channels=w.oc,
        depth=w.ic,
        read=read,
        depth_inner=nhwc,
        vector=gemm.vector_of(int(v.shape[3])),
        stored=int(v.shape[2 if nhwc else 3]),
    )
    sums = gemm.product(problem, weight, gemm.Tiling(tile_p, tile_c, tile_k, split_k))
    parts = gemm.in_layout(sums, layout)
    y = _output_tiles(phases, parts, layout, tiling)
    out = stages.output(phases.part, layout, lambda n, c, h, x: y[n, c, h, x], bias)
    func = stages.prim_func([data, weight, bias, out, v, parts], layout)
    func = gemm.with_attributes(phases.interleave(func, layout), problem)
    return func.with_attrs({"tile_h": tiling.rows.m, "tile_w": tiling.cols.m})


def _input_tiles(
    phases: Phases, data: te.Tensor, layout: str, m: int
) -> tuple[te.Tensor, Callable[..., tuple]]:
    """V, and how the product reads it."""
    w = phases.w
    tiling, dtype, order = Tiling.of(w, m), w.dtype, stages.LAYOUTS[layout]
    grid_h, grid_w = tiling.grid(w)
    high, wide, alpha_w = tiling.rows.side, tiling.cols.side, tiling.cols.alpha
    nhwc, shape, tiles = layout == "NHWC", input_shape(w, m, layout), tiling.count(w)
    stored = shape[2 if nhwc else 3]

    def pixel(i, p, y, x):
        tile = tirx.min(p, tiles - 1) if stored > tiles else p
        image, ty, tx = tile // (grid_h * grid_w), tile // grid_w % grid_h, tile % grid_w
        y, x = y + tiling.rows.first, x + tiling.cols.first
        row, col = phases.source(image, ty * tiling.rows.m + y, tx * tiling.cols.m + x)
        row, col = row - w.ph, col - w.pw
        inside = tirx.all(row >= 0, row < w.ih, col >= 0, col < w.iw)
        value = data[order(phases.image(image), i, row, col)]
        return te.if_then_else(inside, value, tirx.const(0, dtype))

    patch = te.compute((w.ic, stored, high, wide), pixel, name="patch")
    rows = te.compute(
        (w.ic, stored, tiling.rows.alpha, wide),
        lambda i, p, e, x: transform(tiling.rows.B_T, e, lambda y: patch[i, p, y, x], dtype),
        name="input_rows",
    )

    def element(e, f, i, p):
        return transform(tiling.cols.B_T, f, lambda x: rows[i, p, e, x], dtype)

    swapped = (lambda e, f, p, i: element(e, f, i, p)) if nhwc else element
    v = te.compute(shape, swapped, name="data_transform")

    def read(b, k, p):
        at = (p, k) if nhwc else (k, p)
        return [], v[(b // alpha_w, b % alpha_w, *at)]

    return v, read


def _output_tiles(phases: Phases, parts: te.Tensor, layout: str, tiling: Tiling) -> te.Tensor:
    """`inverse` [images of the part, oc, rows, columns] of whole tiles, from the products."""
    w, images = phases.w, phases.part.n
    m_h, m_w, dtype = tiling.rows.m, tiling.cols.m, w.dtype
    grid_h, grid_w = tiling.grid(w)
    alpha_h, alpha_w = tiling.rows.alpha, tiling.cols.alpha
    tiles = images * grid_h * grid_w
    product = te.compute(
        (w.oc, tiles, alpha_h, alpha_w),
        lambda c, p, e, f: gemm.total(parts, layout, e * alpha_w + f, p, c),
        name="product",
    )
    half = te.compute(
        (w.oc, tiles, m_h, alpha_w),
        lambda c, p, y, f: transform(tiling.rows.A_T, y, lambda e: product[c, p, e, f], dtype),
        name="inverse_rows",
    )

    def inverse(n, c, y, x):
        p = (n * grid_h + y // m_h) * grid_w + x // m_w
        return transform(tiling.cols.A_T, x % m_w, lambda f: half[c, p, y % m_h, f], dtype)

    return te.compute((images, w.oc, grid_h * m_h, grid_w * m_w), inverse, name="inverse")
