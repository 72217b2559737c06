"""Depthwise convolution: every output channel reads one input channel.

    conv[n, c, y, x] = sum_{ky, kx} data_pad[n, c // multiplier, y*sh + ky*dh, x*sw + kx*dw]
                                    * weight[c, ky, kx]

There is no reduction over channels to vectorise beside, so vectors run along whatever is
contiguous: pixels of a row in NCHW, channels in NHWC. That axis is padded to whole vectors inside
the kernel.
"""

from __future__ import annotations

from tvm import te, tirx

from convtvm.compute import stages
from convtvm.problem.workload import BLOCKED_LAYOUTS, ConvWorkload, channel_block


def packed_weight_shape(w: ConvWorkload, layout: str, lanes: int) -> tuple[int, ...]:
    """[oc, kh, kw] for NCHW; [kh, kw, oc rounded up to vectors] for NHWC."""
    if layout == "NCHW":
        return (w.oc, w.kh, w.kw)
    return (w.kh, w.kw, stages.ceil_div(w.oc, lanes) * lanes)


def row_block(w: ConvWorkload, lanes: int) -> int:
    """Pixels of a vector of a row in NCHW: a power of two that holds narrow rows, since wider
    vectors would load more zeros, and more often from two cache lines."""
    return min(lanes, max(4, 1 << (w.ow - 1).bit_length()))


