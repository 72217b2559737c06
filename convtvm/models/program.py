"""A program: a whole model as a static list of calls of functions on numbered values.

What the graph passes hand to the compiler of models. Nothing in it is decided at run time: every
shape is known, a step is one call. A value is one of

    input       memory of the caller, or a copy of it
    constant    an array of the model
    packed      made from constants by `packs`, once, when the model is loaded: a packed weight
                that is larger than the weight need not be stored
    alias       another shape of the memory of another value of as many bytes
    computed    by the one step that writes it

An output may be any of them. `sound` says whether a program keeps these rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import tvm
from tvm import tirx
from tvm.tirx.buffer import is_buffer_var

from convtvm.dispatch.model_manifest import DTYPES
from convtvm.errors import BuildError
from convtvm.kernels.task import Task
from convtvm.problem import arguments


@dataclass(frozen=True)
class Tensor:
    """Shape and dtype (one of DTYPES) of a value; contiguous, in C order."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {'x'.join(map(str, self.shape)) or 'scalar'}"


@dataclass(frozen=True, eq=False)
class ConvKernel:
    """The kernel of a task, with its epilogue, by these decisions.

    Its arguments are those of `convtvm.problem.arguments`: data, packed weight, bias, out, low and
    high where the epilogue is `clip` or `add`, the residual where it is `add`.
    """

    task: Task
    decisions: Mapping[str, int]

    @cached_property
    def signature(self) -> tirx.PrimFunc:
        """A function with the parameters of the kernel."""
        return self.task.compute(self.decisions)


@dataclass(frozen=True, eq=False)
class PackKernel:
    """The packing function of a task: weight, packed weight."""

    task: Task

    @cached_property
    def signature(self) -> tirx.PrimFunc:
        """A function with the parameters of the packing."""
        return self.task.pack()


Function: TypeAlias = ConvKernel | PackKernel | tirx.PrimFunc


