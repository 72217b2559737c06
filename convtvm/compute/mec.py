"""MEC, memory-efficient convolution: Cho & Brand, arXiv 1706.06873.

    L[n, x, r, kx, i] = data_pad[n, i, r, x*sw + kx*dw]                    lowered along the width
    conv[n, c, y, x]  = sum_{ky, kx, i} L[n, x, y*sh + ky*dh, kx, i] * weight[c, i, ky, kx]

Each padded input row r is copied once and serves every output row whose window has it: the windows
of output rows y and y + 1 overlap in L, which is therefore about kh/sh times smaller than the
columns of im2col. Solution B multiplies the ow windows of one output row of one image at a time.
Solution A multiplies the n*ow windows of one output row of all images at a time; its result is
ordered h-n-w-c and has to be repacked. Any kernel, stride, padding, dilation and group count. The
weight is packed as for `direct`.
"""

from __future__ import annotations

from tvm import te, tirx

from convtvm.compute import direct, stages
from convtvm.problem.workload import ConvWorkload

pack_weight = direct.pack_weight


def lowered_bytes(w: ConvWorkload) -> int:
    """Bytes of L: the rows of the padded input that windows span, padding included."""
    rows, _ = stages.read_rows_cols(w)
    return 4 * w.n * w.ow * rows * w.kw * w.ic


def _lower(w: ConvWorkload, data: te.Tensor, layout: str) -> te.Tensor:
    """The block `mec_lower`, L [n, ow, rows, kw, ic]."""
    rows, _ = stages.read_rows_cols(w)
    return te.compute(
        (w.n, w.ow, rows, w.kw, w.ic),
        lambda n, x, r, kx, c: stages.padded_pixel(w, data, layout, n, c, r, x * w.sw + kx * w.dw),
        name="mec_lower",
    )


def conv2d_a(w: ConvWorkload, layout: str, lanes: int, tile_ic: int = 1) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out) in `layout`, by Solution A.

    Blocks mec_lower, partial, conv [1, oc, oh, n*ow], out. In the paper a GEMM leaves its result in
    the order h-n-w-c, which is then repacked with L as scratch. Here each register tile is stored
    where it belongs, so nothing is repacked and L is all the workspace there is.
    """
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder(direct.packed_weight_shape(w, lanes), w.dtype, name="weight")
    lowered = _lower(w, data, layout)

    def read(_, c, y, p, ky, kx):
        return lowered[p // w.ow, p % w.ow, y * w.sh + ky * w.dh, kx, c]

    conv = stages.window_products(w, weight, (1, w.oh, w.n * w.ow), read, tile_ic)
    out = stages.output(w, layout, lambda n, c, y, x: conv[0, c, y, n * w.ow + x], bias)
    return stages.prim_func([data, weight, bias, out], layout).with_attr("batch_in_row", True)


def conv2d_b(w: ConvWorkload, layout: str, lanes: int, tile_ic: int = 1) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out) in `layout`, by Solution B.

    Blocks mec_lower, partial, conv, out.
    """
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder(direct.packed_weight_shape(w, lanes), w.dtype, name="weight")
    lowered = _lower(w, data, layout)

    def read(n, c, y, x, ky, kx):
        return lowered[n, x, y * w.sh + ky * w.dh, kx, c]

    conv = stages.window_products(w, weight, (w.n, w.oh, w.ow), read, tile_ic)
    out = stages.output(w, layout, lambda n, c, y, x: conv[n, c, y, x], bias)
    return stages.prim_func([data, weight, bias, out], layout)