def padded_shape(w: ConvWorkload, layout: str, lanes: int) -> tuple[int, ...]:
    """Shape of the padded copy: [n, ic, rows, sw, cols] for NCHW, which is always made, and
    [n, rows, cols, channels] otherwise; (0,) where the data itself is read."""
    rows, cols = stages.read_rows_cols(w)
    if layout == "NCHW":
        block = row_block(w, lanes)
        wide = stages.ceil_div(w.ow, block) * block
        return (w.n, w.ic, rows, w.sw, wide + (w.kw - 1) * w.dw // w.sw)
    channels = packed_weight_shape(w, layout, lanes)[2]
    deep = stages.ceil_div(channels, w.oc // w.ic)
    copied = layout != "NHWC" or deep > w.ic or w.ph or w.pw or rows > w.ih or cols > w.iw
    return (w.n, rows, cols, deep) if copied else (0,)


def least_copied(w: ConvWorkload, pixels: int) -> int:
    """Bytes of the padded input that a vector of `pixels` outputs of a row needs in NCHW."""
    return 4 * ((w.kh - 1) * w.dh + 1) * w.sw * (pixels + (w.kw - 1) * w.dw // w.sw)


def pack_weight(w: ConvWorkload, lanes: int, layout: str) -> tirx.PrimFunc:
    """weight [oc, 1, kh, kw] -> `packed_weight_shape`, zero in the padded channels."""
    weight = te.placeholder(w.weight_shape, w.dtype, name="weight")
    shape = packed_weight_shape(w, layout, lanes)
    if layout == "NCHW":
        packed = te.compute(shape, lambda c, ky, kx: weight[c, 0, ky, kx], name="pack")
    else:
        zero = tirx.const(0, w.dtype)
        packed = te.compute(
            shape,
            lambda ky, kx, c: te.if_then_else(c < w.oc, weight[c, 0, ky, kx], zero),
            name="pack",
        )
    return te.create_prim_func([weight, packed])


def conv2d(w: ConvWorkload, layout: str, lanes: int, inplace: bool = False) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out) in `layout`; blocks data_pad, conv, out.

    The attribute `block` counts the pixels (NCHW) or channels of a vector. With `inplace`, an
    attribute too, NCHW is for copying parts of a channel, where `row_step` counts the rows from one
    output to the next, and other layouts copy nothing.
    """
    data, bias = stages.placeholders(w, layout)
    shape = packed_weight_shape(w, layout, lanes)
    weight = te.placeholder(shape, w.dtype, name="weight")
    if are_blocks(w, layout) and not inplace:
        return _blocks(w, layout, data, weight, bias)
    if layout == "NCHW":
        conv, order = _rows(w, data, weight, lanes), stages.LAYOUTS["NCHW"]
    else:
        conv = _channels(w, layout, data, weight, lanes, inplace)
        order = stages.LAYOUTS["NHWC"]
    out = stages.output(w, layout, lambda n, c, y, x: conv[order(n, c, y, x)], bias)
    func = stages.prim_func([data, weight, bias, out], layout)
    whole = stages.largest_divisor(w.oc, lanes) if inplace else lanes
    func = func.with_attr("block", row_block(w, lanes) if layout == "NCHW" else whole)
    return func.with_attrs({"inplace": True, "row_step": w.sh}) if inplace else func


def _rows(w: ConvWorkload, data: te.Tensor, weight: te.Tensor, lanes: int) -> te.Tensor:
    """conv [n, oc, oh, ow rounded up], vectors of pixels.

    data_pad [n, ic, rows, sw, cols] holds each row as its `sw` phases, so that the pixels of a
    vector are neighbours for any stride.
    """

    def padded(n, c, y, phase, x):
        row, col = y - w.ph, x * w.sw + phase - w.pw
        inside = tirx.all(row >= 0, row < w.ih, col >= 0, col < w.iw)
        return te.if_then_else(inside, data[n, c, row, col], tirx.const(0, w.dtype))

    shape = padded_shape(w, "NCHW", lanes)
    pad = te.compute(shape, padded, name="data_pad")
    ky, kx = _kernel_axes(w)
    multiplier = w.oc // w.ic

    def element(n, c, y, x):
        offset = kx * w.dw
        pixel = pad[n, c // multiplier, y * w.sh + ky * w.dh, offset % w.sw, x + offset // w.sw]
        return te.sum(pixel * weight[c, ky, kx], axis=[ky, kx])

    block = row_block(w, lanes)
    wide = stages.ceil_div(w.ow, block) * block
    return te.compute((w.n, w.oc, w.oh, wide), element, name="conv")


def _channels(
    w: ConvWorkload, layout: str, data: te.Tensor, weight: te.Tensor, lanes: int, inplace: bool
) -> te.Tensor:
    """conv [n, oh, ow, oc rounded up], vectors of channels; in place there is nothing to fill the
    last vector with, and oc is not rounded up."""
    multiplier = w.oc // w.ic
    channels = w.oc if inplace else int(weight.shape[2])
    shape = padded_shape(w, layout, lanes)
    order = stages.LAYOUTS[layout]

    def padded(n, y, x, c):
        row, col = y - w.ph, x - w.pw
        inside = tirx.all(row >= 0, row < w.ih, col >= 0, col < w.iw, c < w.ic)
        return te.if_then_else(inside, data[order(n, c, row, col)], tirx.const(0, w.dtype))

    copied = len(shape) == 4 and not inplace
    source = te.compute(shape, padded, name="data_pad") if copied else data
    ky, kx = _kernel_axes(w)

    def read(n, y, x, c):
        return stages.padded_pixel(w, data, layout, n, c, y, x) if inplace else source[n, y, x, c]

    def element(n, y, x, c):
        pixel = read(n, y * w.sh + ky * w.dh, x * w.sw + kx * w.dw, c // multiplier)
        return te.sum(pixel * weight[ky, kx, c], axis=[ky, kx])

    return te.compute((w.n, w.oh, w.ow, channels), element, name="conv")


def are_blocks(w: ConvWorkload, layout: str) -> bool:
    """Whether each block of output channels reads one block of the data."""
    return layout in BLOCKED_LAYOUTS and w.ic == w.oc and w.oc % channel_block(layout) == 0


def copied_block_bytes(w: ConvWorkload, layout: str, rows: int) -> int:
    """Bytes of the padded copy that so many rows of a block of output channels need."""
    all_rows, cols = stages.read_rows_cols(w)
    if not (w.ph or w.pw or all_rows > w.ih or cols > w.iw):
        return 0
    read = (min(rows, w.oh) - 1) * w.sh + (w.kh - 1) * w.dh + 1
    return 4 * read * cols * channel_block(layout)


def _blocks(
    w: ConvWorkload, layout: str, data: te.Tensor, weight: te.Tensor, bias: te.Tensor
) -> tirx.PrimFunc:
    """conv [n, chunk, oh, ow, lane], vectors of a block; its template is one of its own."""
    block, (rows, cols) = channel_block(layout), stages.read_rows_cols(w)

    def padded(n, c, y, x, lane):
        row, col = y - w.ph, x - w.pw
        inside = tirx.all(row >= 0, row < w.ih, col >= 0, col < w.iw)
        return te.if_then_else(inside, data[n, c, row, col, lane], tirx.const(0, w.dtype))

    source, shape = data, (w.n, w.ic // block, rows, cols, block)
    if w.ph or w.pw or rows > w.ih or cols > w.iw:
        source = te.compute(shape, padded, name="data_pad")
    ky, kx = _kernel_axes(w)

    def element(n, c, y, x, lane):
        pixel = source[n, c, y * w.sh + ky * w.dh, x * w.sw + kx * w.dw, lane]
        return te.sum(pixel * weight[ky, kx, c * block + lane], axis=[ky, kx])

    conv = te.compute(w.out_shape(layout), element, name="conv")
    out = te.compute(
        w.out_shape(layout),
        lambda n, c, y, x, lane: conv[n, c, y, x, lane] + bias[c * block + lane],
        name="out",
    )
    return te.create_prim_func([data, weight, bias, out]).with_attr("layout", "blocks")


def _kernel_axes(w: ConvWorkload) -> tuple:
    return te.reduce_axis((0, w.kh), "ky"), te.reduce_axis((0, w.kw), "kx")
