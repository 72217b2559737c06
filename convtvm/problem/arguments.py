"""The order of a kernel's arguments, for what makes kernels and for what calls them.

data, packed weight, bias, out          always
workspaces                              of a GPU's kernel; one for a CPU allocates its own
low, high                               with the epilogue `clip` or `add`
residual                                with `add`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any

OPERANDS = 4  # data, packed weight, bias, out


def ordered(
    operands: Iterable[Any],
    workspaces: Iterable[Any] = (),
    bounds: Iterable[Any] = (),
    residual: Iterable[Any] = (),
) -> list[Any]:
    """The arguments of a call, or the parameters of a kernel."""
    return [*operands, *workspaces, *bounds, *residual]


def workspaces(parameters: Sequence[Any], is_buffer: Callable[[Any], bool]) -> list[Any]:
    """The workspaces among a kernel's parameters: the buffers up to the first bound.

    A residual follows the bounds, so it is never one of them.
    """
    return list(takewhile(is_buffer, parameters[OPERANDS:]))
