"""Activations that a kernel can end with, and the names of the epilogues that have them.

relu, relu6, (low, high)    bounds, arguments of each call; epilogues `clip` and `add`
silu, gelu and the like     functions, compiled in; epilogues `silu`, and `add+silu` after a
                            residual
leaky_relu:S                with slope S below zero, 0.01 without one
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from convtvm.errors import ConvtvmError, check_number

BOUNDS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
LEAKY, _SLOPE = "leaky_relu", 0.01

_ROOT = 2**-0.5
_CUBIC = (2 / math.pi) ** 0.5
# Name -> the expression of an epilogue, and the same in NumPy.
_FUNCTIONS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "silu": ("{x} * sigmoid({x})", lambda x: x * _sigmoid(x)),
    "sigmoid": ("sigmoid({x})", lambda x: _sigmoid(x)),
    "tanh": ("tanh({x})", np.tanh),
    "gelu": (
        f"0.5 * {{x}} * (1 + erf({_ROOT!r} * {{x}}))",
        lambda x: 0.5 * x * (1 + _erf(_ROOT * x)),
    ),
    "gelu_tanh": (
        f"0.5 * {{x}} * (1 + tanh({_CUBIC!r} * ({{x}} + 0.044715 * {{x}} * {{x}} * {{x}})))",
        lambda x: 0.5 * x * (1 + np.tanh(_CUBIC * (x + 0.044715 * x * x * x))),
    ),
    "hardswish": (
        "{x} * min(6, max(0, {x} + 3)) / 6",
        lambda x: x * np.clip(x + 3, 0, 6) / 6,
    ),
    "hardsigmoid": ("min(6, max(0, {x} + 3)) / 6", lambda x: np.clip(x + 3, 0, 6) / 6),
    "mish": ("{x} * tanh(log(1 + exp({x})))", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
}
FUNCTIONS = (*_FUNCTIONS, LEAKY)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _erf(x: Any) -> Any:
    """NumPy has none: one number after another."""
    return np.vectorize(math.erf, otypes=[np.float64])(x)


@dataclass(frozen=True)
class Activation:
    """What is done to an output: `function`, empty for none, or else bounds."""

    function: str = ""
    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def of(cls, given: str | tuple[float, float] | None) -> Activation:
        """What a caller names. Raises ConvtvmError."""
        if given is None:
            return cls()
        if isinstance(given, str):
            if given in BOUNDS:
                return cls("", *BOUNDS[given])
            if _expression(given) is None:
                raise ConvtvmError(
                    f"activation is {given!r}, expected {', '.join((*BOUNDS, *FUNCTIONS))} or "
                    "(lowest, highest)"
                )
            return cls(given)
        try:
            low, high = (check_number("activation", bound) for bound in given)
        except (TypeError, ValueError, ConvtvmError):
            low, high = math.nan, math.nan
        if not low <= high:
            raise ConvtvmError(f"activation is {given!r}, expected (lowest, highest) of an output")
        return cls("", low, high)

    def epilogue(self, adds: bool) -> str:
        """The name of the epilogue that has it, after a residual or not."""
        if self.function:
            return f"add+{self.function}" if adds else self.function
        bounded = (self.low, self.high) != (-math.inf, math.inf)
        return "add" if adds else "clip" if bounded else "none"

    @property
    def numbers(self) -> tuple[float, ...]:
        """Arguments of a kernel with that epilogue, other than `none`."""
        return () if self.function else (self.low, self.high)

    def apply(self, out: Any) -> None:
        """Do it to an array, in place."""
        if not self.function:
            np.clip(out, self.low, self.high, out=out)
            return
        name, _, slope = self.function.partition(":")
        with np.errstate(over="ignore", invalid="ignore"):
            if name == LEAKY:
                out[...] = np.where(out > 0, out, float(slope or _SLOPE) * out)
            else:
                out[...] = _FUNCTIONS[name][1](out)


def expression(epilogue: str) -> str | None:
    """The expression of an epilogue that is named after a function, None for any other."""
    head, plus, function = epilogue.partition("+")
    if not plus:
        return _expression(epilogue)
    text = _expression(function, "t") if head == "add" else None
    return text and f"t = x + residual; {text}"


def _expression(activation: str, x: str = "x") -> str | None:
    name, colon, slope = activation.partition(":")
    if name in _FUNCTIONS and not colon:
        return _FUNCTIONS[name][0].format(x=x)
    if name != LEAKY:
        return None
    try:
        value = float(slope) if colon else _SLOPE
    except ValueError:
        return None
    return f"where({x} > 0, {x}, {value!r} * {x})" if math.isfinite(value) else None
