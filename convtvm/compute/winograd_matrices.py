"""Cook-Toom matrices of the Winograd algorithm F(m, r), as exact rationals.

    y = A^T [(G g) * (B^T d)]        y[i] = sum_k d[stride * i + k] g[k]

computes m outputs of a correlation with r taps from alpha = m + r - 1 inputs in alpha
multiplications (Lavin & Gray, arXiv 1509.09308, equation 6; nested twice for 2-D, equation 8).
Derivation: the product of two polynomials of degrees m - 1 and r - 1 is interpolated from its
values at alpha - 1 finite points p_i and at infinity; transposing that bilinear algorithm gives
the correlation. With f_i = prod_{k != i} (p_i - p_k):

    A^T[j][i] = p_i ** j               last column (infinity): 1 in row m - 1
    G[i][k]   = p_i ** k / f_i         last row: 1 in column r - 1
    B^T[i]    = coefficients of prod_{k != i} (x - p_k), lowest first; last row: of all k

Convention: every f_i is divided out in G, as wincnn does, because G is applied once, off line and
in float64, while B^T and A^T run at every call. The rows of B^T are thus monic with dyadic entries:
each holds a coefficient 1, which costs no multiplication, and every constant is exact in float32.
More powers of two could move between B^T, G and A^T without changing any rounding error, so they
stay where they are. The row of point 0 takes the sign that makes G[0] positive, as in the paper.

With a stride, inputs and taps at the same position modulo the stride meet only each other. Each
such phase is a correlation of stride 1 with the taps it has, and y the sum of all phases: their
matrices stand side by side. A phase saves (m - 1) * (taps - 1) multiplications.

Where fewer inputs than taps are not zero by padding, n of them from input `first` on, as in an
image smaller than its kernel, inputs and taps change places: y[i] = sum_j d[first + j] g[first + j
- i] is a correlation with the n inputs as taps, reversed, and m + n - 1 multiplications compute it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import NamedTuple

Row = tuple[Fraction, ...]
Matrix = tuple[Row, ...]

MAX_ALPHA = 8  # more points lose too many float32 digits: F(8, 3) has 8 times the error of F(6, 3)

_HALF = Fraction(1, 2)
_FLOAT32_MAX = float.fromhex("0x1.fffffep127")

# alpha -> its alpha - 1 finite points. From 4 on the sets are those that Barabasz et al. (arXiv
# 1803.10986; TVM's topi has the same) found to err least in float32, p and -p side by side.
POINTS: dict[int, tuple[Fraction | int, ...]] = {
    3: (0, 1),
    4: (0, 1, -1),
    5: (0, 1, -1, _HALF),
    6: (0, 1, -1, _HALF, -2),
    7: (0, 1, -1, _HALF, -_HALF, -2),
    8: (0, 1, -1, _HALF, -_HALF, 2, -2),
}


@dataclass(frozen=True)
class WinogradMatrices:
    """F(m, r): A_T [m][alpha], G [alpha][r], B_T [alpha][side]; `points` without infinity.

    With a stride above one `points` has those of all phases, one phase after another. `first` is
    the input of B_T's first column, of `side` that may differ from zero.
    """

    m: int
    r: int
    stride: int
    alpha: int
    points: Row
    A_T: Matrix
    G: Matrix
    B_T: Matrix
    first: int = 0

    @property
    def side(self) -> int:
        """Inputs of a tile: (m - 1) * stride + r, or those that are not always zero."""
        return len(self.B_T[0])


class EvenOddPair(NamedTuple):
    """Rows i < j of a matrix: row_i = e + o and row_j = e - o, e and o of disjoint support."""

    i: int
    j: int
    e: Row
    o: Row


@cache
def matrices(m: int, r: int, stride: int = 1) -> WinogradMatrices:
    """F(m, r) with the points of `POINTS`; the `m` outputs are `stride` inputs apart.

    With m = 1 or r = 1 there is nothing to save, and the exact plain algorithm comes back: B^T, and
    G or A^T, are identities, the remaining matrix is all ones, and `points` is empty.
    """
    if stride > 1 and r > 1:
        return _phases(m, r, stride)
    alpha = _checked_alpha(m, r)
    if m == 1 or r == 1:
        identity = tuple(_unit(alpha, i) for i in range(alpha))
        ones = (Fraction(1),)
        A_T = (ones * alpha,) if m == 1 else identity
        G = (ones,) * alpha if r == 1 else identity
        return WinogradMatrices(m, r, stride, alpha, (), A_T, G, identity)
    return cook_toom(POINTS[alpha], m, r)


def _phases(m: int, r: int, stride: int) -> WinogradMatrices:
    """The matrices of all phases side by side, spread over the inputs and taps of each."""
    if r < stride:
        raise ValueError(f"F({m}, {r}) of stride {stride}: some inputs meet no tap")
    alpha = (m - 1) * stride + r
    phases = [(q, matrices(m, -(-(r - q) // stride))) for q in range(stride)]
    return WinogradMatrices(
        m,
        r,
        stride,
        alpha,
        points=tuple(p for _, part in phases for p in part.points),
        A_T=tuple(tuple(x for _, part in phases for x in part.A_T[j]) for j in range(m)),
        G=tuple(_spread(row, q, stride, r) for q, part in phases for row in part.G),
        B_T=tuple(_spread(row, q, stride, alpha) for q, part in phases for row in part.B_T),
    )


def cropped(mats: WinogradMatrices, first: int, count: int) -> WinogradMatrices:
    """The same where all inputs are zero but `count` from `first` on: no other is read, and
    products of none of them are left out."""
    B_T = tuple(row[first : first + count] for row in mats.B_T)
    kept = [t for t, inputs in enumerate(B_T) if any(inputs)]
    return replace(
        mats,
        alpha=len(kept),
        A_T=tuple(tuple(row[t] for t in kept) for row in mats.A_T),
        G=tuple(mats.G[t] for t in kept),
        B_T=tuple(B_T[t] for t in kept),
        first=first,
    )


@cache
def of_few_inputs(m: int, r: int, first: int, count: int) -> WinogradMatrices:
    """F(m, r) of stride 1 where all inputs are zero but `count` < r, the first of them at
    `first`: m + count - 1 multiplications.

    Each row of B^T is scaled to begin with one, and G, off line, makes up for it.
    """
    swapped = matrices(m, count)
    places = [first + count - 1 - k for k in range(r)]  # of the taps, among the swapped's inputs
    G, B_T = [], []
    for inputs, taps in zip(swapped.G, swapped.B_T, strict=True):
        row = inputs[::-1]
        scale = abs(next(c for c in row if c))
        known = {i: scale * c for i, c in enumerate(taps)}
        G.append(tuple(known.get(place, Fraction(0)) for place in places))
        B_T.append(tuple(c / scale for c in row))
    return WinogradMatrices(
        m, r, 1, swapped.alpha, swapped.points, swapped.A_T, tuple(G), tuple(B_T), first
    )


def _spread(row: Row, phase: int, stride: int, length: int) -> Row:
    """The entries of `row` at positions phase, phase + stride, …, zeros between them."""
    spread = [Fraction(0)] * length
    spread[phase::stride] = row
    return tuple(spread)


def cook_toom(points: Iterable[Fraction | int], m: int, r: int) -> WinogradMatrices:
    """F(m, r) with m + r - 2 distinct finite `points` of the caller's choice, and infinity."""
    alpha = _checked_alpha(m, r)
    nodes = tuple(Fraction(p) for p in points)
    if len(set(nodes)) != alpha - 1 or len(nodes) != alpha - 1:
        found = ", ".join(map(str, nodes))
        raise ValueError(f"F({m}, {r}) needs {alpha - 1} distinct finite points, got ({found})")
    A_T = tuple((*(p**j for p in nodes), Fraction(j == m - 1)) for j in range(m))
    G, B_T = [], []
    for i, p in enumerate(nodes):
        others = nodes[:i] + nodes[i + 1 :]
        f = _product(p - q for q in others)
        sign = -1 if p == 0 and f < 0 else 1
        G.append(tuple(sign * p**k / f for k in range(r)))
        B_T.append((*(sign * c for c in _monic(others)), Fraction(0)))
    G.append(_unit(r, r - 1))
    B_T.append(_monic(nodes))
    return WinogradMatrices(m, r, 1, alpha, nodes, A_T, tuple(G), tuple(B_T))


