"""Stages that every convolution compute shares: placeholders, zero padding, output.

Shapes are written in the interface layout of the library; `LAYOUTS` maps a layout to the positions
of its n, c, h and w axes. A function whose interface is blocked, as NCHW8c, is an NHWC one for its
template: the block `out` counts n, y, x, c, and only its indices into memory are others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import tvm_ffi
from tvm import te, tirx
from tvm.ir import Range
from tvm.s_tir import Schedule
from tvm.s_tir.stmt import SBlock

from convtvm.problem.workload import BLOCKED_LAYOUTS, ENTRY_LAYOUTS, ConvWorkload, channel_block


def _blocked(block: int) -> Callable[..., tuple]:
    return lambda n, c, h, w: (n, c // block, h, w, c % block)


# Layout -> function that orders (n, c, h, w) as the layout does; for one of an entry, as its data
# does.
LAYOUTS: dict[str, Callable[..., tuple]] = {
    "NCHW": lambda n, c, h, w: (n, c, h, w),
    "NHWC": lambda n, c, h, w: (n, h, w, c),
    **{name: _blocked(channel_block(name)) for name in BLOCKED_LAYOUTS},
    **{name: lambda n, c, h, w: (n, c, h, w) for name in ENTRY_LAYOUTS},
}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def largest_divisor(value: int, limit: int) -> int:
    """The largest divisor of `value` that is at most `limit`."""
    return next(d for d in range(min(value, limit), 0, -1) if value % d == 0)


def placeholders(w: ConvWorkload, layout: str) -> tuple[te.Tensor, te.Tensor]:
    """`data` in `layout` and `bias` of shape [oc]."""
    data = te.placeholder(w.data_shape(layout), w.dtype, name="data")
    bias = te.placeholder((w.oc,), w.dtype, name="bias")
    return data, bias


def read_rows_cols(w: ConvWorkload) -> tuple[int, int]:
    """Rows and columns of the padded input that the kernel windows touch."""
    rows = (w.oh - 1) * w.sh + (w.kh - 1) * w.dh + 1
    cols = (w.ow - 1) * w.sw + (w.kw - 1) * w.dw + 1
    return rows, cols


def is_padded(w: ConvWorkload) -> bool:
    """Whether kernel windows touch anything outside the input."""
    rows, cols = read_rows_cols(w)
    return w.ph > 0 or w.pw > 0 or rows > w.ih or cols > w.iw


def padded_reader(
    w: ConvWorkload, data: te.Tensor, layout: str, rows: int, cols: int
) -> Callable[..., tirx.PrimExpr]:
    """`read(n, c, y, x)` of the zero-padded input, [n, ic, rows, cols] seen through `layout`.

    Without padding the reader indexes `data` itself, so no copy stage exists; else the copy is the
    block `data_pad`.
    """
    order = LAYOUTS[layout]
    if not is_padded(w):
        return lambda n, c, y, x: data[order(n, c, y, x)]

    def element(n, c, y, x):
        inside = tirx.all(y >= w.ph, y < w.ih + w.ph, x >= w.pw, x < w.iw + w.pw)
        return te.if_then_else(
            inside, data[order(n, c, y - w.ph, x - w.pw)], tirx.const(0, w.dtype)
        )

    if layout == "NCHW":
        pad = te.compute((w.n, w.ic, rows, cols), element, name="data_pad")
    else:
        pad = te.compute(
            (w.n, rows, cols, w.ic), lambda n, y, x, c: element(n, c, y, x), name="data_pad"
        )
    inner = LAYOUTS["NCHW" if layout == "NCHW" else "NHWC"]
    return lambda n, c, y, x: pad[inner(n, c, y, x)]


def padded_pixel(w: ConvWorkload, data: te.Tensor, layout: str, n, c, y, x) -> tirx.PrimExpr:
    """Row y, column x of the zero-padded input, tested only on the sides that have padding."""
    inside = [
        condition
        for needed, condition in (
            (w.ph, y >= w.ph),
            (w.pw, x >= w.pw),
            (w.ph_r, y < w.ih + w.ph),
            (w.pw_r, x < w.iw + w.pw),
        )
        if needed
    ]
    value = data[LAYOUTS[layout](n, c, y - w.ph, x - w.pw)]
    return te.if_then_else(tirx.all(*inside), value, tirx.const(0, w.dtype)) if inside else value


def window_products(
    w: ConvWorkload,
    weight: te.Tensor,
    extent: tuple[int, int, int],
    read: Callable[..., tirx.PrimExpr],
    tile_ic: int,
) -> te.Tensor:
    """`conv` [images, channels, rows, columns] of `read(n, i, y, x, ky, kx)` by the packed weight.

    Blocks partial, conv: the sum has the two levels of `direct`, `tile_ic` channel blocks at a
    time. `extent` counts images, rows and columns; the channels are whole vectors.
    """
    chunks_out, chunks_in, kh, kw, ic_block, block = (int(e) for e in weight.shape)
    chunks_per_group = chunks_out // w.groups
    images, rows, columns = extent
    outer = te.reduce_axis((0, chunks_in // tile_ic), "ico")
    io = te.reduce_axis((0, tile_ic), "ict")
    ky, kx = te.reduce_axis((0, kh), "ky"), te.reduce_axis((0, kw), "kx")
    ii = te.reduce_axis((0, ic_block), "ici")

    def product(k, n, c, y, x):
        chunk = k * tile_ic + io
        group = c // (block * chunks_per_group)
        channel = (group * chunks_in + chunk) * ic_block + ii
        value = read(n, channel, y, x, ky, kx)
        return te.sum(
            value * weight[c // block, chunk, ky, kx, ii, c % block], axis=[io, ky, kx, ii]
        )

    shape = (images, chunks_out * block, rows, columns)
    partial = te.compute((chunks_in // tile_ic, *shape), product, name="partial")
    return te.compute(
        shape, lambda n, c, y, x: te.sum(partial[outer, n, c, y, x], axis=outer), name="conv"
    )


def output(
    w: ConvWorkload, layout: str, value: Callable[..., tirx.PrimExpr], bias: te.Tensor
) -> te.Tensor:
    """The block `out`: `value(n, c, y, x)` plus the bias, in `layout`."""
    if layout == "NCHW":
        return te.compute(
            (w.n, w.oc, w.oh, w.ow), lambda n, c, y, x: value(n, c, y, x) + bias[c], name="out"
        )
    if layout == "NHWC":
        return te.compute(
            (w.n, w.oh, w.ow, w.oc), lambda n, y, x, c: value(n, c, y, x) + bias[c], name="out"
        )
    block = channel_block(layout)

    def element(n, chunk, y, x, lane):
        c = chunk * block + lane
        if w.oc % block == 0:
            return value(n, c, y, x) + bias[c]
        # Weights are zero where channels only fill the block, and so is the sum.
        return value(n, c, y, x) + te.if_then_else(c < w.oc, bias[c], tirx.const(0, w.dtype))

    return te.compute(w.out_shape(layout), element, name="out")


# Elements of a tensor up to which indices have 32 bits: LLVM makes better code of those.
MOST_ELEMENTS = 2**31 - 1


def _is_wide(tensors: Iterable[te.Tensor]) -> bool:
    """Whether one of the tensors, or what they are computed from, has more."""
    return any(
        math.prod(map(int, t.shape)) > MOST_ELEMENTS or _is_wide(t.op.input_tensors)
        for t in tensors
    )


def plain_prim_func(args: list[te.Tensor]) -> tirx.PrimFunc:
    """The function over `args`, its indices as wide as these need them."""
    return te.create_prim_func(args, "int64" if _is_wide(args) else None)


def prim_func(args: list[te.Tensor], layout: str) -> tirx.PrimFunc:
    """The function over `args` (data, packed weight, bias, out), with its layout as an
    attribute."""
    func = plain_prim_func(args)
    block = channel_block(layout)
    if not block:
        return func.with_attr("layout", layout)
    sch = Schedule(func)
    sch.transform_block_layout(
        sch.get_sblock("out"), lambda n, co, y, x, cb: [n, y, x, co * block + cb]
    )
    return sch.mod["main"].with_attr("layout", "NHWC")


def with_output(
    func: tirx.PrimFunc,
    out: tirx.Buffer,
    place: Callable[[list[tirx.PrimExpr]], tuple[Iterable[tirx.PrimExpr], list[tirx.PrimExpr]]],
) -> tirx.PrimFunc:
    """`func` (data, packed weight, bias, out, ..), not yet scheduled, with `out` for its output.

    `place` takes the indices that the block `out` stores at and gives those in the new output, and
    the conditions under which the element exists there.
    """
    inner = func.params[3]

    def on_block(block: SBlock) -> SBlock:
        if str(block.name_hint) != "out":
            return block
        at, exists = place(list(block.body.indices))
        indices = list(at)
        store = tirx.BufferStore(out, block.body.value, indices)
        return SBlock(
            block.iter_vars,
            block.reads,
            [tirx.BufferRegion(out, [Range.from_min_extent(i, 1) for i in indices])],
            block.name_hint,
            tirx.IfThenElse(tirx.all(*exists), store, None) if exists else store,
            block.init,
            block.alloc_buffers,
            block.match_buffers,
            block.annotations,
        )

    body = tvm_ffi.structural_map(func.body, [(SBlock, on_block)], order="post")
    params = [out if p.same_as(inner) else p for p in func.params]
    return tirx.PrimFunc(params, body, func.ret_type, func.attrs)
