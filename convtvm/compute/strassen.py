"""Strassen's product of the weight and the columns: seven products of half the size, not eight.

The weight and im2col's columns of an image are cut in four, the weight by halves of its output and
input channels, the columns by halves of the input channels and of the pixels (Strassen 1969, in the
form of Winograd 1971, which adds least):

    U[e] = sum_q WEIGHT[e][q] * weight[q]       when the weight is packed, in float64
    V[e] = sum_q DATA[e][q] * columns[q]
    M[e] = U[e] V[e]                            seven products
    conv[q] = sum_e OUTPUT[q][e] * M[e]

With two levels each of the seven products is computed in the same way, 49 of a quarter of the size.
Any kernel, stride, padding and dilation, one group. Parts are rounded up, the channels to whole
vectors, the pixels to whole panels; what is too much reads zeros and is cropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tvm import te, tirx

from convtvm.compute import stages
from convtvm.compute.im2col import has_columns
from convtvm.compute.winograd import linear, select
from convtvm.problem.workload import ConvWorkload, channel_block

PRODUCTS = 7  # of quarters, by each level
# Of smaller parts the sums before and after the products take longer than the products saved.
LEAST_TERMS, LEAST_CHANNELS, LEAST_PIXELS = 64, 64, 24
_IC_BLOCK = 16  # longest run of input channels kept contiguous in the packed weight

Row = tuple[Fraction, ...]


def _rows(*rows: tuple[int, ...]) -> tuple[Row, ...]:
    return tuple(tuple(map(Fraction, row)) for row in rows)


# Quarters as (half of the rows, half of the columns), in an order in which what several sums share
# is the beginning of each, so that the compiler computes it once.
WEIGHT_QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))
WEIGHT = _rows(
    (1, 0, 0, 0),
    (-1, 0, 1, 1),
    (1, 0, -1, 0),
    (0, 0, 1, 1),
    (0, 0, 0, 1),
    (0, 1, 0, 0),
    (1, 1, -1, -1),
)
DATA_QUARTERS = ((1, 1), (0, 1), (0, 0), (1, 0))
DATA = _rows(
    (0, 0, 1, 0),
    (1, -1, 1, 0),
    (1, -1, 0, 0),
    (0, 1, -1, 0),
    (1, -1, 1, -1),
    (0, 0, 0, 1),
    (1, 0, 0, 0),
)
OUTPUT_QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))
OUTPUT = _rows(
    (1, 0, 0, 0, 0, 1, 0),
    (1, 1, 0, 1, 0, 0, 1),
    (1, 1, 1, 0, -1, 0, 0),
    (1, 1, 1, 1, 0, 0, 0),
)


def additions(levels: int) -> tuple[int, int]:
    """Additions and subtractions as they are written, of the data for each column and pixel of a
    part, and of the output for each channel and pixel of one."""
    data, out = (sum(sum(map(bool, row)) - 1 for row in rows) for rows in (DATA, OUTPUT))
    if levels == 1:
        return data, out
    return (4 + PRODUCTS) * data, (4 + PRODUCTS) * out


def largest_data_of(levels: int) -> float:
    """How large float32 inputs may be: above it the sums of the data can overflow."""
    most = max(sum(map(abs, row), Fraction(0)) for row in DATA)
    return float.fromhex("0x1.fffffep127") / float(most**levels)


def part_pixels(w: ConvWorkload, levels: int, panel: int = 1) -> int:
    """Pixels of a part of an image, 2**levels of which it has, rounded up to whole panels."""
    part = stages.ceil_div(w.oh * w.ow, 2**levels)
    return stages.ceil_div(part, panel) * panel


def packed_weight_shape(w: ConvWorkload, levels: int, lanes: int) -> tuple[int, ...]:
    """[PRODUCTS.., oc_chunk, ic_chunk, kh, kw, ic_block, oc_block], channels those of a part."""
    parts = 2**levels
    part_in = stages.ceil_div(w.ic, parts)
    block = stages.largest_divisor(part_in, _IC_BLOCK)
    chunks_out = stages.ceil_div(stages.ceil_div(w.oc, lanes), parts)
    products = (PRODUCTS,) * levels
    return (*products, chunks_out, part_in // block, w.kh, w.kw, block, lanes)


def _sum(
    rows: Sequence[Row], e: tirx.PrimExpr, value: Callable[[int], tirx.PrimExpr], dtype: str
) -> tirx.PrimExpr:
    """Row `e` of a matrix times the values of the quarters."""
    return select(e, [linear(row, value, dtype) for row in rows])


def _nested(
    rows: Sequence[Row],
    products: Sequence[tirx.PrimExpr],
    value: Callable[[tuple[int, ...]], tirx.PrimExpr],
    dtype: str,
) -> tirx.PrimExpr:
    """The row of each level's product times the values of the quarters of quarters."""
    if not products:
        return value(())
    first, *rest = products

    def quarter(q: int) -> tirx.PrimExpr:
        return _nested(rows, rest, lambda inner: value((q, *inner)), dtype)

    return _sum(rows, first, quarter, dtype)


