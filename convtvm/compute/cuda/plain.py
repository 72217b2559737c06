"""Convolution with as little structure as a GPU needs: a sum for every output, weights by tap.

conv[n, c, y, x] = sum_{ky, kx, i} data_pad[n, i, y*sh + ky*dh, x*sw + kx*dw]
                                   * weight[ky, kx, i, c]
"""

from __future__ import annotations

from tvm import te, tirx

from convtvm.compute import stages
from convtvm.workload import ConvWorkload


def packed_weight_shape(w: ConvWorkload) -> tuple[int, ...]:
    """[kh, kw, ic/groups, oc]: neighbouring channels lie together."""
    return (w.kh, w.kw, w.ic // w.groups, w.oc)


def pack_weight(w: ConvWorkload) -> tirx.PrimFunc:
    """weight [oc, ic/groups, kh, kw] -> `packed_weight_shape`."""
    weight = te.placeholder(w.weight_shape, w.dtype, name="weight")
    packed = te.compute(
        packed_weight_shape(w), lambda ky, kx, i, c: weight[c, i, ky, kx], name="pack"
    )
    return te.create_prim_func([weight, packed])


def conv2d(w: ConvWorkload, layout: str, lanes: int) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out) in `layout`; blocks data_pad (if padded), conv, out."""
    icg, ocg = w.ic // w.groups, w.oc // w.groups
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder(packed_weight_shape(w), w.dtype, name="weight")
    read = stages.padded_reader(w, data, layout, *stages.read_rows_cols(w))
    ky = te.reduce_axis((0, w.kh), "ky")
    kx = te.reduce_axis((0, w.kw), "kx")
    i = te.reduce_axis((0, icg), "ic")

    def product(n, y, x, c):
        value = read(n, c // ocg * icg + i, y * w.sh + ky * w.dh, x * w.sw + kx * w.dw)
        return te.sum(value * weight[ky, kx, i, c], axis=[ky, kx, i])

    conv = te.compute((w.n, w.oh, w.ow, w.oc), product, name="conv")
    out = stages.output(w, layout, lambda n, c, y, x: conv[n, y, x, c], bias)
    return stages.prim_func([data, weight, bias, out], layout)
