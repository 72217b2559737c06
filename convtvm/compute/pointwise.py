"""1x1 convolution as one matrix product, vectorised over pixels.

    conv[n, c, p] = sum_i data[n, i, p] * weight[c, i]

The pixels of an image are numbered through. In NCHW they are neighbours in memory, in the data as
in the output, and so are the lanes of a vector; the weight is broadcast.
"""

from __future__ import annotations

from tvm import te, tirx

from convtvm.compute import stages
from convtvm.problem.workload import ConvWorkload

BLOCK = 24  # output channels that lie together in the packed weight; a tile has a divisor of it


def packed_weight_shape(w: ConvWorkload) -> tuple[int, int, int]:
    """[oc_chunk, ic, BLOCK]."""
    return (stages.ceil_div(w.oc, BLOCK), w.ic, BLOCK)


def pack_weight(w: ConvWorkload) -> tirx.PrimFunc:
    """weight [oc, ic, 1, 1] -> `packed_weight_shape`, zero in the padded channels."""
    weight = te.placeholder(w.weight_shape, w.dtype, name="weight")

    def element(co, i, cb):
        c = co * BLOCK + cb
        return te.if_then_else(c < w.oc, weight[c, i, 0, 0], tirx.const(0, w.dtype))

    packed = te.compute(packed_weight_shape(w), element, name="pack")
    return te.create_prim_func([weight, packed])


def copied_bytes(w: ConvWorkload, lanes: int, tile_p: int) -> int:
    """Bytes of the copy of the data by tiles of `tile_p` vectors."""
    tile = tile_p * lanes
    return 4 * w.n * stages.ceil_div(w.oh * w.ow, tile) * w.ic * tile


def conv2d(
    w: ConvWorkload, layout: str, lanes: int, tile_c: int = 1, tile_p: int = 1, pack: int = 1
) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out) in `layout`; blocks data_pack (if `pack`), conv, out.

    A register tile has `tile_c` channels and `tile_p` vectors of pixels; conv [n, channels, pixels]
    has whole tiles. With `pack` the data is copied in the order in which the tiles read it,
    [n, tile, ic, pixel], zero after the last pixel; without, images must end with a tile.
    """
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder(packed_weight_shape(w), w.dtype, name="weight")
    pixels, tile = w.oh * w.ow, tile_p * lanes
    tiles = stages.ceil_div(pixels, tile)
    order = stages.LAYOUTS[layout]

    def read(n, i, p):
        return data[order(n, i, p // w.iw, p % w.iw)]

    if pack:

        def element(n, q, i, lane):
            p = q * tile + lane
            if pixels % tile == 0:
                return read(n, i, p)
            return te.if_then_else(p < pixels, read(n, i, p), tirx.const(0, w.dtype))

        packed = te.compute((w.n, tiles, w.ic, tile), element, name="data_pack")

    i = te.reduce_axis((0, w.ic), "i")

    def product(n, c, p):
        value = packed[n, p // tile, i, p % tile] if pack else read(n, i, p)
        return te.sum(value * weight[c // BLOCK, i, c % BLOCK], axis=i)

    shape = (w.n, stages.ceil_div(w.oc, tile_c) * tile_c, tiles * tile)
    conv = te.compute(shape, product, name="conv")

    def value(n, c, y, x):
        return conv[n, c, y * w.ow + x]

    return stages.prim_func([data, weight, bias, stages.output(w, layout, value, bias)], layout)