@dataclass(frozen=True)
class Step:
    """One call. `inputs` are values by number (int) and scalars (float), `outputs` values.

    Both are in the order of the function's parameters. Where the outputs stand among the inputs is
    the function's: after data, packed weight and bias for a ConvKernel, at the end for all others.
    `label` names the operator for `run --profile` and for errors, such as "conv2d_3+relu".
    """

    label: str
    function: str
    inputs: tuple[int | float, ...]
    outputs: tuple[int, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        """The values among the inputs."""
        return tuple(i for i in self.inputs if isinstance(i, int))


@dataclass
class Program:
    """`values` by number; `inputs` and `outputs` by the model's names, in its order; `aliases` maps
    a value to the one whose memory it is. `functions` by the names that steps use: a kernel of a
    task, or a scheduled PrimFunc."""

    values: list[Tensor]
    inputs: dict[str, int]
    outputs: dict[str, int]
    constants: dict[int, np.ndarray] = field(default_factory=dict)
    packs: list[Step] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    functions: dict[str, Function] = field(default_factory=dict)
    aliases: dict[int, int] = field(default_factory=dict)

    def root(self, value: int) -> int:
        """The value whose memory `value` is, itself if it is no alias."""
        while value in self.aliases:
            value = self.aliases[value]
        return value

    def arguments(self, step: Step) -> list[int | float]:
        """All arguments of a step's call in the order of the function's parameters."""
        place = len(step.inputs)
        if isinstance(self.functions[step.function], ConvKernel):
            place = arguments.OPERANDS - 1
        return [*step.inputs[:place], *step.outputs, *step.inputs[place:]]

    def check(self) -> None:
        """Raise BuildError, naming the step or the value, unless the program is sound."""
        for complaint in _complaints(self):
            raise BuildError(f"the program of the model is unsound: {complaint}")


def _complaints(program: Program) -> Iterator[str]:
    """What is wrong, in an order in which each check may rely on those before it."""
    yield from _about_values(program)
    yield from _about_aliases(program)
    yield from _about_names(program)
    defined: dict[int, str] = {}
    for value in (*program.inputs.values(), *program.constants):
        if value in program.aliases:
            yield f"value {value} is an input or a constant, and an alias of another value"
        if value in defined:
            yield f"value {value} is more than one input or constant"
        defined[value] = "an input or a constant"
    packable = dict.fromkeys(program.constants, "")
    for kind, steps in (("pack", program.packs), ("step", program.steps)):
        for index, step in enumerate(steps):
            where = f"{kind} {index} ({step.label})"
            for text in _about_step(program, step, packable if kind == "pack" else defined):
                yield f"{where}: {text}"
            for value in map(program.root, step.outputs):
                if value in defined:
                    yield f"{where}: writes value {value}, which is {defined[value]} already"
                defined[value] = f"written by {where}"
                if kind == "pack":
                    packable[value] = ""
    for name, value in program.outputs.items():
        if program.root(value) not in defined:
            yield f"output {name!r} is value {value}, which nothing computes"


def _about_values(program: Program) -> Iterator[str]:
    for number, tensor in enumerate(program.values):
        if tensor.dtype not in DTYPES:
            yield f"value {number} is {tensor.dtype}, expected one of {', '.join(DTYPES)}"
        if not all(type(extent) is int and extent > 0 for extent in tensor.shape):
            yield f"value {number} has shape {tensor.shape}, expected whole numbers above 0"
    for number, array in program.constants.items():
        if not _is_value(program, number):
            yield f"constant {number!r}: there are {len(program.values)} values"
        else:
            found = Tensor(tuple(array.shape), str(array.dtype))
            if found != program.values[number]:
                yield f"constant {number} is {found}, its value {program.values[number]}"


def _about_aliases(program: Program) -> Iterator[str]:
    for alias, value in program.aliases.items():
        if not _is_value(program, alias) or not _is_value(program, value):
            yield f"alias {alias!r} of {value!r}: there are {len(program.values)} values"
        else:
            ends = program.values[alias], program.values[value]
            if ends[0].bytes != ends[1].bytes:
                yield f"value {alias}, {ends[0]}, is an alias of {value}, {ends[1]}"
    for alias in program.aliases:
        seen, value = {alias}, program.aliases[alias]
        while value in program.aliases and value not in seen:
            seen.add(value)
            value = program.aliases[value]
        if value in seen:
            yield f"value {alias} is an alias of itself"


def _about_names(program: Program) -> Iterator[str]:
    for kind, names in (("input", program.inputs), ("output", program.outputs)):
        for name, value in names.items():
            if not _is_value(program, value):
                yield f"{kind} {name!r} is {value!r}, but there are {len(program.values)} values"
    if not program.outputs:
        yield "it has no output"


def _is_value(program: Program, number: object) -> bool:
    return type(number) is int and 0 <= number < len(program.values)


def _about_step(program: Program, step: Step, defined: Mapping[int, str]) -> Iterator[str]:
    if step.function not in program.functions:
        yield f"there is no function {step.function!r}"
        return
    for number in (*step.reads, *step.outputs):
        if not _is_value(program, number):
            yield f"uses value {number!r}, but there are {len(program.values)} values"
            return
    for number in step.reads:
        if program.root(number) not in defined:
            yield f"reads value {number} before it is computed"
    if not step.outputs:
        yield "writes nothing"
    yield from _about_arguments(program, step)


def _about_arguments(program: Program, step: Step) -> Iterator[str]:
    """Each argument beside the parameter that it is for."""
    function = program.functions[step.function]
    func = function if isinstance(function, tirx.PrimFunc) else function.signature
    given = program.arguments(step)
    if len(given) != len(func.params):
        yield (
            f"has {len(given)} inputs and outputs, but {step.function} has "
            f"{len(func.params)} parameters"
        )
        return
    for position, (argument, param) in enumerate(zip(given, func.params, strict=True)):
        found = program.values[argument] if isinstance(argument, int) else "a number"
        expected = _expected(param)
        if found != expected:
            yield f"argument {position} of {step.function} is {found}, expected {expected}"


def _expected(param: tvm.ir.Var) -> Tensor | str:
    if not is_buffer_var(param):
        return "a number"
    shape: Sequence[tirx.PrimExpr] = param.ty.shape
    extents = [int(e) if isinstance(e, tirx.IntImm) else -1 for e in shape]
    return Tensor(tuple(extents), str(param.ty.dtype))
