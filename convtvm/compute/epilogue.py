"""Epilogues: what a kernel does to each sum on its way out, beside adding the bias.

    none   out = sum + bias
    clip   out = min(high, max(low, sum + bias))               ReLU, ReLU6 and other bounds
    add    out = min(high, max(low, sum + bias + residual))    the end of a residual block
    silu, add+silu and the like, by `convtvm.problem.activations`

`low` and `high`, float32 numbers, are arguments of each call, infinite for no bound; `residual` is
a tensor like `out`; `convtvm.problem.arguments` has their places. Any other epilogue is an
expression of the sum `x` with its bias, such as `max(0, x + r0)`, or `t = x + 3; x * min(6, t)`:

    x             the sum with its bias
    r0, r1 ...    tensors like `out`, arguments of each call
    c0, c1 ...    vectors [oc], arguments before the tensors
    + - * / < >   numbers, names that were assigned before, and the functions of FUNCTIONS

A sum is float32 up to here, an output of another dtype is rounded at the end. An epilogue is put
into the finished compute, in its block `out`, so that every algorithm has it and plain kernels pay
nothing for it:
with bounds in every kernel, 1x1 layers in NCHW were 5 to 8 % slower, with a residual of zeros up to
20 %.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeGuard

import tvm_ffi
from tvm import tirx
from tvm.ir import Range, TensorLoad
from tvm.s_tir.stmt import SBlock

from convtvm.compute.larger import larger, smaller
from convtvm.errors import WorkloadError
from convtvm.problem import arguments
from convtvm.problem.activations import expression

EPILOGUES = ("none", "clip", "add")
_BOUNDS, _RESIDUAL = ("low", "high"), "residual"
# The bound that LLVM may make a branch is the one that hardly ever applies.
_NAMED = {
    "none": "x",
    "clip": "min(high, max(low, x))",
    "add": "min(high, max(low, x + residual))",
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": lambda a, b: _bounded(tirx.min, smaller, a, b),
    "max": lambda a, b: _bounded(tirx.max, larger, a, b),
    "exp": tirx.exp,
    "log": tirx.log,
    "sqrt": tirx.sqrt,
    "tanh": tirx.tanh,
    "sigmoid": lambda x: 1.0 / (1.0 + tirx.exp(0.0 - x)),
    "erf": tirx.erf,
    "where": tirx.Select,  # of a comparison, what is where it holds, and elsewhere
    "abs": lambda x: tirx.max(x, 0.0 - x),
}
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Lt: operator.lt,
    ast.Gt: operator.gt,
}
_TENSOR, _VECTOR = re.compile(r"r\d+"), re.compile(r"c\d+")


@dataclass(frozen=True)
class Operands:
    """Names that an epilogue reads besides `x`, in the order of a kernel's arguments."""

    numbers: tuple[str, ...]
    vectors: tuple[str, ...]
    tensors: tuple[str, ...]


@cache
def operands_of(epilogue: str) -> Operands:
    """What `epilogue` reads besides the sum. Raises WorkloadError for what is no epilogue."""
    read = _Reader(epilogue).read
    return Operands(
        tuple(b for b in _BOUNDS if b in read),
        tuple(sorted(n for n in read if _VECTOR.fullmatch(n))),
        tuple(sorted(n for n in read if n == _RESIDUAL or _TENSOR.fullmatch(n))),
    )


def with_epilogue(func: tirx.PrimFunc, epilogue: str) -> tirx.PrimFunc:
    """`func` (data, packed weight, bias, out), not yet scheduled, with an epilogue.

    Raises WorkloadError for what is no epilogue.
    """
    if epilogue == "none":
        return func
    wanted, out, bias = operands_of(epilogue), func.params[3], func.params[2]
    numbers = {name: tirx.Var(name, "float32") for name in wanted.numbers}
    vectors = {n: tirx.decl_buffer(bias.ty.shape, bias.ty.dtype, n) for n in wanted.vectors}
    tensors = {n: tirx.decl_buffer(out.ty.shape, out.ty.dtype, n) for n in wanted.tensors}
    finish = _Finish(epilogue, bias, numbers, vectors, tensors)

    def on_block(block: SBlock) -> SBlock:
        return finish.block(block) if str(block.name_hint) == "out" else block

    body = tvm_ffi.structural_map(func.body, [(SBlock, on_block)], order="post")
    plain = list(func.params)
    operands, workspaces = plain[: arguments.OPERANDS], plain[arguments.OPERANDS :]
    beside = [*vectors.values(), *tensors.values()]
    params = arguments.ordered(operands, workspaces, numbers.values(), beside)
    return tirx.PrimFunc(params, body, func.ret_type, func.attrs)


