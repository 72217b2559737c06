"""How similar two convolution problems are, for hints and for the transfer of decisions."""

from __future__ import annotations

import math

from convtvm.problem.workload import ConvWorkload

_SIZES = ("n", "ic", "ih", "iw", "oc")
_SHAPE = ("kh", "kw", "sh", "sw", "dh", "dw", "groups", "ph", "pw", "dtype")


def distance(a: ConvWorkload, b: ConvWorkload) -> float:
    """Zero for equal problems: sizes count by ratio, a different kernel or stride counts most."""
    sizes = sum(abs(math.log2(getattr(a, f) / getattr(b, f))) for f in _SIZES)
    return sizes + 4.0 * sum(getattr(a, f) != getattr(b, f) for f in _SHAPE)
