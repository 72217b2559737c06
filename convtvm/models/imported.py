"""A model as the importers hand it on: a Relax function in inference form, and the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import tvm

from convtvm.errors import ModelError


class NotComparable(ModelError):
    """The original does not run: not here, or not on these inputs."""


Reference = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


# By what part of its size a number of some precision may be off. int8 is of inputs of a quantised
# model: float32's on each of many sums that it rounds to 8 bits come to this on a few inputs.
ROUNDINGS = {"float32": 2.0**-23, "float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 2.0**-16}


@dataclass(frozen=True)
class Port:
    """An input or output of a model; `dtype` as numpy writes it, `shape` static."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.shape)) or 'scalar'} {self.dtype}"


@dataclass
class Imported:
    """A model as one Relax function `main`: static shapes, one dataflow block, constant weights.

    The function takes `inputs` in order and returns a tuple of `outputs`, or the only one itself.
    It is in inference form, see `convtvm.models.inference`. `reference` computes the original's
    outputs from arrays by name, in numbers that it rounds by `rounding` of their size. `origins`
    names, for variables of the function, the node of the original that they came from. `decided`
    are inputs of one number by which the original chooses what it computes, at a number for which
    it computes this.
    """

    name: str
    module: tvm.IRModule
    inputs: list[Port]
    outputs: list[Port]
    reference: Reference
    origins: Mapping[str, str] = field(default_factory=dict)
    rounding: float = ROUNDINGS["float32"]
    decided: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_quantized(self) -> bool:
        """Whether it rounds to 8 bits what it computes, and nothing more coarsely."""
        return self.rounding == ROUNDINGS["int8"]

    @property
    def gives_images(self) -> bool:
        """Whether an output has more than a row of numbers for each of the batch."""
        return any(len(port.shape) > 2 for port in self.outputs)
