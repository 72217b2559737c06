"""Cook-Toom matrices: the bilinear identity proved exactly, published values, shared rows."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import tvm_ffi
from support import compiled, pack_weight, run_task

from convtvm.compute.winograd import Tiling
from convtvm.compute.winograd_matrices import (
    MAX_ALPHA,
    POINTS,
    EvenOddPair,
    WinogradMatrices,
    cook_toom,
    cropped,
    even_odd_pairs,
    largest_data,
    matrices,
    multiplications_1d,
    multiplications_2d,
    of_few_inputs,
    transpose,
)
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.workload import LAYOUTS, ConvWorkload

TARGET = resolve("native", 1)
Matrix = Sequence[Sequence[Fraction]]

SIZES = [(m, r) for m in range(1, MAX_ALPHA + 1) for r in range(1, MAX_ALPHA + 2 - m)]
STRIDED = [(2, 3, 2), (3, 3, 2), (4, 3, 2), (2, 7, 2), (2, 5, 3), (3, 4, 3), (2, 2, 2), (1, 3, 2)]
HALF = Fraction(1, 2)


def product(a: Matrix, b: Matrix) -> list[list[Fraction]]:
    columns = list(zip(*b, strict=True))
    return [
        [sum((x * y for x, y in zip(row, column, strict=True)), Fraction(0)) for column in columns]
        for row in a
    ]


def assert_computes_correlation(mats: WinogradMatrices) -> None:
    """y is bilinear in d and g, so all pairs of basis vectors d = e_j, g = e_k prove it."""
    for i in range(mats.m):
        for j in range(mats.alpha):
            for k in range(mats.r):
                y = sum(mats.A_T[i][t] * mats.G[t][k] * mats.B_T[t][j] for t in range(mats.alpha))
                assert y == (j == mats.stride * i + k), (mats.m, mats.r, i, j, k)


def test_sizes_cover_what_the_design_promises():
    assert {(m, 3) for m in range(2, 7)} <= set(SIZES)
    assert {(2, 5), (3, 5), (4, 5), (2, 7)} <= set(SIZES)


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_exact_identity(m, r):
    assert_computes_correlation(matrices(m, r))


@pytest.mark.parametrize(("m", "r", "stride"), STRIDED)
def test_exact_identity_of_strides(m, r, stride):
    mats = matrices(m, r, stride)
    assert_computes_correlation(mats)
    assert mats.stride == stride
    assert mats.alpha == (m - 1) * stride + r == len(mats.B_T) == len(mats.G) == len(mats.B_T[0])
    saved = sum((m - 1) * (len(range(phase, r, stride)) - 1) for phase in range(stride))
    assert mats.alpha == m * r - saved


FEW = [(m, r, n) for m, r in SIZES for n in range(1, r)]


@pytest.mark.parametrize(("m", "r", "count"), FEW)
def test_exact_identity_of_few_inputs(m, r, count):
    """Wherever they lie in the tile, and in fewer multiplications than F(m, r) needs."""
    for first in range(m + r - count):
        mats = of_few_inputs(m, r, first, count)
        assert (mats.m, mats.r, mats.first, mats.side) == (m, r, first, count)
        assert mats.alpha == m + count - 1 == len(mats.B_T) == len(mats.G) < m + r - 1
        for i, j, k in itertools.product(range(m), range(count), range(r)):
            terms = zip(mats.A_T[i], mats.G, mats.B_T, strict=True)
            assert sum(a * g[k] * b[j] for a, g, b in terms) == (first + j == i + k)
        constants = [c for row in (*mats.A_T, *mats.B_T) for c in row]
        assert all(c.denominator & (c.denominator - 1) == 0 for c in constants), "not dyadic"


@pytest.mark.parametrize(("m", "r", "stride"), [(4, 3, 1), (3, 5, 1), *STRIDED])
def test_exact_identity_of_a_part_of_the_inputs(m, r, stride):
    whole = matrices(m, r, stride)
    for first, count in itertools.product(range(whole.side), range(1, whole.side + 1)):
        if first + count > whole.side:
            continue
        mats = cropped(whole, first, count)
        assert (mats.first, mats.side) == (first, count)
        assert mats.alpha == len(mats.B_T) == len(mats.G) <= whole.alpha
        assert all(any(row) for row in mats.B_T)
        for i, j, k in itertools.product(range(m), range(count), range(r)):
            terms = zip(mats.A_T[i], mats.G, mats.B_T, strict=True)
            assert sum(a * g[k] * b[j] for a, g, b in terms) == (first + j == stride * i + k)


def test_two_pixels_and_three_taps():
    """An image of two pixels with one of padding on each side: three products for four."""
    mats = of_few_inputs(2, 3, 1, 2)
    assert mats.B_T == ((0, 1), (1, 1), (1, 0))
    assert mats.G == ((0, -1, 1), (0, 1, 0), (1, -1, 0))
    assert mats.A_T == ((1, 1, 0), (0, 1, 1))


def test_f23_of_stride_2():
    """Even inputs and taps by F(2, 2), odd ones as they are."""
    mats = matrices(2, 3, 2)
    assert mats.B_T == (
        (1, 0, -1, 0, 0),
        (0, 0, 1, 0, 0),
        (0, 0, -1, 0, 1),
        (0, 1, 0, 0, 0),
        (0, 0, 0, 1, 0),
    )
    assert mats.G == ((1, 0, 0), (1, 0, 1), (0, 0, 1), (0, 1, 0), (0, 1, 0))
    assert mats.A_T == ((1, 1, 0, 1, 0), (0, 1, 1, 0, 1))


def test_an_axis_of_one_tap_may_have_any_stride():
    assert matrices(1, 1, 3).B_T == ((1,),)
    with pytest.raises(ValueError, match=r"F\(4, 2\) of stride 3: some inputs meet no tap"):
        matrices(4, 2, 3)


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_shapes_and_types(m, r):
    mats = matrices(m, r)
    assert (mats.m, mats.r, mats.alpha) == (m, r, m + r - 1)
    for matrix, shape in [
        (mats.A_T, (m, mats.alpha)),
        (mats.G, (mats.alpha, r)),
        (mats.B_T, (mats.alpha, mats.alpha)),
    ]:
        assert isinstance(matrix, tuple) and len(matrix) == shape[0]
        assert all(isinstance(row, tuple) and len(row) == shape[1] for row in matrix)
        assert all(type(x) is Fraction for row in matrix for x in row)


def test_cached_and_hashable():
    assert matrices(4, 3) is matrices(4, 3)
    assert hash(matrices(4, 3)) != hash(matrices(2, 3))


@pytest.mark.parametrize(("m", "r"), [(2, 3), (4, 3), (6, 3), (3, 2), (2, 5), (4, 5), (2, 7)])
def test_nested_2d_identity(m, r):
    """Y = A^T [(G g G^T) * (B^T d B)] A, on random fractions."""
    mats = matrices(m, r)
    rng = random.Random(7)

    def tile(size: int) -> list[list[Fraction]]:
        return [[Fraction(rng.randint(-9, 9), rng.randint(1, 9)) for _ in range(size)]
                for _ in range(size)]  # fmt: skip

    d, g = tile(mats.alpha), tile(r)
    u = product(product(mats.G, g), transpose(mats.G))
    v = product(product(mats.B_T, d), transpose(mats.B_T))
    elementwise = [[a * b for a, b in zip(p, q, strict=True)] for p, q in zip(u, v, strict=True)]
    y = product(product(mats.A_T, elementwise), transpose(mats.A_T))
    for i in range(m):
        for j in range(m):
            taps = ((a, b) for a in range(r) for b in range(r))
            assert y[i][j] == sum(d[i + a][j + b] * g[a][b] for a, b in taps)


def test_f23_is_lavin_and_grays():
    """arXiv 1509.09308, equation 7, where the row of infinity has the other sign."""
    mats = matrices(2, 3)
    assert mats.B_T == ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1))
    assert mats.G == ((1, 0, 0), (HALF, HALF, HALF), (HALF, -HALF, HALF), (0, 0, 1))
    assert mats.A_T == ((1, 1, 1, 0), (0, 1, -1, 1))


def test_points_of_lavin_and_gray_give_their_f43():
    """arXiv 1509.09308, section 4.3."""
    mats = cook_toom((0, 1, -1, 2, -2), 4, 3)
    assert_computes_correlation(mats)
    assert mats.B_T == (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    )
    a, b, c, d = Fraction(1, 6), Fraction(1, 24), Fraction(1, 12), Fraction(1, 4)
    g = ((d, 0, 0), (-a, -a, -a), (-a, a, -a), (b, c, a), (b, -c, a), (0, 0, 1))
    assert list(mats.G) == [tuple(row) for row in g]
    assert mats.A_T == (
        (1, 1, 1, 1, 1, 0),
        (0, 1, -1, 2, -2, 0),
        (0, 1, 1, 4, 4, 0),
        (0, 1, -1, 8, -8, 1),
    )


def test_f43_points():
    assert matrices(4, 3).points == (0, 1, -1, HALF, -2)
    assert matrices(2, 5).points == matrices(4, 3).points


@pytest.mark.parametrize("alpha", sorted(POINTS))
def test_one_set_of_points_per_alpha(alpha):
    assert len(set(POINTS[alpha])) == len(POINTS[alpha]) == alpha - 1
    assert all(matrices(m, alpha + 1 - m).points == POINTS[alpha] for m in range(2, alpha))


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_run_time_matrices_are_dyadic_and_hold_a_free_coefficient(m, r):
    mats = matrices(m, r)
    for row in mats.B_T:
        assert 1 in row
    for x in (x for matrix in (mats.A_T, mats.B_T) for row in matrix for x in row):
        assert x.denominator & (x.denominator - 1) == 0
        assert Fraction(float(x)) == x and abs(x.numerator) < 2**24


@pytest.mark.parametrize("n", range(1, MAX_ALPHA + 1))
def test_degenerate_sizes_are_the_plain_algorithm(n):
    identity = tuple(tuple(Fraction(i == j) for j in range(n)) for i in range(n))
    ones_row = ((1,) * n,)
    one_output, one_tap = matrices(1, n), matrices(n, 1)
    assert one_output.B_T == one_output.G == one_tap.B_T == one_tap.A_T == identity
    assert one_output.A_T == transpose(one_tap.G) == ones_row
    assert one_output.points == one_tap.points == ()


@pytest.mark.parametrize("function", [matrices, multiplications_1d, multiplications_2d])
@pytest.mark.parametrize(
    ("m", "r", "message"),
    [
        (7, 3, r"F\(7, 3\): alpha = m \+ r - 1 = 9, at most 8 supported"),
        (1, 9, "at most 8"),
        (0, 3, r"F\(0, 3\): m and r must be at least 1"),
        (-1, 3, "at least 1"),
        (2, 0, "at least 1"),
    ],
)
def test_refusals(function, m, r, message):
    with pytest.raises(ValueError, match=message) as error:
        function(m, r)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("points", [(0, 1), (0, 1, 1), (0, 1, -1, 2)])
def test_wrong_points_are_refused(points):
    with pytest.raises(ValueError, match=r"F\(2, 3\) needs 3 distinct finite points, got"):
        cook_toom(points, 2, 3)


def test_multiplications():
    assert multiplications_1d(2, 3) == 4
    assert multiplications_2d(2, 3) == 16
    # 16x16 input, 3x3, 128 channels: 4x4 tiles cut the valid 14x14 output to 16 tiles.
    assert 16 * multiplications_2d(4, 3) * 128 == 73_728


def rebuilt(matrix: Matrix) -> list[tuple[Fraction, ...]]:
    pairs, rest = even_odd_pairs(matrix)
    rows = {i: tuple(matrix[i]) for i in rest}
    for i, j, e, o in pairs:
        assert i < j and any(e) and any(o)
        assert not any(a and b for a, b in zip(e, o, strict=True))
        for index, sign in ((i, 1), (j, -1)):
            assert index not in rows
            rows[index] = tuple(a + sign * b for a, b in zip(e, o, strict=True))
    return [rows[i] for i in range(len(matrix))]


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_even_odd_pairs_reconstruct_the_rows(m, r):
    mats = matrices(m, r)
    for matrix in (mats.B_T, mats.A_T, transpose(mats.A_T), mats.G):
        assert rebuilt(matrix) == list(matrix)


def test_even_odd_pairs_of_symmetric_points():
    mats = matrices(6, 3)
    for matrix in (mats.B_T, mats.G, transpose(mats.A_T)):
        pairs, rest = even_odd_pairs(matrix)
        assert [(p.i, p.j) for p in pairs] == [(1, 2), (3, 4), (5, 6)]
        assert rest == (0, 7)


def test_even_odd_pairs_of_f43():
    """1/2 and -2 leave B^T no symmetric rows; columns 1 and 2 of A^T pair up all the same."""
    mats = matrices(4, 3)
    assert even_odd_pairs(mats.B_T) == ((), tuple(range(6)))
    pairs, rest = even_odd_pairs(transpose(mats.A_T))
    assert pairs == (EvenOddPair(1, 2, (1, 0, 1, 0), (0, 1, 0, 1)),)
    assert rest == (0, 3, 4, 5)


def test_equal_and_opposite_rows_are_no_pair():
    row = (Fraction(1), Fraction(2))
    assert even_odd_pairs([row, row, tuple(-x for x in row)]) == ((), (0, 1, 2))


# ---- few pixels ----------------------------------------------------------------------------------

make = ConvWorkload.make
SMALL = {
    "2x2": make(5, 9, 2, kh=3, padding=1),
    "one row, batch 3": make(8, 8, 1, 2, 3, n=3, padding=1),
    "2x9": make(3, 8, 2, 9, 3, padding=1),
    "padding of its own on each side": make(4, 8, 2, 2, 3, padding=(0, 1, 2, 1)),
    "2x2 taps on one pixel": make(4, 8, 1, kh=2, padding=1),
    "dilation 18 of 33": make(3, 5, 33, kh=3, dilation=18, padding=18),
    "dilation 4 of 7x20": make(9, 8, 7, 20, 3, n=2, dilation=4, padding=4),
    "dilation 6, stride 2": make(4, 8, 11, kh=3, dilation=6, padding=6, stride=2),
    "1-D": make(4, 8, 1, 2, 1, 5, padding=(0, 2)),
    "2x3, stride 2": make(4, 8, 2, 3, 3, padding=1, stride=2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("w", SMALL.values(), ids=SMALL)
def test_images_smaller_than_their_kernel(w: ConvWorkload, layout: str) -> None:
    task = Task(w, "winograd:2", TARGET, layout)
    axes = (Tiling.of(w, 2).rows, Tiling.of(w, 2).cols)
    assert any(axis.side < matrices(2, axis.r, axis.stride).side for axis in axes)
    data, weight, bias = random_inputs(w, 3, layout, "integer")
    out = run_task(task, task.space.default, data, weight, bias, opt_level=0)
    np.testing.assert_array_equal(out, conv2d_reference(w, data, weight, bias, layout))


# ---- range ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "documented"), [(2, 4), (3, 9), (4, 49), (5, 56.25), (6, 225)])
def test_largest_data(m: int, documented: float) -> None:
    """The figures of docs/accuracy.md: the greatest float32 by what B^T d B may grow."""
    assert largest_data(m, (3, 3), (1, 1)) == pytest.approx(3.4028235e38 / documented)
    assert largest_data(m, (3, 1), (1, 1)) == pytest.approx(3.4028235e38 / documented**0.5)
    assert largest_data(m, (1, 1), (1, 1)) == pytest.approx(3.4028235e38)


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_data_that_overflow(m: int) -> None:
    """The worst signs for one tile: right below the limit, not finite above it, where `direct` is
    still right."""
    alpha = m + 2
    w = ConvWorkload.parse(f"mb1ic1ih{alpha}oc2kh3")
    rows = matrices(m, 3).B_T
    worst = np.array(max(rows, key=lambda row: sum(map(abs, row))), np.float64)
    signs = np.where(np.outer(worst, worst) < 0, -1.0, 1.0)
    weight = np.random.default_rng(m).uniform(-1e-9, 1e-9, w.weight_shape).astype(np.float32)
    bias = np.zeros(w.oc, np.float32)
    for name in ("direct", f"winograd:{m}"):
        task = Task(w, name, TARGET)
        kernel, packed = compiled(task, task.space.default)["main"], pack_weight(task, weight)
        for share, fits in ((0.99, True), (1.01, False)):
            data = (share * largest_data(m, (3, 3), (1, 1)) * signs).astype(np.float32)[None, None]
            out = np.full(w.out_shape(), np.nan, np.float32)
            kernel(*map(tvm_ffi.from_dlpack, (data, packed, bias, out)))
            error = relative_error(out, conv2d_reference(w, data, weight, bias))
            assert error < 1e-4 if fits or name == "direct" else math.isinf(error), name
