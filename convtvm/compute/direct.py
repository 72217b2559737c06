"""Direct convolution, vectorised over output channels.

    conv[n, c, y, x] = sum_{i, ky, kx} data_pad[n, i, y*sh + ky*dh, x*sw + kx*dw]
                                       * weight[c, i, ky, kx]

Any kernel, stride, padding, dilation and group count. Output channels are padded per group to whole
vectors of `block` lanes; the padded lanes exist only inside a register tile and are never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import te, tirx

from convtvm.compute import stages
from convtvm.problem.workload import ConvWorkload

_IC_BLOCK = 16  # longest run of input channels kept contiguous in the packed weight


def oc_block(w: ConvWorkload, lanes: int) -> int:
    """Lanes of one output-channel vector: groups must not share a vector, so it divides
    oc/groups."""
    if w.groups == 1:
        return lanes
    return stages.largest_divisor(w.oc // w.groups, lanes)


def packed_weight_shape(w: ConvWorkload, lanes: int) -> tuple[int, ...]:
    """[oc_chunk, ic_chunk, kh, kw, ic_block, oc_block]; oc_chunk counts the chunks of all
    groups."""
    block = oc_block(w, lanes)
    icg = w.ic // w.groups
    ic_block = stages.largest_divisor(icg, _IC_BLOCK)
    chunks = w.groups * stages.ceil_div(w.oc // w.groups, block)
    return (chunks, icg // ic_block, w.kh, w.kw, ic_block, block)


def pack_weight(w: ConvWorkload, lanes: int) -> tirx.PrimFunc:
    """weight [oc, ic/groups, kh, kw] -> `packed_weight_shape`, zero in the padded channels."""
    shape = packed_weight_shape(w, lanes)
    ic_block, block = shape[4:]
    weight = te.placeholder(w.weight_shape, w.dtype, name="weight")

    def element(co, io, ky, kx, ii, cb):
        c = co * block + cb
        zero = tirx.const(0, w.dtype)
        return te.if_then_else(c < w.oc, weight[c, io * ic_block + ii, ky, kx], zero)

    packed = te.compute(shape, element, name="pack")
    return te.create_prim_func([weight, packed])


def conv2d(
    w: ConvWorkload,
    layout: str,
    lanes: int,
    tile_ic: int = 1,
    flat: int = 0,
    inplace: bool = False,
) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out) in `layout`; blocks data_pad (if padded), partial,
    conv, out.

    With `flat` the pixels of an image are numbered through, conv [n, oc, 1, oh*ow], so that a
    register tile need not end with a row. With `inplace`, an attribute too, there is no data_pad:
    what lies outside the data is zero wherever it is read.
    """
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder(packed_weight_shape(w, lanes), w.dtype, name="weight")
    padded: Callable[..., tirx.PrimExpr]
    if inplace:
        padded = partial(stages.padded_pixel, w, data, layout)
    else:
        padded = stages.padded_reader(w, data, layout, *stages.read_rows_cols(w))

    def read(n, c, y, x, ky, kx):
        row, col = (x // w.ow, x % w.ow) if flat else (y, x)
        return padded(n, c, row * w.sh + ky * w.dh, col * w.sw + kx * w.dw)

    extent = (w.n, 1, w.oh * w.ow) if flat else (w.n, w.oh, w.ow)
    conv = stages.window_products(w, weight, extent, read, tile_ic)

    def value(n, c, y, x):
        return conv[n, c, 0, y * w.ow + x] if flat else conv[n, c, y, x]

    func = stages.prim_func([data, weight, bias, stages.output(w, layout, value, bias)], layout)
    return func.with_attr("inplace", True) if inplace else func