def largest_data(m: int, kernel: tuple[int, int], strides: tuple[int, int]) -> float:
    """How large float32 inputs of F(m x m, kh x kw) may be: above it their transform B^T d B can
    overflow, to infinity and from there to NaN.

    Each element of B^T d is at most the largest sum of a row's magnitudes times the largest of d.
    Below it, sums of products and outputs may still overflow, as in any algorithm; their bounds are
    higher by the growth of G and A^T.
    """
    gain = Fraction(1)
    for r, stride in zip(kernel, strides, strict=True):
        rows = matrices(m if r > 1 else 1, r, stride).B_T
        gain *= max(sum(map(abs, row), Fraction(0)) for row in rows)
    return _FLOAT32_MAX / float(gain)


def even_odd_pairs(
    matrix: Sequence[Sequence[Fraction]],
) -> tuple[tuple[EvenOddPair, ...], tuple[int, ...]]:
    """Pairs of rows that share their even and odd part, and the indices of the remaining rows.

    Points p and -p whose fellow points are symmetric too give such rows of B^T: e and o times a
    vector are computed once, then added and subtracted. In A^T it is columns that pair up, so pass
    `transpose(A_T)`: inputs x_i and x_j then enter only as x_i + x_j, weighted by e, and as
    x_i - x_j, weighted by o. Each row is in one pair at most; the first match counts.
    """
    pairs: list[EvenOddPair] = []
    free = list(range(len(matrix)))
    rest = []
    while free:
        i = free.pop(0)
        found = next((p for p in (_pair(matrix, i, j) for j in free) if p is not None), None)
        if found is None:
            rest.append(i)
        else:
            free.remove(found.j)
            pairs.append(found)
    return tuple(pairs), tuple(rest)


