"""Direct convolution, vectorised over output channels.

    conv[n, c, y, x] = sum_{i, ky, kx} data_pad[n, i, y*sh + ky*dh, x*sw + kx*dw]
                                       * weight[c, i, ky, kx]

Any kernel, stride, padding, dilation and group count. Output channels are padded per group to whole
vectors of `block` lanes; the padded lanes exist only inside a register tile and are never stored.
"""

from __future__ import annotations

from tvm import te, tirx

from convtvm.compute import stages
from convtvm.workload import ConvWorkload

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


def conv2d(w: ConvWorkload, layout: str, lanes: int, tile_ic: int = 1) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out) in `layout`; blocks data_pad (if padded), partial,
    conv, out.

    The sum over input channels runs in two levels, `tile_ic` channel blocks at a time: rounding
    errors grow with the length of each level only, and the weights of one level stay in cache.
    """
    shape = packed_weight_shape(w, lanes)
    ic_block, block = shape[4:]
    icg, chunks_per_group = w.ic // w.groups, shape[0] // w.groups
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder(shape, w.dtype, name="weight")
    read = stages.padded_reader(w, data, layout, *stages.read_rows_cols(w))

    outer = te.reduce_axis((0, icg // ic_block // tile_ic), "ico")
    io = te.reduce_axis((0, tile_ic), "ict")
    ky = te.reduce_axis((0, w.kh), "ky")
    kx = te.reduce_axis((0, w.kw), "kx")
    ii = te.reduce_axis((0, ic_block), "ici")

    def product(k, n, c, y, x):
        group = c // (block * chunks_per_group)
        chunk = k * tile_ic + io
        value = read(
            n, group * icg + chunk * ic_block + ii, y * w.sh + ky * w.dh, x * w.sw + kx * w.dw
        )
        return te.sum(
            value * weight[c // block, chunk, ky, kx, ii, c % block], axis=[io, ky, kx, ii]
        )

    extent = (w.n, shape[0] * block, w.oh, w.ow)
    partial = te.compute((icg // ic_block // tile_ic, *extent), product, name="partial")
    conv = te.compute(
        extent, lambda n, c, y, x: te.sum(partial[outer, n, c, y, x], axis=outer), name="conv"
    )
    out = stages.output(w, layout, lambda n, c, y, x: conv[n, c, y, x], bias)
    return stages.prim_func([data, weight, bias, out], layout)
