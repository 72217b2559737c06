"""What follows a layer and nobody else reads, as the expression that its kernel computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import relax

from convtvm.models.constants import array_of, op_name
from convtvm.models.dataflow import Dataflow, is_tensor, shape_of, variables

_MAX_OPERATORS, _MAX_TENSORS = 12, 2  # of one epilogue


def _clip(call: relax.Call, x: str) -> str:
    low, high = (float(getattr(arg.value, "value", arg.value)) for arg in call.args[1:3])
    above = x if low == -np.inf else f"max({low!r}, {x})"
    return above if high == np.inf else f"min({high!r}, {above})"


def _softplus(call: relax.Call, x: str) -> str | None:
    if call.attrs.beta != 1:
        return None
    return f"max(0, {x}) + log(1 + exp(0 - abs({x})))"


def _leaky(slope: str, x: str) -> str:
    return f"max(0, {x}) - {slope} * max(0, 0 - {x})"


# Operator -> text of what it makes of the names of its operands.
_TEXTS: dict[str, Callable[..., str | None]] = {
    "relax.add": lambda call, a, b: f"{a} + {b}",
    "relax.subtract": lambda call, a, b: f"{a} - {b}",
    "relax.multiply": lambda call, a, b: f"{a} * {b}",
    "relax.divide": lambda call, a, b: f"{a} / {b}",
    "relax.maximum": lambda call, a, b: f"max({a}, {b})",
    "relax.minimum": lambda call, a, b: f"min({a}, {b})",
    "relax.greater": lambda call, a, b: f"{a} > {b}",
    "relax.less": lambda call, a, b: f"{a} < {b}",
    "relax.where": lambda call, condition, a, b: f"where({condition}, {a}, {b})",
    "relax.log": lambda call, x: f"log({x})",
    "relax.negative": lambda call, x: f"0 - {x}",
    "relax.abs": lambda call, x: f"abs({x})",
    "relax.exp": lambda call, x: f"exp({x})",
    "relax.sqrt": lambda call, x: f"sqrt({x})",
    "relax.tanh": lambda call, x: f"tanh({x})",
    "relax.erf": lambda call, x: f"erf({x})",
    "relax.sigmoid": lambda call, x: f"sigmoid({x})",
    "relax.clip": _clip,
    "relax.nn.relu": lambda call, x: f"max(0, {x})",
    "relax.nn.relu6": lambda call, x: f"min(6, max(0, {x}))",
    "relax.nn.silu": lambda call, x: f"{x} * sigmoid({x})",
    "relax.nn.gelu": lambda call, x: f"0.5 * {x} * (1 + erf({2**-0.5!r} * {x}))",
    "relax.nn.gelu_tanh": lambda call, x: (
        f"0.5 * {x} * (1 + tanh({(2 / np.pi) ** 0.5!r} * ({x} + 0.044715 * {x} * {x} * {x})))"
    ),
    "relax.nn.leakyrelu": lambda call, x: _leaky(repr(float(call.attrs.alpha)), x),
    "relax.nn.prelu": lambda call, x, slope: _leaky(slope, x),
    "relax.nn.softplus": _softplus,
}


@dataclass
class Epilogue:
    """The bindings of `bias` and `text` are those at `absorbed`, the last of which is at `sink`.

    `vectors` are the constants c0, c1 ... of `text`, one value a channel; `tensors` what r0, r1 ...
    are. `words` name the operators for people.
    """

    sink: int
    text: str = "none"
    bias: np.ndarray | None = None
    absorbed: list[int] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)
    tensors: list[relax.Expr] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


def epilogue_of(
    flow: Dataflow, start: int, axis: int, taken: set[int], max_tensors: int = _MAX_TENSORS
) -> Epilogue:
    """The longest epilogue of the layer at position `start` whose result has channels on `axis`;
    bindings at `taken` are others'."""
    grown = _Region(flow, start, axis, max_tensors)
    found = grown.closed()
    for at in range(start + 1, flow.end):
        if len(grown.absorbed) > _MAX_OPERATORS or grown.is_read_beyond(at):
            break
        if at in taken or not grown.reads(at) or not grown.take(at):
            continue
        if grown.is_closed() and str(flow.bindings[at].var.ty.dtype.dtype) == "float32":
            found = grown.closed()
    return found


