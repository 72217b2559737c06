"""Programs of whole models run step by step, without an arena or a library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from support import Unoptimised

from convtvm.kernels import codegen
from convtvm.machine.targets import CompileTarget
from convtvm.models.program import ConvKernel, Function, PackKernel, Program, Step


class Executor:
    """Every function compiled, without LLVM's optimisations, every value an array of its own filled
    with NaN."""

    def __init__(self, program: Program, target: CompileTarget) -> None:
        self.program = program
        self.functions = compiled(program.functions, Unoptimised(**vars(target)))
        self.arrays = [self._empty(i) for i in range(len(program.values))]
        for number, array in program.constants.items():
            self.arrays[number][...] = array
        for alias in program.aliases:
            shape = program.values[alias].shape
            self.arrays[alias] = self.arrays[program.root(alias)].reshape(shape)
        for step in program.packs:
            self.run(step)

    def _empty(self, number: int) -> np.ndarray:
        tensor = self.program.values[number]
        array = np.empty(tensor.shape, tensor.dtype)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    def run(self, step: Step) -> None:
        given = self.program.arguments(step)
        args = [tvm_ffi.from_dlpack(self.arrays[a]) if isinstance(a, int) else a for a in given]
        self.functions[step.function](*args)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for name, number in self.program.inputs.items():
            self.arrays[number][...] = inputs[name]
        for step in self.program.steps:
            self.run(step)
        return [self.arrays[number].copy() for number in self.program.outputs.values()]


def compiled(functions: Mapping[str, Function], target: CompileTarget) -> dict[str, Any]:
    """All of them in one library, whose parallel loops run on TVM's own threads."""
    if not functions:
        return {}
    with TemporaryDirectory() as folder:
        objects, path = [], f"{folder}/functions.so"
        for name, function in functions.items():
            objects.append(f"{folder}/{len(objects)}.o")
            codegen.build(scheduled(function), name, target).write(objects[-1])
        codegen.link_objects(objects, path, replace(target, threads=1))
        library = tvm.runtime.load_module(path)
    return {name: library[name] for name in functions}


def scheduled(function: Function):
    """The scheduled TIR of a function of a program."""
    if isinstance(function, ConvKernel):
        return function.task.instantiate(function.decisions)["main"]
    return function.task.pack() if isinstance(function, PackKernel) else function
