"""Relax functions in inference form: what training left behind is folded into the weights.

A function in this form has

- no dropout, no identity, no batch normalisation: each is gone, part of the weights before it, or
  a multiplication and an addition with one constant a channel;
- a convolution's bias as `add(conv, constant)`, the constant on the right and shaped
  [1, C, 1, 1]; a dense layer's as `add(matmul, constant)`, shaped [C];
- zeros around an image in the convolution's own padding;
- one form for every activation: `nn.relu`, `clip` (ReLU6 too), `sigmoid`, `tanh`, `nn.silu`,
  `nn.gelu`, `nn.gelu_tanh`, `nn.leakyrelu`, `nn.prelu`; hard-sigmoid is `clip(x * a + b, 0, 1)`
  and hard-swish `x * hard-sigmoid(x)`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import tvm
from tvm import relax

from convtvm.models.channels import LAYERS, channels_of, like, per_channel, scaled, shifted
from convtvm.models.constants import array_of, constant, folded, op_name, static_shape

_TIDY = (
    relax.transform.CanonicalizeBindings(),
    relax.transform.EliminateCommonSubexpr(),
    relax.transform.CanonicalizeBindings(),
    relax.transform.DeadCodeElimination(),
)


def inference_form(
    module: tvm.IRModule, origins: Mapping[str, str]
) -> tuple[tvm.IRModule, dict[str, str]]:
    """`module` with its function `main`, at most one dataflow block, in inference form.

    `origins` says of variables what in the original they came from; the same is returned for the
    variables of the new function.
    """
    tidy = tvm.transform.Sequential(list(_TIDY))
    simplifier = _Simplifier(tidy(module))
    module = tidy(simplifier.module())
    found = {new: origins.get(old, "") for new, old in simplifier.named_after.items()}
    bindings = [b for block in module["main"].body.blocks for b in block.bindings]
    names = [binding.var.name for binding in bindings]
    return module, {name: found[name] for name in names if found.get(name)}


def _uses(function: relax.Function) -> Counter[relax.Var]:
    """How many bindings, and the result, read every variable."""
    counted: Counter[relax.Var] = Counter()

    def count(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Var):
            counted[expr] += 1

    for block in function.body.blocks:
        for binding in block.bindings:
            relax.analysis.post_order_visit(binding.value, count)
    relax.analysis.post_order_visit(function.body.body, count)
    return counted


class _Simplifier:
    """Builds the function anew, binding by binding, so a rule sees what its operands became."""

    def __init__(self, module: tvm.IRModule) -> None:
        self.function = module["main"]
        others = {var: f for var, f in module.functions.items() if var.name_hint != "main"}
        self.builder = relax.BlockBuilder(tvm.IRModule(others))
        self.uses_before = _uses(self.function)
        self.uses: Counter[relax.Var] = Counter()
        self.became: dict[relax.Var, relax.Expr] = {}
        self.hint = ""
        self.named_after: dict[str, str] = {}  # a variable's name: the one it is made for

    def module(self) -> tvm.IRModule:
        """The module with the function in its new form."""
        params = [relax.Var(var.name, var.ty) for var in self.function.params]
        self.became = dict(zip(self.function.params, params, strict=True))
        self.uses.update({new: self.uses_before[old] for old, new in self.became.items()})
        with self.builder.function("main", params):
            with self.builder.dataflow():
                for block in self.function.body.blocks:
                    for binding in block.bindings:
                        self.bind(binding.var, binding.value)
                result = self.builder.emit_output(self.substituted(self.function.body.body))
            self.builder.emit_func_output(result)
        return self.builder.get()

    def bind(self, var: relax.Var, value: relax.Expr) -> None:
        """Let `var` be what the rules make of `value`."""
        self.hint = var.name
        value = self.simplified(self.builder.normalize(self.substituted(value)))
        uses = self.uses_before[var]
        if isinstance(value, relax.Var):
            self.uses[value] += uses - 1
        elif not isinstance(value, tvm.ir.GenericConst):
            value = self.emit(value)
            self.uses[value] = uses
        self.became[var] = value

    def substituted(self, expr: relax.Expr) -> relax.Expr:
        """`expr` over the variables of the new function."""
        if isinstance(expr, relax.Var):
            return self.became.get(expr, expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.substituted(field) for field in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self.substituted(expr.tuple_value), expr.index)
        if isinstance(expr, relax.Call):
            args = [self.substituted(arg) for arg in expr.args]
            return relax.Call(expr.op, args, expr.attrs, expr.ty_args)
        return expr

    def simplified(self, value: relax.Expr) -> relax.Expr:
        """The value, or what computes the same in inference form."""
        if isinstance(value, relax.TupleGetItem):
            return self.element(value)
        if not isinstance(value, relax.Call):
            return value
        made = folded(value)
        if made is None:
            rule = _RULES.get(op_name(value))
            made = rule(self, value) if rule else None
        return value if made is None else made

    def element(self, value: relax.TupleGetItem) -> relax.Expr:
        """The element itself where the tuple is known."""
        bound = self.bound(value.tuple_value)
        if isinstance(bound, relax.Tuple):
            return bound.fields[value.index]
        if isinstance(bound, relax.Call) and value.index == 0:
            if op_name(bound) == "relax.nn.dropout":
                return bound.args[0]
            if op_name(bound) == "relax.nn.batch_norm":
                made = _batch_norm(self, bound)
                return value if made is None else made
        return value

    def bound(self, expr: relax.Expr) -> relax.Expr | None:
        """What a variable is bound to."""
        return self.builder.lookup_binding(expr) if isinstance(expr, relax.Var) else None

    def call(self, expr: relax.Expr, *names: str) -> relax.Call | None:
        """The call of one of these operators that `expr` is bound to."""
        bound = self.bound(expr)
        is_it = isinstance(bound, relax.Call) and op_name(bound) in names
        return bound if is_it else None

    def only_call(self, expr: relax.Expr, *names: str) -> relax.Call | None:
        """The same, if nothing else reads it."""
        return self.call(expr, *names) if self.uses[expr] <= 1 else None

    def emit(self, value: relax.Expr) -> relax.Var:
        """A variable for a value that is read once."""
        var = self.builder.emit(value, self.hint)
        self.named_after[var.name] = self.hint
        self.uses[var] = 1
        return var


# --- scales and shifts -------------------------------------------------------------------------


def _batch_norm(scope: _Simplifier, call: relax.Call) -> relax.Expr | None:
    x, *statistics = call.args
    arrays = [array_of(arg) for arg in statistics]
    if call.attrs.training or any(array is None for array in arrays):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    scale = (gamma if call.attrs.scale else 1) / np.sqrt(variance + call.attrs.epsilon)
    shift = (beta if call.attrs.center else 0) - mean * scale
    axis, channels = channels_of(scope, x)
    if call.attrs.axis != axis or channels != len(scale):
        axis = int(call.attrs.axis)
        product = relax.op.multiply(x, like(scale, x, axis))
        return relax.op.add(scope.emit(product), like(shift, x, axis))
    product = scaled(scope, x, scale)
    if product is None:
        product = relax.op.multiply(x, like(scale, x, axis))
    return shifted(scope, scope.emit(product), shift)


def _ordered(call: relax.Call) -> tuple[relax.Expr, relax.Expr]:
    """The operands of a commutative call, a constant last."""
    a, b = call.args
    return (b, a) if array_of(a) is not None else (a, b)


def _multiply(scope: _Simplifier, call: relax.Call) -> relax.Expr | None:
    for x, other in (tuple(call.args), tuple(call.args)[::-1]):
        gate = scope.call(other, "relax.sigmoid")
        if gate is not None and gate.args[0].same_as(x):
            return relax.op.nn.silu(x)
    x, factor = _ordered(call)
    array = array_of(factor)
    if array is None:
        return None
    if array.size == 1 and array.item() > 0:
        gate = _hard_sigmoid(scope, x, float(array.item()))
        if gate is not None:
            return gate
    if static_shape(call) == static_shape(x):
        if array.size == 1 and array.item() == 1:
            return x
        values = per_channel(factor, x, channels_of(scope, x)[0])
        product = scaled(scope, x, values) if values is not None else None
        if product is not None:
            return product
    return relax.op.multiply(x, factor)


def _hard_sigmoid(scope: _Simplifier, x: relax.Expr, factor: float) -> relax.Expr | None:
    """`clip(y + b, 0, 1 / factor) * factor` as the one form of it; also within `z * clip(...)`."""
    product = scope.only_call(x, "relax.multiply")
    if product is not None:
        for other, inner in (tuple(product.args), tuple(product.args)[::-1]):
            gate = _hard_sigmoid(scope, inner, factor)
            if gate is not None:
                return relax.op.multiply(other, scope.emit(gate))
        return None
    clipped = scope.only_call(x, "relax.clip")
    if clipped is None or not str(x.ty.dtype.dtype).startswith("float"):
        return None
    low, high = (_number(bound) * factor for bound in clipped.args[1:3])
    added = scope.only_call(clipped.args[0], "relax.add")
    offset = array_of(added.args[1]) if added is not None else None
    if added is None or offset is None or offset.size != 1 or low != 0 or abs(high - 1) > 1e-6:
        return None
    slope = relax.op.multiply(added.args[0], constant(np.array(factor, offset.dtype)))
    moved = relax.op.add(scope.emit(slope), constant((offset * factor).astype(offset.dtype)))
    return relax.op.clip(scope.emit(moved), 0, 1)


def _divide(scope: _Simplifier, call: relax.Call) -> relax.Expr | None:
    x, divisor = call.args
    array = array_of(divisor)
    if array is None or array.dtype.kind != "f" or not array.all():
        return None
    with np.errstate(over="ignore", under="ignore"):
        inverse = (1 / array.astype(np.float64)).astype(array.dtype)
    size = np.abs(inverse)
    if not np.isfinite(size).all() or (size < np.finfo(array.dtype).tiny).any():
        return None  # a quotient may be an ordinary number where this inverse is none
    product = scope.builder.normalize(relax.op.multiply(x, constant(inverse)))
    made = _multiply(scope, product)
    return product if made is None else made


def _add(scope: _Simplifier, call: relax.Call) -> relax.Expr | None:
    x, term = _ordered(call)
    array = array_of(term)
    if array is None:
        return None
    axis, _ = channels_of(scope, x)
    values = per_channel(term, x, axis)
    if values is None or static_shape(call) != static_shape(x):
        return relax.op.add(x, term)
    if scope.call(x, *LAYERS, "relax.add") is not None:
        return shifted(scope, x, values)
    return relax.op.add(x, term) if array.any() else x


def _subtract(scope: _Simplifier, call: relax.Call) -> relax.Expr | None:
    x, term = call.args
    array = array_of(term)
    if array is None or array.dtype.kind != "f":
        return None
    total = scope.builder.normalize(relax.op.add(x, constant(-array)))
    made = _add(scope, total)
    return total if made is None else made


# --- activations and padding -------------------------------------------------------------------


def _clip(scope: _Simplifier, call: relax.Call) -> relax.Expr | None:
    x, low, high = call.args[0], _number(call.args[1]), _number(call.args[2])
    inner = scope.only_call(x, "relax.clip", "relax.nn.relu")
    if inner is not None:
        is_clip = op_name(inner) == "relax.clip"
        a, b = (_number(inner.args[1]), _number(inner.args[2])) if is_clip else (0.0, math.inf)
        x, low, high = inner.args[0], min(max(a, low), high), max(min(b, high), low)
    if x.ty.dtype.dtype.startswith("float"):
        if (low, high) == (-math.inf, math.inf):
            return x
        if (low, high) == (0, math.inf):
            return relax.op.nn.relu(x)
    return relax.op.clip(x, low, high)


def _number(expr: relax.Expr) -> float:
    """The number of a primitive value."""
    value = getattr(expr, "value", expr)
    return float(getattr(value, "value", value))


def _pad(scope: _Simplifier, call: relax.Call) -> relax.Expr | None:
    """Nothing to pad: the data itself."""
    return call.args[0] if not any(int(width) for width in call.attrs.pad_width) else None


def _convolution(scope: _Simplifier, call: relax.Call) -> relax.Expr | None:
    """Zeros around the image belong to the convolution."""
    padded = scope.call(call.args[0], "relax.nn.pad")
    if padded is None or padded.attrs.pad_mode != "constant" or _pad_value(padded) != 0:
        return None
    widths = np.array([int(width) for width in padded.attrs.pad_width]).reshape(-1, 2)
    if widths[:2].any() or (widths < 0).any():
        return None
    own = np.array([int(width) for width in call.attrs.padding]).reshape(2, -1)
    total = [int(width) for width in (own + widths[2:].T).reshape(-1)]
    make = getattr(relax.op.nn, op_name(call).removeprefix("relax.nn."))
    names = ("strides", "dilation", "groups", "data_layout", "kernel_layout")
    kept = {name: getattr(call.attrs, name) for name in names}
    return make(padded.args[0], call.args[1], padding=total, **kept)


def _pad_value(padded: relax.Call) -> float:
    return float(padded.attrs.pad_value)


_RULES: dict[str, Callable[[_Simplifier, relax.Call], relax.Expr | None]] = {
    "relax.add": _add,
    "relax.subtract": _subtract,
    "relax.multiply": _multiply,
    "relax.divide": _divide,
    "relax.clip": _clip,
    "relax.nn.pad": _pad,
    "relax.nn.conv1d": _convolution,
    "relax.nn.conv2d": _convolution,
    "relax.nn.conv3d": _convolution,
}