def pack_weight(w: ConvWorkload, levels: int, lanes: int) -> tirx.PrimFunc:
    """weight [oc, ic, kh, kw] -> U in `packed_weight_shape`."""
    shape = packed_weight_shape(w, levels, lanes)
    part_out, part_in, block = shape[levels] * lanes, shape[levels + 1] * shape[-2], shape[-2]
    weight = te.placeholder(w.weight_shape, w.dtype, name="weight")

    def element(*indices):
        products, (co, io, ky, kx, ii, cb) = indices[:levels], indices[levels:]

        def part(quarters):
            high = deep = 0
            for row, column in (WEIGHT_QUARTERS[q] for q in quarters):
                high, deep = 2 * high + row, 2 * deep + column
            c, i = high * part_out + co * lanes + cb, deep * part_in + io * block + ii
            value = weight[c, i, ky, kx].astype("float64")
            return te.if_then_else(tirx.all(c < w.oc, i < w.ic), value, tirx.const(0, "float64"))

        return _nested(WEIGHT, products, part, "float64").astype(w.dtype)

    return te.create_prim_func([weight, te.compute(shape, element, name="pack")])


def conv2d(w: ConvWorkload, layout: str, lanes: int, levels: int, panel: int = 1) -> tirx.PrimFunc:
    """(data, U, bias [oc], out) in `layout`.

    Blocks data_sums [e.., n, i, ky, kx, p], products [e.., n, oc_chunk, p, oc_block], sums and out
    [n, high.., late.., oc_chunk, p, oc_block]; with two levels, before the first of them outer_data
    [e, row, column, n, i, ky, kx, p], and before sums inner_sums [e, row, column, n, oc_chunk, p,
    oc_block]. The attribute `pixels` counts those of an image, `runs` says that neighbouring ones
    are neighbours in the data.
    """
    data, bias = stages.placeholders(w, layout)
    shape = packed_weight_shape(w, levels, lanes)
    chunks_out, part = shape[levels], part_pixels(w, levels, panel)
    place = _Place(w, layout, chunks_out * lanes, part, lanes, levels)
    weight = te.placeholder(shape, w.dtype, name="weight")
    v = _data_sums(place, data, part_in=shape[levels + 1] * shape[-2])
    axes = [
        te.reduce_axis((0, extent), name)
        for extent, name in zip(shape[-5:-1], ("io", "ky", "kx", "ii"), strict=True)
    ]

    def product(*indices):
        products, (n, co, p, cb) = indices[:levels], indices[levels:]
        io, ky, kx, ii = axes
        left = v[(*products, n, io * shape[-2] + ii, ky, kx, p)]
        return te.sum(left * weight[(*products, co, io, ky, kx, ii, cb)], axis=axes)

    m = te.compute((*shape[:levels], w.n, chunks_out, part, lanes), product, name="products")
    sums = _output_sums(m, levels)

    def output(n, *at):
        c, block = place.channel(at), channel_block(layout)
        if block and w.oc % block:
            # Weights are zero where channels only fill the block, and so is the sum.
            zero = tirx.const(0, w.dtype)
            return sums[(n, *at)] + te.if_then_else(c < w.oc, bias[c], zero)
        return sums[(n, *at)] + bias[c]

    out = te.compute(sums.shape, output, name="out")
    func = place.stored(stages.plain_prim_func([data, weight, bias, out]))
    order = "NCHW" if layout == "NCHW" else "NHWC"
    runs = int(layout == "NCHW" and not has_columns(w))
    return func.with_attrs({"layout": order, "pixels": w.oh * w.ow, "runs": runs})


