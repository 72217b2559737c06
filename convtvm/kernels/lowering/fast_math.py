"""Exponential functions that run in vectors.

LLVM calls the C library for each lane of `exp`, `tanh` and `erf`, some 20 ns each. Here they are
polynomials that are right but for the last digit or two of a float32, a relative error below 1e-6.
NaN stays NaN, what is too large becomes infinite, and what is too small for a normal number is
rounded to a denormal one, in the end to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Var

Expr = Any

_LOG2_E = 1 / math.log(2)
# ln 2 in two parts, the first with so few digits that its multiples are exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440054690583e-4
_LEAST, _MOST = -104.0, 89.0  # below the result is zero, above infinite
_MANTISSA, _BIAS = 23, 127  # of a float32: bits, and what is added to the exponent
# A number plus this is rounded to whole numbers, and its last bits hold them and twice the bias.
_ROUNDING = 1.5 * 2**_MANTISSA + 2 * _BIAS

# Coefficients of growing powers, by least squares in Chebyshev nodes of the relative error.
_EXP = (1.0, 1.0, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720)  # exp(r)
# tanh(x) / x by x**2, |x| <= 0.65
_TANH = (
    0.9999999936964781,
    -0.333332265073174,
    0.13330363584459048,
    -0.053661901024884495,
    0.020406127169023076,
    -0.005459739331813443,
)
# erf(x) / x by x**2, |x| <= 1
_ERF = (
    1.128379165689322,
    -0.3761262556739903,
    0.11283582247989862,
    -0.0268536910995798,
    0.005188098889125081,
    -0.0008008189320552195,
    7.84725911762707e-05,
)
# (1 - erf(x)) * exp(x**2) by 1 / (1 + _ERFC_SCALE * x), 1 <= x <= 4.2
_ERFC_SCALE = 0.3275911
_ERFC = (
    -0.02291222524043831,
    0.39833958290979854,
    -0.6409932761447622,
    1.8600952877623818,
    -1.7202579076122977,
    1.1256855329567919,
)
_ERF_IS_ONE = 4.2


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.FastMath")
def expand(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func` with polynomials for exponential functions of float32, in numbers and vectors."""

    def on_call(call: Call) -> Expr:
        made = _EXPANSIONS.get(getattr(call.op, "name", ""))
        if made is None or not str(call.ty).startswith("float32"):
            return call
        return _bound(call.args[0], made)

    return tvm_ffi.structural_map(func, [(Call, on_call)], order="post")


def _bound(value: Expr, use: Callable[[Expr], Expr]) -> Expr:
    """`use` of a variable with this value, which is thus computed once."""
    var = Var("t", str(value.ty))
    return tirx.Let(var, value, use(var))


def _like(value: Expr, number: float) -> Expr:
    """A number as often as `value` has lanes."""
    dtype = str(value.ty)
    scalar, _, lanes = dtype.partition("x")
    one = tirx.const(number, scalar)
    return tirx.Broadcast(one, int(lanes)) if lanes else one


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's scheme; LLVM makes multiply-adds of it."""
    total = _like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + _like(x, coefficient)
    return total


def _exp(x: Expr) -> Expr:
    """2**n * exp(r) with r = x - n ln 2, |r| <= ln(2) / 2.

    The power of two is written into the exponent's bits, in two factors: the largest results need
    2**128 and the denormal ones 2**-150, which are no float32 by themselves.
    """
    # In this order of operands NaN stays NaN.
    bounded = tirx.min(_like(x, _MOST), tirx.max(_like(x, _LEAST), x))

    def scaled(y: Expr) -> Expr:
        return _bound(y * _like(y, _LOG2_E) + _like(y, _ROUNDING), lambda n: power(y, n))

    def power(y: Expr, rounded: Expr) -> Expr:
        whole = str(y.ty).replace("float", "int")
        bits = tirx.reinterpret(whole, rounded)
        first = tirx.shift_right(bits, _whole(bits, 1))
        second = bits - first
        number = rounded - _like(y, _ROUNDING)
        rest = y - number * _like(y, _LN2_HIGH) - number * _like(y, _LN2_LOW)
        root = _bound(rest, lambda r: _polynomial(r, _EXP))
        return root * _power_of_two(first, y) * _power_of_two(second, y)

    return _bound(bounded, scaled)


def _power_of_two(exponent: Expr, like: Expr) -> Expr:
    """Of an exponent that has the bias in its last bits; the others are of no account."""
    bits = tirx.shift_left(exponent, _whole(exponent, _MANTISSA))
    return tirx.reinterpret(str(like.ty), bits)


def _whole(value: Expr, number: int) -> Expr:
    _, _, lanes = str(value.ty).partition("x")
    one = tirx.const(number, "int32")
    return tirx.Broadcast(one, int(lanes)) if lanes else one


def _tanh(x: Expr) -> Expr:
    """A polynomial near zero, where 1 - 2 / (exp(2x) + 1) would lose digits."""
    square = _bound(x * x, lambda s: _polynomial(s, _TANH))
    far = _like(x, 1.0) - _like(x, 2.0) / (_exp(x + x) + _like(x, 1.0))
    return tirx.Select(_magnitude(x) <= _like(x, 0.65), x * square, far)


def _erf(x: Expr) -> Expr:
    """A polynomial near zero, elsewhere 1 - exp(-x**2) times one of 1 / (1 + x)."""
    square = _bound(x * x, lambda s: _polynomial(s, _ERF))

    def far(y: Expr) -> Expr:
        inverse = _like(x, 1.0) / (y * _like(x, _ERFC_SCALE) + _like(x, 1.0))
        rest = _bound(inverse, lambda t: _polynomial(t, _ERFC))
        return _like(x, 1.0) - _exp(_like(x, 0.0) - y * y) * rest

    positive = _bound(tirx.min(_like(x, _ERF_IS_ONE), _magnitude(x)), far)
    signed = tirx.Select(x < _like(x, 0.0), _like(x, 0.0) - positive, positive)
    return tirx.Select(_magnitude(x) <= _like(x, 1.0), x * square, signed)


def _sigmoid(x: Expr) -> Expr:
    return _like(x, 1.0) / (_exp(_like(x, 0.0) - x) + _like(x, 1.0))


def _magnitude(x: Expr) -> Expr:
    return tirx.max(_like(x, 0.0) - x, x)


_EXPANSIONS: dict[str, Callable[[Expr], Expr]] = {
    "tirx.exp": _exp,
    "tirx.tanh": _tanh,
    "tirx.erf": _erf,
    "tirx.sigmoid": _sigmoid,
}
