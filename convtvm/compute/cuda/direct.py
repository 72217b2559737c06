"""Direct convolution as an implicit matrix product: the columns of im2col exist only as tiles.

    lhs[g, (ky, kx, i), (n, y, x)] = data_pad[n, g*icg + i, y*sh + ky*dh, x*sw + kx*dw]

Any kernel, stride, padding, dilation and group count. Padding happens on the way into shared
memory. With `split_k` parts the partial sums go through a workspace.
"""

from __future__ import annotations

from tvm import te, tirx

from convtvm.compute import stages
from convtvm.compute.cuda import gemm
from convtvm.problem.workload import ConvWorkload


def packed_weight_shape(w: ConvWorkload) -> tuple[int, int, int]:
    """[groups, kh*kw*ic/groups, oc/groups in whole vectors]."""
    depth = w.kh * w.kw * (w.ic // w.groups)
    return (w.groups, depth, gemm.padded_channels(w.oc // w.groups, w.dtype))


def pack_weight(w: ConvWorkload, layout: str) -> tirx.PrimFunc:
    """weight [oc, ic/groups, kh, kw] -> `packed_weight_shape`, zero in the padded channels; the
    channels in the order that products for `layout` have (`gemm.column`)."""
    weight = te.placeholder(w.weight_shape, w.dtype, name="weight")
    ocg, icg = w.oc // w.groups, w.ic // w.groups

    def element(g, k, c):
        channel = gemm.column(w, layout, c)  # and the other way round
        value = weight[g * ocg + channel, k % icg, k // icg // w.kw, k // icg % w.kw]
        return te.if_then_else(c < ocg, value, tirx.const(0, w.dtype))

    packed = te.compute(packed_weight_shape(w), element, name="pack")
    return te.create_prim_func([weight, packed])


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
    """(data, packed weight, bias [oc], out) in `layout`, and the partial sums if there are several;
    blocks lhs, rhs, gemm, out. With `tf32` the products are of rounded factors."""
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder(packed_weight_shape(w), w.dtype, name="weight")
    tiling = gemm.Tiling(tile_p, tile_c, tile_k, split_k)
    problem = implicit(w, data, layout, tf32)
    return gemm.convolution(w, layout, problem, [data], weight, bias, tiling)


def implicit(w: ConvWorkload, data: te.Tensor, layout: str, tf32: bool = False) -> gemm.Problem:
    """The product whose left operand is gathered from `data` itself."""
    icg, order = w.ic // w.groups, stages.LAYOUTS[layout]
    plane = w.oh * w.ow

    def read(g, k, p):
        tap, i = k // icg, k % icg
        row = p % plane // w.ow * w.sh + tap // w.kw * w.dh - w.ph
        col = p % w.ow * w.sw + tap % w.kw * w.dw - w.pw
        return inside(w, row, col), data[order(p // plane, g * icg + i, row, col)]

    pointwise = (w.kh, w.kw, w.sh, w.sw, w.ph, w.pw, w.ph_r, w.pw_r) == (1, 1, 1, 1, 0, 0, 0, 0)
    if layout == "NHWC":
        vector = gemm.vector_of(icg, w.dtype)
    else:
        vector = gemm.vector_of(plane, w.dtype) if pointwise and plane == w.ih * w.iw else 1
    return gemm.Problem(
        batch=w.groups,
        pixels=w.n * plane,
        channels=w.oc // w.groups,
        depth=w.kh * w.kw * icg,
        read=read,
        depth_inner=layout == "NHWC",
        vector=vector,
        operands="tf32" if tf32 else w.dtype,
    )


def inside(w: ConvWorkload, row: tirx.PrimExpr, col: tirx.PrimExpr) -> list[tirx.PrimExpr]:
    """Whether an input pixel exists, tested only on the sides that have padding."""
    sides = (
        (w.ph, row >= 0),
        (w.pw, col >= 0),
        (w.ph_r, row < w.ih),
        (w.pw_r, col < w.iw),
    )
    return [condition for needed, condition in sides if needed]
