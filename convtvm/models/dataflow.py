"""A Relax function in one dataflow block as a list of bindings: who reads what, what depends on
what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import relax


@dataclass
class Dataflow:
    """The bindings of a function in order; `readers` of a variable are positions of bindings, the
    position after the last one standing for the result."""

    function: relax.Function
    bindings: list[relax.Binding] = field(init=False)
    position: dict[relax.Var, int] = field(init=False)
    readers: dict[relax.Var, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.bindings = [b for block in self.function.body.blocks for b in block.bindings]
        self.position = {b.var: i for i, b in enumerate(self.bindings)}
        self.readers = {b.var: [] for b in self.bindings}
        self.readers.update({var: [] for var in self.function.params})
        values = [b.value for b in self.bindings]
        self._depends: list[int] = []
        for i, value in enumerate([*values, self.function.body.body]):
            operands = set(variables(value))
            for var in operands:
                self.readers[var].append(i)
            before = 0
            for var in operands & set(self.position):
                before |= self._depends[self.position[var]] | 1 << self.position[var]
            self._depends.append(before)

    @property
    def end(self) -> int:
        """The position of the result."""
        return len(self.bindings)

    def value(self, var: relax.Expr) -> relax.Expr | None:
        """What a variable is bound to; None for a parameter and what is no variable."""
        if not isinstance(var, relax.Var) or var not in self.position:
            return None
        return self.bindings[self.position[var]].value

    def depends(self, var: relax.Expr, on: int) -> bool:
        """Whether a variable is computed from the binding at a position, or is it."""
        if not isinstance(var, relax.Var) or var not in self.position:
            return False
        own = self.position[var]
        return own == on or bool(self._depends[own] >> on & 1)


def variables(expr: relax.Expr) -> Iterator[relax.Var]:
    """The tensors and tuples that an expression reads."""
    if isinstance(expr, relax.Var):
        yield expr
    elif isinstance(expr, relax.Tuple):
        for part in expr.fields:
            yield from variables(part)
    elif isinstance(expr, relax.TupleGetItem):
        yield from variables(expr.tuple_value)
    elif isinstance(expr, relax.Call):
        for arg in expr.args:
            yield from variables(arg)


def is_tensor(expr: relax.Expr) -> bool:
    return isinstance(expr.ty, relax.TensorType)


def shape_of(expr: relax.Expr) -> Any:
    """The static shape of a tensor, a tuple of whole numbers; None for anything else."""
    shape = getattr(expr.ty, "shape", None)
    if shape is None or not all(isinstance(e, tvm.tirx.IntImm) for e in shape):
        return None
    return tuple(int(extent) for extent in shape)