def transpose(matrix: Sequence[Sequence[Fraction]]) -> Matrix:
    """[rows][columns] -> [columns][rows]."""
    return tuple(zip(*matrix, strict=True))


def multiplications_1d(m: int, r: int) -> int:
    """Multiplications of F(m, r) per tile of m outputs, transforms not counted; direct: m * r."""
    return _checked_alpha(m, r)


def multiplications_2d(m: int, r: int) -> int:
    """Multiplications of F(m x m, r x r) per tile of m * m outputs and input channel."""
    return _checked_alpha(m, r) ** 2


def _checked_alpha(m: int, r: int) -> int:
    if m < 1 or r < 1:
        raise ValueError(f"F({m}, {r}): m and r must be at least 1")
    alpha = m + r - 1
    if alpha > MAX_ALPHA:
        raise ValueError(f"F({m}, {r}): alpha = m + r - 1 = {alpha}, at most {MAX_ALPHA} supported")
    return alpha


def _pair(matrix: Sequence[Sequence[Fraction]], i: int, j: int) -> EvenOddPair | None:
    """Rows i and j as an even-odd pair; None if they differ in more than signs."""
    zero = Fraction(0)
    columns = list(zip(matrix[i], matrix[j], strict=True))
    if any(abs(a) != abs(b) for a, b in columns):
        return None
    e = tuple(a if a == b else zero for a, b in columns)
    o = tuple(a if a != b else zero for a, b in columns)
    # Rows that are equal or opposite have nothing to add or subtract.
    return EvenOddPair(i, j, e, o) if any(e) and any(o) else None


def _monic(roots: Iterable[Fraction]) -> Row:
    """Coefficients of prod (x - root), lowest first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [root * c for c in coefficients] + [Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return tuple(coefficients)


def _product(values: Iterable[Fraction]) -> Fraction:
    result = Fraction(1)
    for value in values:
        result *= value
    return result


def _unit(length: int, index: int) -> Row:
    return tuple(Fraction(k == index) for k in range(length))
