"""Winograd convolution F(m x m, r x r): Lavin & Gray, arXiv 1509.09308, blocked by panels of tiles.

    V[e, f, i, p] = (B^T d_p B)[e, f]                    input tiles, of alpha x alpha elements
    M[e, f, c, p] = sum_i U[e, f, c, i] * V[e, f, i, p]  alpha * alpha independent GEMMs
    Y[c, p]       = A^T M[:, :, c, p] A                  output tiles, m x m

U = G g G^T is computed when the weight is packed, in float64. Kernels need not be square: each axis
has its own matrices, and an axis of extent one the trivial F(1, 1), which makes 1 x r and r x 1 the
one-dimensional F(m, r). With a dilation, the images are its phases (`convtvm.compute.phases`). A
tile that covers an image, or phase, has its pixels alone and no padding.
Tiles that hang over the edge read zeros and their surplus outputs are cropped. A panel is `panel_h`
x `panel_w` neighbouring tiles; the number of tiles is rounded up to whole panels, so that every
panel does the same work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tvm import te, tirx

from convtvm.compute import stages
from convtvm.compute.phases import Phases
from convtvm.compute.winograd_matrices import (
    WinogradMatrices,
    cropped,
    even_odd_pairs,
    matrices,
    of_few_inputs,
)
from convtvm.problem.workload import ConvWorkload

MAX_TILE = 9  # pixels of the side of a tile, all of which is unrolled

Row = Sequence[Fraction]


@dataclass(frozen=True)
class Tiling:
    """F(m, r) on each axis of a workload: matrices for rows and columns of a tile."""

    rows: WinogradMatrices
    cols: WinogradMatrices

    @classmethod
    def of(cls, w: ConvWorkload, m: int) -> Tiling:
        phases = Phases.of(w)
        part, (rows, cols) = phases.part, phases.inside()
        return cls(
            _matrices_of_axis(m, w.kh, part.sh, part.oh, rows),
            _matrices_of_axis(m, w.kw, part.sw, part.ow, cols),
        )

    def grid(self, w: ConvWorkload, panel_h: int = 1, panel_w: int = 1) -> tuple[int, int]:
        """Tiles per image of the phases' convolution (rows, columns), each rounded up to whole
        panels."""
        part = Phases.of(w).part
        high, wide = stages.ceil_div(part.oh, self.rows.m), stages.ceil_div(part.ow, self.cols.m)
        return (
            stages.ceil_div(high, panel_h) * panel_h,
            stages.ceil_div(wide, panel_w) * panel_w,
        )

    def count(self, w: ConvWorkload) -> int:
        """Tiles of all images, panels of one tile."""
        return Phases.of(w).part.n * math.prod(self.grid(w))

    def padded(self, grid_h: int, grid_w: int) -> tuple[int, int]:
        """Rows and columns of the padded input that a grid of tiles reads."""
        axes = ((grid_h, self.rows), (grid_w, self.cols))
        high, wide = ((grid - 1) * axis.m * axis.stride + axis.side for grid, axis in axes)
        return high, wide

    def transform_additions(self) -> tuple[int, int]:
        """Additions and subtractions of the transforms of one tile of one channel: data, output."""
        rows, cols = self.rows, self.cols
        data = cols.side * _additions(rows.B_T) + rows.alpha * _additions(cols.B_T)
        return data, cols.alpha * _additions(rows.A_T) + rows.m * _additions(cols.A_T)


def _matrices_of_axis(m: int, r: int, stride: int, outputs: int, inside: range) -> WinogradMatrices:
    """F(m, r) along one axis, or F(1, 1). A single tile reads those inputs alone that lie `inside`
    the image."""
    if r == 1:
        return matrices(1, 1, stride)
    whole = matrices(m, r, stride)
    if outputs > m or not 0 < len(inside) < whole.side:
        return whole
    if stride == 1 and len(inside) < r:
        return of_few_inputs(m, r, inside.start, len(inside))
    return cropped(whole, inside.start, len(inside))


def _additions(matrix: Sequence[Row]) -> int:
    """Those of a product of `matrix` and a vector as `transform` writes it, each row by itself."""

    def of_row(row: Row) -> int:
        terms = [c for c in row if c]
        return len(terms) - (terms[0] > 0)

    pairs, rest = even_odd_pairs(matrix)
    halves = sum(of_row(even) + of_row(odd) + 1 for _, _, even, odd in pairs)
    return 2 * halves + sum(of_row(matrix[i]) for i in rest)


def linear(row: Row, value: Callable[[int], tirx.PrimExpr], dtype: str) -> tirx.PrimExpr:
    """sum_k row[k] * value(k) without the zero terms and without multiplications by one."""
    total: tirx.PrimExpr | None = None
    for k, coefficient in enumerate(row):
        if coefficient == 0:
            continue
        term = value(k)
        if abs(coefficient) != 1:
            term = term * tirx.const(float(abs(coefficient)), dtype)
        if total is None:
            total = term if coefficient > 0 else tirx.const(0, dtype) - term
        else:
            total = total + term if coefficient > 0 else total - term
    return tirx.const(0, dtype) if total is None else total


def select(index: tirx.PrimExpr, choices: Sequence[tirx.PrimExpr]) -> tirx.PrimExpr:
    """choices[index]; folds away once the loop over `index` is unrolled."""
    result = choices[-1]
    for k in range(len(choices) - 2, -1, -1):
        result = tirx.Select(index == k, choices[k], result)
    return result


def transform(
    rows: Sequence[Row], index: tirx.PrimExpr, value: Callable[[int], tirx.PrimExpr], dtype: str
) -> tirx.PrimExpr:
    """Element `index` of the matrix-vector product rows @ value.

    Rows that belong to points p and -p are e + o and e - o: written so, the compiler computes the
    even part e and the odd part o once for both.
    """
    results = [linear(row, value, dtype) for row in rows]
    for i, j, even, odd in even_odd_pairs(rows)[0]:
        e, o = linear(even, value, dtype), linear(odd, value, dtype)
        results[i], results[j] = e + o, e - o
    return select(index, results)


def input_block(w: ConvWorkload, lanes: int) -> int:
    """Channels of a vector of the input: a power of two, four for the three of an image."""
    return min(lanes, 1 << (w.ic - 1).bit_length())


def packed_weight_shape(w: ConvWorkload, m: int, lanes: int) -> tuple[int, ...]:
    """[alpha_h, alpha_w, oc_chunk, ic_chunk, ic_block, oc_block], channel counts rounded up."""
    tiling, block = Tiling.of(w, m), input_block(w, lanes)
    oc_chunks, ic_chunks = stages.ceil_div(w.oc, lanes), stages.ceil_div(w.ic, block)
    return (tiling.rows.alpha, tiling.cols.alpha, oc_chunks, ic_chunks, block, lanes)


def pack_weight(w: ConvWorkload, m: int, lanes: int) -> tirx.PrimFunc:
    """weight [oc, ic, kh, kw] -> U = G g G^T in `packed_weight_shape`, padded with zeros."""
    tiling = Tiling.of(w, m)
    shape = packed_weight_shape(w, m, lanes)
    weight = te.placeholder(w.weight_shape, w.dtype, name="weight")
    wide = "float64"

    def half(c, i, e, kx):
        return transform(tiling.rows.G, e, lambda ky: weight[c, i, ky, kx].astype(wide), wide)

    rows = te.compute((w.oc, w.ic, tiling.rows.alpha, w.kw), half, name="pack_rows")

    def element(e, f, co, io, ii, cb):
        c, i = co * lanes + cb, io * shape[-2] + ii
        value = transform(tiling.cols.G, f, lambda kx: rows[c, i, e, kx], wide).astype(w.dtype)
        return te.if_then_else(tirx.all(c < w.oc, i < w.ic), value, tirx.const(0, w.dtype))

    packed = te.compute(shape, element, name="pack")
    return te.create_prim_func([weight, packed])


def _packed_input(
    phases: Phases,
    tiling: Tiling,
    data: te.Tensor,
    layout: str,
    grid: tuple[int, int],
    block: int,
) -> te.Tensor:
    """`data_pad` [images of the part, ic_chunk, rows, cols, block]: zero-padded, as far as a `grid`
    of tiles reads it, channels blocked by vectors."""
    order, w = stages.LAYOUTS[layout], phases.w

    def element(n, io, i, j, ii):
        c = io * block + ii
        y, x = phases.source(n, i + tiling.rows.first, j + tiling.cols.first)
        inside = tirx.all(
            y >= w.ph,
            y < w.ih + w.ph,
            x >= w.pw,
            x < w.iw + w.pw,
            *([c < w.ic] if w.ic % block else []),
        )
        value = data[order(phases.image(n), c, y - w.ph, x - w.pw)]
        return te.if_then_else(inside, value, tirx.const(0, w.dtype))

    shape = (phases.part.n, stages.ceil_div(w.ic, block), *tiling.padded(*grid), block)
    return te.compute(shape, element, name="data_pad")


def conv2d(
    w: ConvWorkload, layout: str, lanes: int, m: int, panel_h: int = 1, panel_w: int = 1
) -> tirx.PrimFunc:
    """(data, U, bias [oc], out) in `layout`.

    Blocks data_pad, input_rows, data_transform, bgemm, inverse_rows, inverse, out, all over the
    images of the phases' convolution. The attribute `columns_apart` counts the columns between the
    neighbours of a phase.
    """
    tiling, phases = Tiling.of(w, m), Phases.of(w)
    part = phases.part
    m_h, m_w, dtype = tiling.rows.m, tiling.cols.m, w.dtype
    grid_h, grid_w = tiling.grid(w, panel_h, panel_w)
    step_h, step_w = m_h * part.sh, m_w * part.sw
    tiles = part.n * grid_h * grid_w
    data, bias = stages.placeholders(w, layout)
    shape = packed_weight_shape(w, m, lanes)
    alpha_h, alpha_w, oc_chunks, ic_chunks, block, _ = shape
    weight = te.placeholder(shape, dtype, name="weight")
    pad = _packed_input(phases, tiling, data, layout, (grid_h, grid_w), block)

    def input_rows(io, p, e, x, ii):
        image, ty, tx = p // (grid_h * grid_w), p // grid_w % grid_h, p % grid_w
        pixel = lambda y: pad[image, io, ty * step_h + y, tx * step_w + x, ii]  # noqa: E731
        return transform(tiling.rows.B_T, e, pixel, dtype)

    shape_of_rows = (ic_chunks, tiles, alpha_h, tiling.cols.side, block)
    rows = te.compute(shape_of_rows, input_rows, name="input_rows")

    def input_tile(e, f, io, p, ii):
        return transform(tiling.cols.B_T, f, lambda x: rows[io, p, e, x, ii], dtype)

    v = te.compute((alpha_h, alpha_w, ic_chunks, tiles, block), input_tile, name="data_transform")
    io = te.reduce_axis((0, ic_chunks), "io")
    ii = te.reduce_axis((0, block), "ii")

    def product(e, f, co, p, cb):
        return te.sum(v[e, f, io, p, ii] * weight[e, f, co, io, ii, cb], axis=[io, ii])

    gemm = te.compute((alpha_h, alpha_w, oc_chunks, tiles, lanes), product, name="bgemm")

    def output_rows(co, p, y, f, cb):
        return transform(tiling.rows.A_T, y, lambda e: gemm[e, f, co, p, cb], dtype)

    half = te.compute((oc_chunks, tiles, m_h, alpha_w, lanes), output_rows, name="inverse_rows")

    def inverse(n, c, y, x):
        p = (n * grid_h + y // m_h) * grid_w + x // m_w
        column = lambda f: half[c // lanes, p, y % m_h, f, c % lanes]  # noqa: E731
        return transform(tiling.cols.A_T, x % m_w, column, dtype)

    y = te.compute((part.n, oc_chunks * lanes, grid_h * m_h, grid_w * m_w), inverse, name="inverse")
    out = stages.output(part, layout, lambda n, c, h, x: y[n, c, h, x], bias)
    func = phases.interleave(stages.prim_func([data, weight, bias, out], layout), layout)
    return func.with_attrs({"tile_h": m_h, "tile_w": m_w, "columns_apart": phases.step_w})
