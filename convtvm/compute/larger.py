"""The larger and the smaller of two numbers, NaN where one of them is.

TVM's maximum of a and b is `a > b ? a : b`, one instruction, which gives b wherever a or b is NaN.
A number that is known not to be NaN therefore stands first, which costs nothing; of two that may
both be NaN, the first is tested as well: only NaN is not at most infinite. (TVM takes `a == a` for
true.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir import TensorLoad


def larger(a: Any, b: Any) -> Any:
    """The maximum of expressions of one dtype, NaN where either is."""
    return _chosen(tirx.max, a, b)


def smaller(a: Any, b: Any) -> Any:
    """The minimum of expressions of one dtype, NaN where either is."""
    return _chosen(tirx.min, a, b)


def _chosen(choose: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    if not str(a.ty).startswith("float") or _is_number(a):
        return choose(a, b)
    if _is_number(b):
        return choose(b, a)
    if isinstance(b, TensorLoad):  # what stands first is written three times
        a, b = b, a
    return tirx.Select(is_no_nan(a), choose(a, b), a)


def is_no_nan(x: Any) -> Any:
    """Whether a float is a number, infinite ones among them."""
    return x <= tirx.const(math.inf, str(x.ty))


def _is_number(value: Any) -> bool:
    """Whether it is a constant other than NaN."""
    return isinstance(value, tirx.FloatImm) and not math.isnan(float(value.value))
