"""The function anew: every layer as one call of its kernel, layouts as assigned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import tvm
from tvm import relax

from convtvm.models.blocked import blocked_shape, to_blocks, to_plain
from convtvm.models.constants import op_name
from convtvm.models.convolutions import Convolution
from convtvm.models.dataflow import Dataflow, shape_of
from convtvm.models.layouts import Assignment
from convtvm.models.transposed import spread

_RESHAPES = ("relax.expand_dims", "relax.squeeze", "relax.flatten")


def rewritten(
    source: tvm.IRModule, flow: Dataflow, layers: Sequence[Convolution], chosen: Assignment
) -> tvm.IRModule:
    """The module `source` with another `main`, in which kernels are external functions "layer.0",
    "layer.1" ... of data and the tensors of the epilogue, in the shapes of the kernel's layout."""
    return _Rewriter(source, flow, layers, chosen).module()


class _Rewriter:
    def __init__(
        self,
        source: tvm.IRModule,
        flow: Dataflow,
        layers: Sequence[Convolution],
        chosen: Assignment,
    ) -> None:
        others = {var: f for var, f in source.functions.items() if var.name_hint != "main"}
        self.flow, self.chosen = flow, chosen
        self.builder = relax.BlockBuilder(tvm.IRModule(others))
        self.layers = {layer.epilogue.sink: (i, layer) for i, layer in enumerate(layers)}
        self.absorbed = {at for layer in layers for at in (layer.start, *layer.epilogue.absorbed)}
        # A variable of the old function in NCHW, or whatever its shape says, and in blocks.
        self.plain: dict[relax.Var, relax.Expr] = {}
        self.packed: dict[relax.Var, relax.Expr] = {}

    def module(self) -> tvm.IRModule:
        function = self.flow.function
        params = [relax.Var(var.name, var.ty) for var in function.params]
        self.plain = dict(zip(function.params, params, strict=True))
        with self.builder.function("main", params):
            with self.builder.dataflow():
                for at, binding in enumerate(self.flow.bindings):
                    self._bind(at, binding)
                result = self.builder.emit_output(self._plain(function.body.body))
            self.builder.emit_func_output(result)
        return self.builder.finalize()

    def _bind(self, at: int, binding: relax.Binding) -> None:
        var, value = binding.var, binding.value
        if at in self.layers:
            index, layer = self.layers[at]
            is_blocked = self.chosen.is_blocked(layer)
            (self.packed if is_blocked else self.plain)[var] = self._layer(index, layer, var)
        elif at in self.absorbed:
            return
        elif var in self.chosen.operators:
            rule = self.chosen.operators[var]
            operands = [self._packed(operand) for operand in rule.operands]
            self.packed[var] = self._emit(rule.make(self.builder, operands), var)
        else:
            value = self._plain(value)
            if isinstance(value, relax.Call) and op_name(value) in _RESHAPES:
                value = relax.op.reshape(value.args[0], shape_of(var))
            self.plain[var] = self._emit(value, var)

    def _layer(self, index: int, layer: Convolution, var: relax.Var) -> relax.Expr:
        task = self.chosen.kernels[layer.start].task
        data, out = (task.workload.data_shape(task.layout), task.workload.out_shape(task.layout))
        is_blocked = self.chosen.is_blocked(layer)
        tensors = layer.epilogue.tensors
        reads_blocks = is_blocked and not self.chosen.is_entry(layer)
        operands = [(layer.data, data, reads_blocks), *((t, out, is_blocked) for t in tensors)]
        args = [
            self._packed(expr) if packed else self._shaped(self._plain(expr), shape)
            for expr, shape, packed in operands
        ]
        ty = relax.TensorType(out, "float32")
        made = self._emit(relax.call_dps_packed(f"layer.{index}", args, ty), var)
        if layer.phases is not None:
            spreads = partial(spread, layer.phases)
            made = self.builder.emit_te(spreads, made, primfunc_name_hint="spread")
        return made if is_blocked else self._shaped(made, shape_of(var) or ())

    def _shaped(self, expr: relax.Expr, shape: Sequence[int]) -> relax.Expr:
        if shape_of(expr) == tuple(shape):
            return expr
        return self.builder.emit(relax.op.reshape(expr, shape))

    def _emit(self, value: relax.Expr, var: relax.Var) -> relax.Expr:
        if isinstance(value, tvm.ir.GenericConst):
            return value
        return self.builder.emit(value, var.name)

    def _packed(self, expr: relax.Expr) -> relax.Expr:
        """A tensor of the old function in blocks, converted once if it is not yet."""
        if expr not in self.packed:
            self.packed[expr] = self.builder.emit(
                to_blocks(self.builder, self._plain(expr), self.chosen.block)
            )
        assert shape_of(self.packed[expr]) == blocked_shape(shape_of(expr), self.chosen.block)
        return self.packed[expr]

    def _plain(self, expr: relax.Expr) -> relax.Expr:
        """An expression of the old function over the new one's variables."""
        if isinstance(expr, relax.Var):
            if expr not in self.plain:
                self.plain[expr] = self.builder.emit(to_plain(self.builder, self.packed[expr]))
            return self.plain[expr]
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._plain(part) for part in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self._plain(expr.tuple_value), expr.index)
        if isinstance(expr, relax.Call):
            args = [self._plain(arg) for arg in expr.args]
            return relax.Call(expr.op, args, expr.attrs, expr.ty_args)
        return expr
