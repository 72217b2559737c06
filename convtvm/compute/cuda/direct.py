"""Direct convolution as an implicit matrix product: the columns of im2col exist only as tiles.

    lhs[g, (ky, kx, i), (n, y, x)] = data_pad[n, g*icg + i, y*sh + ky*dh, x*sw + kx*dw]

Any kernel, stride, padding, dilation and group count. Padding happens on the way into shared
memory. With `split_k` parts the partial sums go through a workspace.

In 16 bits the three channels of an image are four along the depth (`held_channels`), the last one
zero: so a pixel is one vector of a tile.
"""

from __future__ import annotations

from tvm import te, tirx

from convtvm.compute import stages
from convtvm.compute.cuda import gemm
from convtvm.problem.dtypes import HALVES
from convtvm.problem.workload import ConvWorkload

_VECTORS = (4, 8)  # channels of 8 and of 16 bytes


def held_channels(w: ConvWorkload) -> int:
    """Channels of a group along the depth of the product: its own, or in 16 bits one more that is
    zero, if they become a whole vector by it."""
    icg = w.ic // w.groups
    return icg + 1 if w.dtype in HALVES and icg + 1 in _VECTORS else icg


def depth(w: ConvWorkload) -> int:
    """Terms of a sum: kh*kw taps of `held_channels`."""
    return w.kh * w.kw * held_channels(w)


def packed_weight_shape(w: ConvWorkload) -> tuple[int, int, int]:
    """[groups, `depth`, oc/groups in whole vectors]."""
    return (w.groups, depth(w), gemm.padded_channels(w.oc // w.groups, w.dtype))


def pack_weight(w: ConvWorkload, layout: str) -> tirx.PrimFunc:
    """weight [oc, ic/groups, kh, kw] -> `packed_weight_shape`, zero in the padded channels; the
    channels in the order that products for `layout` have (`gemm.column`)."""
    weight = te.placeholder(w.weight_shape, w.dtype, name="weight")
    ocg, held = w.oc // w.groups, held_channels(w)

    def element(g, k, c):
        channel = gemm.column(w, layout, c)  # and the other way round
        value = weight[g * ocg + channel, k % held, k // held // w.kw, k // held % w.kw]
        inside = tirx.all(c < ocg, *exists(w, k % held))
        return te.if_then_else(inside, value, tirx.const(0, w.dtype))

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
    icg, held, order = w.ic // w.groups, held_channels(w), stages.LAYOUTS[layout]
    plane, nhwc = w.oh * w.ow, layout == "NHWC"

    def read(g, k, p):
        tap, i = k // held, k % held
        row = p % plane // w.ow * w.sh + tap // w.kw * w.dh - w.ph
        col = p % w.ow * w.sw + tap % w.kw * w.dw - w.pw
        conditions = [*exists(w, i), *inside(w, row, col)]
        return conditions, data[order(p // plane, g * icg + i, row, col)]

    pointwise = (w.kh, w.kw, w.sh, w.sw, w.ph, w.pw, w.ph_r, w.pw_r) == (1, 1, 1, 1, 0, 0, 0, 0)
    whole_plane = not nhwc and pointwise and plane == w.ih * w.iw
    vector = gemm.vector_of(plane, w.dtype) if whole_plane else 1
    # Where neither channels nor pixels are neighbours, channels of 16 bits become a vector.
    by_depth = nhwc or (w.dtype in HALVES and vector == 1)
    if by_depth:
        vector = gemm.vector_of(held, w.dtype)
    apart = by_depth and (held > icg or not nhwc)
    return gemm.Problem(
        batch=w.groups,
        pixels=w.n * plane,
        channels=w.oc // w.groups,
        depth=depth(w),
        read=read,
        depth_inner=by_depth,
        vector=vector,
        loads=min(vector, icg) if apart else 1,
        operands="tf32" if tf32 else w.dtype,
    )


def exists(w: ConvWorkload, channel: tirx.PrimExpr) -> list[tirx.PrimExpr]:
    """Whether one of a group's `held_channels` is not zero, tested only where some are."""
    icg = w.ic // w.groups
    return [channel < icg] if held_channels(w) > icg else []


def inside(w: ConvWorkload, row: tirx.PrimExpr, col: tirx.PrimExpr) -> list[tirx.PrimExpr]:
    """Whether an input pixel exists, tested only on the sides that have padding."""
    sides = (
        (w.ph, row >= 0),
        (w.pw, col >= 0),
        (w.ph_r, row < w.ih),
        (w.pw_r, col < w.iw),
    )
    return [condition for needed, condition in sides if needed]