class _Region:
    """A layer and the elementwise operators after it, which grow in the order of bindings."""

    def __init__(self, flow: Dataflow, start: int, axis: int, max_tensors: int) -> None:
        self.flow, self.start, self.axis, self.max_tensors = flow, start, axis, max_tensors
        self.layer = flow.bindings[start].var
        self.shape = shape_of(self.layer)
        self.names: dict[relax.Var, str] = {self.layer: "x"}
        self.members = {start}
        self.absorbed: list[int] = []
        self.statements: list[str] = []
        self.words: list[str] = []
        self.bias: np.ndarray | None = None
        self.vectors: list[np.ndarray] = []
        self.tensors: list[relax.Expr] = []

    def reads(self, at: int) -> bool:
        return any(var in self.names for var in variables(self.flow.bindings[at].value))

    def is_closed(self) -> bool:
        """Whether only the last binding is read by others."""
        last = self.flow.bindings[self.absorbed[-1] if self.absorbed else self.start].var
        return all(
            var.same_as(last) or set(self.flow.readers[var]) <= self.members for var in self.names
        )

    def is_read_beyond(self, at: int) -> bool:
        """Whether some member has readers before `at` that are not members: it never closes."""
        last = self.flow.bindings[self.absorbed[-1] if self.absorbed else self.start].var
        return any(
            reader < at and reader not in self.members
            for var in self.names
            if not var.same_as(last)
            for reader in self.flow.readers[var]
        )

    def take(self, at: int) -> bool:
        """Make the binding at a position a member, if it can be one."""
        binding = self.flow.bindings[at]
        call = binding.value
        if not isinstance(call, relax.Call) or shape_of(binding.var) != self.shape:
            return False
        compared = op_name(call) in ("relax.greater", "relax.less")
        dtype = "bool" if compared else "float32"
        if str(binding.var.ty.dtype.dtype) != dtype or op_name(call) not in _TEXTS:
            return False
        if self._is_bias(at, call):
            self.bias = self._per_channel(call.args[1]).reshape(-1)
            self.names[binding.var] = "x"
        elif not self._add_statement(call, binding.var):
            return False
        self.members.add(at)
        self.absorbed.append(at)
        self.words.append(op_name(call).rpartition(".")[2])
        return True

    def closed(self) -> Epilogue:
        *before, last = [f"t{i} = {s}" for i, s in enumerate(self.statements)] or ["t = x"]
        text = "; ".join([*before, last.partition(" = ")[2]])
        words = ["bias", *self.words[1:]] if self.bias is not None else list(self.words)
        return Epilogue(
            sink=self.absorbed[-1] if self.absorbed else self.start,
            text="none" if text == "x" else text,
            bias=self.bias,
            absorbed=list(self.absorbed),
            vectors=list(self.vectors),
            tensors=list(self.tensors),
            words=words,
        )

    def _is_bias(self, at: int, call: relax.Call) -> bool:
        """Whether it is the first addition to the sum itself, of a constant for each channel, and
        nobody else reads the sum, which a kernel has with its bias only."""
        return (
            op_name(call) == "relax.add"
            and not self.absorbed
            and set(self.flow.readers[self.layer]) <= {at}
            and call.args[0].same_as(self.layer)
            and self._per_channel(call.args[1]) is not None
        )

    def _add_statement(self, call: relax.Call, var: relax.Var) -> bool:
        vectors, tensors = list(self.vectors), list(self.tensors)
        operands = [a for a in call.args if is_tensor(a)]
        names = [self._operand(call, arg) for arg in operands]
        text = _TEXTS[op_name(call)](call, *names) if None not in names else None
        if text is None or len(self.tensors) > self.max_tensors:
            self.vectors, self.tensors = vectors, tensors
            return False
        self.names[var] = f"t{len(self.statements)}"
        self.statements.append(text)
        return True

    def _operand(self, call: relax.Call, arg: relax.Expr) -> str | None:
        """The name of an operand; None for one that no epilogue reads."""
        if isinstance(arg, relax.Var):
            if arg in self.names:
                return self.names[arg]
            if shape_of(arg) != self.shape or self.flow.depends(arg, self.start):
                return None
            return self._numbered("r", self.tensors, arg)
        array = array_of(arg)
        if array is None or array.dtype != np.float32:
            return None
        if array.size == 1:
            value = float(array.reshape(()))
            return repr(value) if np.isfinite(value) else None
        if op_name(call) == "relax.nn.prelu":
            vector = array if array.shape == (self.shape[self.axis],) else None
        else:
            vector = self._per_channel(arg)
        return None if vector is None else self._numbered("c", self.vectors, np.ravel(vector))

    def _numbered(self, letter: str, known: list, wanted: relax.Expr | np.ndarray) -> str:
        for i, one in enumerate(known):
            if one is wanted or (isinstance(one, relax.Var) and one.same_as(wanted)):
                return f"{letter}{i}"
        known.append(wanted)
        return f"{letter}{len(known) - 1}"

    def _per_channel(self, arg: relax.Expr) -> Any:
        """The array of a constant of one value for each channel, None for anything else."""
        array = array_of(arg) if isinstance(arg, tvm.ir.GenericConst) else None
        if array is None or array.ndim > len(self.shape):
            return None
        full = (1,) * (len(self.shape) - array.ndim) + array.shape
        wanted = [1] * len(self.shape)
        wanted[self.axis] = self.shape[self.axis]
        return array if full == tuple(wanted) and array.dtype == np.float32 else None
