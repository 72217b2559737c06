"""From the rewritten function to a program: values, constants, packed weights, steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.s_tir import SBlockRealize, ScheduleError

from convtvm.compute.epilogue import operands_of
from convtvm.errors import BuildError
from convtvm.kernels.codegen import accept_unaligned
from convtvm.kernels.task import Task
from convtvm.machine.targets import CompileTarget
from convtvm.models.constants import op_name
from convtvm.models.convolutions import Convolution
from convtvm.models.imported import Imported
from convtvm.models.layouts import Assignment
from convtvm.models.program import ConvKernel, Function, PackKernel, Program, Step, Tensor
from convtvm.models.schedule import schedule


def program_of(
    module: tvm.IRModule,
    imported: Imported,
    layers: Sequence[Convolution],
    chosen: Assignment,
    target: CompileTarget,
) -> Program:
    """The program of a module whose `main` calls "layer.0" ... and functions without schedule."""
    return _Writer(module, imported, layers, chosen, target).program()


@dataclass
class _Writer:
    module: tvm.IRModule
    imported: Imported
    layers: Sequence[Convolution]
    chosen: Assignment
    target: CompileTarget
    made: Program = field(default_factory=lambda: Program([], {}, {}))
    numbers: dict[relax.Var, int] = field(default_factory=dict)
    tuples: dict[relax.Var, list[int]] = field(default_factory=dict)
    _packed: dict[tuple, int] = field(default_factory=dict)
    _names: dict[tuple, str] = field(default_factory=dict)

    def program(self) -> Program:
        function = self.module["main"]
        for port, var in zip(self.imported.inputs, function.params, strict=True):
            self.numbers[var] = self.made.inputs[port.name] = self._value(var)
        for block in function.body.blocks:
            for binding in block.bindings:
                self._bind(binding.var, binding.value)
        results = self._values(function.body.body)
        for port, number in zip(self.imported.outputs, results, strict=True):
            self.made.outputs[port.name] = number
        self.made.check()
        return self.made

    def _bind(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.Call) and op_name(value) == "relax.call_dps_packed":
            self._layer(var, value)
        elif isinstance(value, relax.Call) and op_name(value) == "relax.call_tir":
            self._operator(var, value)
        elif isinstance(value, relax.Call) and op_name(value) == "relax.reshape":
            (source,) = self._values(value.args[0])
            self.numbers[var] = number = self._value(var)
            self.made.aliases[number] = source
        elif isinstance(value, relax.Call):
            raise BuildError(f"operator {op_name(value)} ({var.name}) has no kernel for a CPU")
        else:
            numbers = self._values(value)
            if isinstance(value, relax.Tuple):
                self.tuples[var] = numbers
            else:
                (self.numbers[var],) = numbers

    def _layer(self, var: relax.Var, call: relax.Call) -> None:
        """The step of a kernel, and the one that packs its weight."""
        layer = self.layers[int(str(call.args[0].global_symbol).partition(".")[2])]
        choice = self.chosen.kernels[layer.start].choice
        task = replace(choice.task, epilogue=layer.epilogue.text)
        data, *tensors = self._values(call.args[1])
        numbers, wanted = [data, self._weight(layer, choice.task)], operands_of(task.epilogue)
        vectors = layer.vectors[: len(wanted.vectors)]
        numbers += [self._constant(v) for v in (layer.bias, *vectors)]
        decisions = tuple(sorted(choice.decisions.items()))
        key = (task, decisions)
        name = self._function(
            key, f"conv_{task.algorithm_name}", lambda: ConvKernel(task, choice.decisions)
        )
        self.numbers[var] = out = self._value(var)
        label = f"{layer.label} {task.algorithm_name} {task.layout}"
        self.made.steps.append(Step(label, name, (*numbers, *tensors), (out,)))

    def _weight(self, layer: Convolution, task: Task) -> int:
        """The number of the packed weight; layers that share a weight share what is packed."""
        pack = task.pack()
        key = (id(layer.weight), tvm_ffi.structural_hash(pack))
        if key not in self._packed:
            name = self._function(
                ("pack", tvm_ffi.structural_hash(pack)), "pack", lambda: PackKernel(task)
            )
            self._packed[key] = packed = self._add(Tensor(task.packed_shape()))
            weight = self._constant(layer.weight)
            step = Step(f"pack {layer.name} {task.algorithm_name}", name, (weight,), (packed,))
            self.made.packs.append(step)
        return self._packed[key]

    def _operator(self, var: relax.Var, call: relax.Call) -> None:
        """The step of a function of the module."""
        func = self.module[call.args[0]]
        name = call.args[0].name_hint
        self._function((name,), name, lambda: _scheduled(func, name, self.target))
        inputs = self._values(call.args[1])
        if isinstance(var.ty, relax.TupleType):
            outputs = [self._add(_tensor(ty)) for ty in var.ty.fields]
            self.tuples[var] = outputs
        else:
            outputs = [self._value(var)]
            (self.numbers[var],) = outputs
        function = self._names[(name,)]
        self.made.steps.append(Step(f"{name} {var.name}", function, tuple(inputs), tuple(outputs)))

    def _function(self, key: tuple, hint: str, make: Callable[[], Function]) -> str:
        """The name of a function that is made once."""
        if key not in self._names:
            name = f"{hint.replace(':', '_')}_{len(self._names)}"
            self._names[key], self.made.functions[name] = name, make()
        return self._names[key]

    def _values(self, expr: relax.Expr) -> list[int]:
        """The numbers of a tensor or of all in a tuple."""
        if isinstance(expr, relax.Tuple):
            return [number for part in expr.fields for number in self._values(part)]
        if isinstance(expr, relax.TupleGetItem):
            return [self._values(expr.tuple_value)[expr.index]]
        if isinstance(expr, tvm.ir.GenericConst):
            return [self._constant(expr.value.numpy())]
        return self.tuples[expr] if expr in self.tuples else [self.numbers[expr]]

    def _constant(self, array: np.ndarray) -> int:
        for number, known in self.made.constants.items():
            if known is array:
                return number
        number = self._add(Tensor(tuple(array.shape), str(array.dtype)))
        self.made.constants[number] = array
        return number

    def _value(self, var: relax.Var) -> int:
        return self._add(_tensor(var.ty))

    def _add(self, tensor: Tensor) -> int:
        self.made.values.append(tensor)
        return len(self.made.values) - 1


def _tensor(ty: relax.TensorType) -> Tensor:
    return Tensor(tuple(int(e) for e in ty.shape), str(ty.dtype.dtype))


def _scheduled(func: tirx.PrimFunc, name: str, target: CompileTarget) -> tirx.PrimFunc:
    """The function with a schedule, taking memory that is not aligned."""
    plain = accept_unaligned(func)
    if _has_its_own_loops(func):
        return plain
    try:
        return schedule(plain, target)
    except ScheduleError as error:
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"operator {name} stays without a schedule: {reason}", stacklevel=2)
        return plain


def _has_its_own_loops(func: tirx.PrimFunc) -> bool:
    """Whether a function is one block and nothing around it: loops written out, such as a sort, or
    a single number."""
    body = func.body
    return isinstance(body, SBlockRealize) and body.block.name_hint != "root"