def _data_sums(place: _Place, data: te.Tensor, part_in: int) -> te.Tensor:
    """V, the sums of parts of the columns, which have `part_in` channels."""
    w, levels = place.w, place.levels
    zero = tirx.const(0, w.dtype)

    def column(deep, late, n, i, ky, kx, p):
        """Of a part of the columns, zero where there is no channel."""
        c, pixel = i + deep * part_in, place.pixel(late, p)
        y, x = pixel // w.ow * w.sh + ky * w.dh, pixel % w.ow * w.sw + kx * w.dw
        value = stages.padded_pixel(w, data, place.layout, n, c, y, x)
        return te.if_then_else(c < w.ic, value, zero) if 2**levels * part_in > w.ic else value

    def from_data(e, *indices):
        inner, at = indices[: 2 * levels - 2], indices[2 * levels - 2 :]

        def quarter(q):
            deep, late = DATA_QUARTERS[q]
            if levels == 1:
                return column(deep, (late,), *at)
            row, col = inner
            return column(2 * deep + row, (late, col), *at)

        return _sum(DATA, e, quarter, w.dtype)

    shape = (w.n, part_in, w.kh, w.kw, place.part)
    if levels == 1:
        return te.compute((PRODUCTS, *shape), from_data, name="data_sums")
    outer = te.compute((PRODUCTS, 2, 2, *shape), from_data, name="outer_data")

    def from_outer(e, f, *at):
        return _sum(DATA, f, lambda q: outer[(e, *DATA_QUARTERS[q], *at)], w.dtype)

    return te.compute((PRODUCTS, PRODUCTS, *shape), from_outer, name="data_sums")


def _output_sums(m: te.Tensor, levels: int) -> te.Tensor:
    """The parts of the output, sums of the products."""
    n, *shape = (int(extent) for extent in m.shape[levels:])

    def quarter(row, col, value):
        quarters = [linear(r, value, str(m.dtype)) for r in OUTPUT]
        return select(row, [select(col, quarters[i : i + 2]) for i in (0, 2)])

    source = m
    if levels == 2:
        source = te.compute(
            (PRODUCTS, 2, 2, n, *shape),
            lambda e, row, col, *at: quarter(row, col, lambda f: m[(e, f, *at)]),
            name="inner_sums",
        )

    def output_sum(n, *indices):
        high, late, at = (
            indices[:levels],
            indices[levels : 2 * levels],
            indices[2 * levels :],
        )
        return quarter(high[0], late[0], lambda e: source[(e, *high[1:], *late[1:], n, *at)])

    return te.compute((n, *(2,) * (2 * levels), *shape), output_sum, name="sums")


@dataclass(frozen=True)
class _Place:
    """Where an element of a part belongs, parts of `part` pixels and `part_out` output channels.

    The two halves of an image overlap by as much as its parts are rounded up, so that every pixel
    of theirs exists; those that both have are of the second.
    """

    w: ConvWorkload
    layout: str
    part_out: int
    part: int
    lanes: int
    levels: int

    @property
    def half(self) -> int:
        """Pixels of half an image."""
        return 2 ** (self.levels - 1) * self.part

    @property
    def second(self) -> int:
        """The first pixel of the second half."""
        return self.w.oh * self.w.ow - self.half

    def pixel(self, late: Sequence[tirx.PrimExpr], p: tirx.PrimExpr) -> tirx.PrimExpr:
        """That of pixel `p` of a part, the half of the image first, then that of the half."""
        return late[0] * self.second + self._within(late, p)

    def _within(self, late: Sequence[tirx.PrimExpr], p: tirx.PrimExpr) -> tirx.PrimExpr:
        """Which pixel of its half it is."""
        return late[1] * self.part + p if len(late) > 1 else p

    def channel(self, at: Sequence[tirx.PrimExpr]) -> tirx.PrimExpr:
        """Of the element at [high.., late.., oc_chunk, p, lane]."""
        *halves, chunk, _, lane = at
        high: tirx.PrimExpr = tirx.const(0, "int32")
        for row in halves[: self.levels]:
            high = high * 2 + row
        return high * self.part_out + chunk * self.lanes + lane

    def stored(self, func: tirx.PrimFunc) -> tirx.PrimFunc:
        """`func` (data, U, bias, out), not yet scheduled, with the output in its layout: the block
        `out` stores elements where they belong, as far as they exist."""
        w, block = self.w, channel_block(self.layout)
        channels = stages.ceil_div(w.oc, block) * block if block else w.oc

        def place(indices: list[tirx.PrimExpr]) -> tuple[tuple, list[tirx.PrimExpr]]:
            n, *at = indices
            late, p = at[self.levels : 2 * self.levels], at[-2]
            c, pixel = self.channel(at), self.pixel(late, p)
            own = self._within(late, p) < self.second + late[0] * self.half
            order = stages.LAYOUTS[self.layout]
            return order(n, c, pixel // w.ow, pixel % w.ow), [c < channels, own]

        out = tirx.decl_buffer(w.out_shape(self.layout), w.dtype, "out")
        return stages.with_output(func, out, place)
