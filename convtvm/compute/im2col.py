"""im2col and GEMM: every window copied into a column matrix, then one matrix product a group.

    columns[n, y, x, ky, kx, i] = data_pad[n, i, y*sh + ky*dh, x*sw + kx*dw]
    conv[n, c, y, x]            = sum_{ky, kx, i} columns[n, y, x, ky, kx, i] * weight[c, i, ky, kx]

Any kernel, stride, padding, dilation and group count. The matrix has kh*kw*ic rows and oh*ow
columns for each image, written in whatever order the template chooses; zero padding happens on the
way into it. A 1x1 kernel with stride 1 and without padding multiplies the data itself, as a matrix
of ic x oh*ow: no copy, and tiles that need not end with a row of the image, as those of `direct`
do. The weight is packed as for `direct`.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import te, tirx

from convtvm.compute import direct, stages
from convtvm.workload import ConvWorkload

pack_weight = direct.pack_weight


def has_columns(w: ConvWorkload) -> bool:
    """Whether the column matrix differs from the data."""
    sizes = (w.kh, w.kw, w.sh, w.sw, w.ph + 1, w.pw + 1, w.ph_r + 1, w.pw_r + 1)
    return sizes != (1,) * len(sizes)


def column_bytes(w: ConvWorkload) -> int:
    """Bytes of the column matrices of all images."""
    return 4 * w.n * w.oh * w.ow * w.kh * w.kw * w.ic if has_columns(w) else 0


def padded_pixel(w: ConvWorkload, data: te.Tensor, layout: str, n, c, y, x) -> tirx.PrimExpr:
    """Row y, column x of the zero-padded input, tested only on the sides that have padding."""
    inside = [
        condition
        for needed, condition in (
            (w.ph, y >= w.ph),
            (w.pw, x >= w.pw),
            (w.ph_r, y < w.ih + w.ph),
            (w.pw_r, x < w.iw + w.pw),
        )
        if needed
    ]
    value = data[stages.LAYOUTS[layout](n, c, y - w.ph, x - w.pw)]
    return te.if_then_else(tirx.all(*inside), value, tirx.const(0, w.dtype)) if inside else value


def window_products(
    w: ConvWorkload,
    weight: te.Tensor,
    extent: tuple[int, int, int],
    read: Callable[..., tirx.PrimExpr],
    tile_ic: int,
) -> te.Tensor:
    """`conv` [images, channels, rows, columns] of `read(n, i, y, x, ky, kx)` by the packed weight.

    Blocks partial, conv: the sum has the two levels of `direct`, `tile_ic` channel blocks at a
    time. `extent` counts images, rows and columns; the channels are whole vectors.
    """
    chunks_out, chunks_in, kh, kw, ic_block, block = (int(e) for e in weight.shape)
    chunks_per_group = chunks_out // w.groups
    images, rows, columns = extent
    outer = te.reduce_axis((0, chunks_in // tile_ic), "ico")
    io = te.reduce_axis((0, tile_ic), "ict")
    ky, kx = te.reduce_axis((0, kh), "ky"), te.reduce_axis((0, kw), "kx")
    ii = te.reduce_axis((0, ic_block), "ici")

    def product(k, n, c, y, x):
        chunk = k * tile_ic + io
        group = c // (block * chunks_per_group)
        channel = (group * chunks_in + chunk) * ic_block + ii
        value = read(n, channel, y, x, ky, kx)
        return te.sum(
            value * weight[c // block, chunk, ky, kx, ii, c % block], axis=[io, ky, kx, ii]
        )

    shape = (images, chunks_out * block, rows, columns)
    partial = te.compute((chunks_in // tile_ic, *shape), product, name="partial")
    return te.compute(
        shape, lambda n, c, y, x: te.sum(partial[outer, n, c, y, x], axis=outer), name="conv"
    )


def conv2d(w: ConvWorkload, layout: str, lanes: int, tile_ic: int = 1) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out) in `layout`; blocks columns (if any), partial, conv,
    out.

    Without columns the product runs over all pixels of an image as one row, conv [n, oc, 1, oh*ow].
    """
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder(direct.packed_weight_shape(w, lanes), w.dtype, name="weight")
    if not has_columns(w):
        return _pixels_as_they_are(w, layout, data, weight, bias, tile_ic)

    columns = te.compute(
        (w.n, w.oh, w.ow, w.kh, w.kw, w.ic),
        lambda n, y, x, ky, kx, c: padded_pixel(
            w, data, layout, n, c, y * w.sh + ky * w.dh, x * w.sw + kx * w.dw
        ),
        name="columns",
    )

    def read(n, c, y, x, ky, kx):
        return columns[n, y, x, ky, kx, c]

    conv = window_products(w, weight, (w.n, w.oh, w.ow), read, tile_ic)
    out = stages.output(w, layout, lambda n, c, y, x: conv[n, c, y, x], bias)
    return stages.prim_func([data, weight, bias, out], layout)


def _pixels_as_they_are(
    w: ConvWorkload, layout: str, data: te.Tensor, weight: te.Tensor, bias: te.Tensor, tile_ic: int
) -> tirx.PrimFunc:
    """The product of a 1x1 kernel, stride 1: the pixels of an image are the columns."""
    order = stages.LAYOUTS[layout]

    def read(n, c, _, p, ky, kx):
        return data[order(n, c, p // w.ow, p % w.ow)]

    conv = window_products(w, weight, (w.n, 1, w.oh * w.ow), read, tile_ic)
    out = stages.output(w, layout, lambda n, c, y, x: conv[n, c, 0, y * w.ow + x], bias)
    return stages.prim_func([data, weight, bias, out], layout)