class _Reader:
    """The statements of an epilogue, checked, and the names that they read."""

    def __init__(self, epilogue: str) -> None:
        self.text = epilogue
        try:
            self.statements = ast.parse(_text(epilogue)).body
        except (SyntaxError, ValueError):
            raise self._refusal("no expression") from None
        if not self.statements or not isinstance(self.statements[-1], ast.Expr):
            raise self._refusal("no value at its end")
        self.read: set[str] = set()
        known = {"x"}
        for statement in self.statements[:-1]:
            if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
                raise self._refusal("a statement that assigns nothing")
            self._check(statement.value, known)
            known.add(ast.unparse(statement.targets[0]))
        self._check(self.statements[-1].value, known)

    def value(self, names: Mapping[str, Any]) -> Any:
        """What it computes, given the value of each name."""
        known = dict(names)
        for statement in self.statements[:-1]:
            assert isinstance(statement, ast.Assign)
            known[ast.unparse(statement.targets[0])] = self._evaluate(statement.value, known)
        last = self.statements[-1]
        assert isinstance(last, ast.Expr)
        return self._evaluate(last.value, known)

    def _check(self, node: ast.expr, known: set[str]) -> None:
        if isinstance(node, ast.Name):
            if node.id in known:
                return
            operand = node.id in (*_BOUNDS, _RESIDUAL)
            if not (operand or _TENSOR.fullmatch(node.id) or _VECTOR.fullmatch(node.id)):
                raise self._refusal(f"the unknown name {node.id}")
            self.read.add(node.id)
        elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            self._check(node.left, known)
            self._check(node.right, known)
        elif _is_comparison(node):
            self._check(node.left, known)
            self._check(node.comparators[0], known)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            self._check(node.operand, known)
        elif isinstance(node, ast.Call) and not node.keywords:
            if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
                raise self._refusal(f"the unknown function {ast.unparse(node.func)}")
            for argument in node.args:
                self._check(argument, known)
        elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
            raise self._refusal(ast.unparse(node))

    def _evaluate(self, node: ast.expr, known: Mapping[str, Any]) -> Any:
        if isinstance(node, ast.Name):
            return known[node.id]
        if isinstance(node, ast.BinOp):
            sides = (self._evaluate(side, known) for side in (node.left, node.right))
            return _BINARY[type(node.op)](*sides)
        if isinstance(node, ast.Compare):
            sides = (self._evaluate(side, known) for side in (node.left, node.comparators[0]))
            return _BINARY[type(node.ops[0])](*sides)
        if isinstance(node, ast.UnaryOp):
            if isinstance(node.operand, ast.Constant):
                return tirx.const(-float(node.operand.value), "float32")  # type: ignore[arg-type]
            return 0.0 - self._evaluate(node.operand, known)
        if isinstance(node, ast.Call):
            function = FUNCTIONS[ast.unparse(node.func)]
            return function(*(self._evaluate(argument, known) for argument in node.args))
        assert isinstance(node, ast.Constant)
        return tirx.const(float(node.value), "float32")  # type: ignore[arg-type]

    def _refusal(self, found: str) -> WorkloadError:
        return WorkloadError(
            f"epilogue {self.text!r}: found {found}; expected one of {', '.join(EPILOGUES)}, or an "
            f"expression of x, r0, c0, numbers and {', '.join(FUNCTIONS)}"
        )


def is_named(epilogue: Any) -> bool:
    """Whether a library may have it: it is no expression, whose arguments a plan would not know."""
    return isinstance(epilogue, str) and (epilogue in _NAMED or bool(expression(epilogue)))


def _text(epilogue: str) -> str:
    return _NAMED.get(epilogue) or expression(epilogue) or epilogue


def _bounded(plain: Any, careful: Any, a: Any, b: Any) -> Any:
    """An extreme of two, NaN where one is; a bound of a call, which never is, comes first."""
    return (plain if isinstance(a, tirx.Var) else careful)(a, b)


def _is_comparison(node: ast.expr) -> TypeGuard[ast.Compare]:
    return isinstance(node, ast.Compare) and [type(op) for op in node.ops] in ([ast.Lt], [ast.Gt])


@dataclass(frozen=True)
class _Finish:
    """An epilogue with its parameters, for the block `out`."""

    epilogue: str
    bias: Any
    numbers: Mapping[str, Any]
    vectors: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def block(self, block: SBlock) -> SBlock:
        """The block with the epilogue of its one store's value."""
        test = block.body if isinstance(block.body, tirx.IfThenElse) else None
        store, region = test.then_case if test else block.body, block.writes[0].region
        value = store.value.value if isinstance(store.value, tirx.Cast) else store.value
        channel = self._channel(value) if self.vectors else None
        names = {
            "x": value,
            **self.numbers,
            **{n: buffer[channel].astype("float32") for n, buffer in self.vectors.items()},
            **{n: t[tuple(store.indices)].astype("float32") for n, t in self.tensors.items()},
        }
        finished = _Reader(self.epilogue).value(names).astype(str(store.buffer.dtype))
        reads = [tirx.BufferRegion(t, region) for t in self.tensors.values()]
        whole = [tirx.BufferRegion(v, [Range(0, v.ty.shape[0])]) for v in self.vectors.values()]
        body = tirx.BufferStore(store.buffer, finished, store.indices)
        return SBlock(
            block.iter_vars,
            [*block.reads, *reads, *whole],
            block.writes,
            block.name_hint,
            tirx.IfThenElse(test.condition, body, None) if test else body,
            block.init,
            block.alloc_buffers,
            block.match_buffers,
            block.annotations,
        )

    def _channel(self, value: Any) -> Any:
        """The index of the channel, which is that of the bias; the last one's where channels only
        fill a block."""
        found: list[Any] = []

        def on_load(load: TensorLoad) -> None:
            if load.source.same_as(self.bias):
                found.append(load.indices[0])

        tvm_ffi.structural_walk(value, (TensorLoad, on_load), order="pre")
        last = int(self.bias.ty.shape[0]) - 1
        guarded = not isinstance(value, tirx.Add) or not isinstance(value.b, TensorLoad)
        return tirx.min(found[0], last) if guarded else found[0]
