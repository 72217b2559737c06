"""im2col and GEMM: every window copied into a column matrix, then one matrix product a group.

    columns[n, y, x, ky, kx, i] = data_pad[n, i, y*sh + ky*dh, x*sw + kx*dw]
    conv[n, c, y, x]            = sum_{ky, kx, i} columns[n, y, x, ky, kx, i] * weight[c, i, ky, kx]

Any kernel, stride, padding, dilation and group count. The matrix has kh*kw*ic rows and oh*ow
columns for each image, written in whatever order the template chooses; zero padding happens on the
way into it. A 1x1 kernel with stride 1 and without padding can multiply the data itself, as a
matrix of ic x oh*ow. Pixels are numbered through, so that tiles need not end with a row of the
image. The weight is packed as for `direct`.
"""

from __future__ import annotations

from tvm import te, tirx

from convtvm.compute import direct, stages
from convtvm.problem.workload import ConvWorkload

pack_weight = direct.pack_weight


def has_columns(w: ConvWorkload) -> bool:
    """Whether the column matrix differs from the data."""
    sizes = (w.kh, w.kw, w.sh, w.sw, w.ph + 1, w.pw + 1, w.ph_r + 1, w.pw_r + 1)
    return sizes != (1,) * len(sizes)


def packed_pixels(w: ConvWorkload, tile_ow: int, panel: int) -> int:
    """Pixels of an image, rounded up to whole panels of `panel` tiles of `tile_ow` pixels."""
    return stages.ceil_div(w.oh * w.ow, tile_ow * panel) * tile_ow * panel


def column_bytes(w: ConvWorkload, tile_ow: int = 1, panel: int = 1, pack: int = 0) -> int:
    """Bytes of the column matrices of all images, with the pixels that fill the last panels."""
    if not pack and not has_columns(w):
        return 0
    return 4 * w.n * packed_pixels(w, tile_ow, panel) * w.kh * w.kw * w.ic


def conv2d(
    w: ConvWorkload,
    layout: str,
    lanes: int,
    tile_ic: int = 1,
    tile_ow: int = 1,
    panel: int = 1,
    pack: int = 0,
) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out) in `layout`; blocks columns (if any), partial, conv
    [n, oc, 1, pixels], out.

    The columns are rounded up to whole panels, the surplus being zero. With `pack` there are
    columns even where they equal the data.
    """
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder(direct.packed_weight_shape(w, lanes), w.dtype, name="weight")
    order, count = stages.LAYOUTS[layout], w.oh * w.ow
    pixels = packed_pixels(w, tile_ow, panel) if pack or has_columns(w) else count

    def element(n, c, ky, kx, p):
        y, x = p // w.ow * w.sh + ky * w.dh, p % w.ow * w.sw + kx * w.dw
        value = stages.padded_pixel(w, data, layout, n, c, y, x)
        if pixels == count:
            return value
        return te.if_then_else(p < count, value, tirx.const(0, w.dtype))

    if pack or has_columns(w):
        columns = te.compute((w.n, w.ic, w.kh, w.kw, pixels), element, name="columns")

    def read(n, c, _, p, ky, kx):
        if pack or has_columns(w):
            return columns[n, c, ky, kx, p]
        return data[order(n, c, p // w.ow, p % w.ow)]

    conv = stages.window_products(w, weight, (w.n, 1, pixels), read, tile_ic)
    out = stages.output(w, layout, lambda n, c, y, x: conv[n, c, 0, y * w.ow + x], bias)
    return stages.prim_func([data, weight, bias, out], layout)
