"""Depthwise convolution: every output channel reads one input channel, a strip of pixels at a time.

    conv[n, c, y, x] = sum_{ky, kx} patch[n, c, y*sh + ky*dh, x*sw + kx*dw] * weight[ky, kx, c]

`patch` is the zero-padded input as an output channel sees it; a template keeps the part that a
strip needs in registers. The sums are rounded up to whole strips of tile_h by tile_w pixels.
"""

from __future__ import annotations

from tvm import te, tirx

from convtvm.compute import stages
from convtvm.compute.cuda.direct import inside
from convtvm.problem.workload import ConvWorkload


def pack_weight(w: ConvWorkload) -> tirx.PrimFunc:
    """weight [oc, 1, kh, kw] -> [kh, kw, oc]."""
    weight = te.placeholder(w.weight_shape, w.dtype, name="weight")
    packed = te.compute((w.kh, w.kw, w.oc), lambda ky, kx, c: weight[c, 0, ky, kx], name="pack")
    return te.create_prim_func([weight, packed])


def conv2d(
    w: ConvWorkload, layout: str, lanes: int, tile_h: int = 1, tile_w: int = 1
) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out) in `layout`; blocks patch, conv, out."""
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder((w.kh, w.kw, w.oc), w.dtype, name="weight")
    order, multiplier = stages.LAYOUTS[layout], w.oc // w.ic
    oh, ow = (stages.ceil_div(w.oh, tile_h) * tile_h, stages.ceil_div(w.ow, tile_w) * tile_w)

    def pixel(n, c, y, x):
        row, col = y - w.ph, x - w.pw
        # Strips that hang over the edge may read rows that no padding makes.
        overhang = ((oh > w.oh and not w.ph_r, row < w.ih), (ow > w.ow and not w.pw_r, col < w.iw))
        conditions = inside(w, row, col) + [condition for needed, condition in overhang if needed]
        value = data[order(n, c // multiplier, row, col)]
        zero = tirx.const(0, w.dtype)
        return te.if_then_else(tirx.all(*conditions), value, zero) if conditions else value

    rows = (oh - 1) * w.sh + (w.kh - 1) * w.dh + 1
    cols = (ow - 1) * w.sw + (w.kw - 1) * w.dw + 1
    ky, kx = te.reduce_axis((0, w.kh), "ky"), te.reduce_axis((0, w.kw), "kx")

    def sums(patch, n, c, y, x):
        value = patch[order(n, c, y * w.sh + ky * w.dh, x * w.sw + kx * w.dw)]
        return te.sum(value * weight[ky, kx, c], axis=[ky, kx])

    if layout == "NCHW":
        patch = te.compute((w.n, w.oc, rows, cols), pixel, name="patch")
        conv = te.compute((w.n, w.oc, oh, ow), lambda *i: sums(patch, *i), name="conv")
    else:
        patch = te.compute(
            (w.n, rows, cols, w.oc), lambda n, y, x, c: pixel(n, c, y, x), name="patch"
        )
        conv = te.compute(
            (w.n, oh, ow, w.oc), lambda n, y, x, c: sums(patch, n, c, y, x), name="conv"
        )
    out = stages.output(w, layout, lambda n, c, y, x: conv[order(n, c, y, x)], bias)
    func = stages.prim_func([data, weight, bias, out], layout)
    numbers = {
        "multiplier": multiplier,
        "stride_h": w.sh,
        "stride_w": w.sw,
        "span_h": (w.kh - 1) * w.dh + 1,
        "span_w": (w.kw - 1) * w.dw + 1,
    }
    return func.with_attrs(numbers)
