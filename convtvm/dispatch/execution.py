"""Running a model: prebuilt calls over one arena, bound to the caller's tensors.

A kernel takes DLPack tensors. Those of the arena and of the weights are made once; those over the
caller's memory when a call brings other memory than the last one did.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tvm_ffi

from convtvm.dispatch.model_manifest import Call, ModelManifest, Value
from convtvm.dispatch.pages import paged_empty
from convtvm.dispatch.tensors import memory_at
from convtvm.problem.reference import ALIGNMENT, Array

Function = Callable[..., Any]


class Fixed:
    """The arrays that all calls share: weights as they are in the file, and packed ones, made
    here."""

    def __init__(
        self,
        manifest: ModelManifest,
        weights: Sequence[Array],
        functions: Mapping[str, Function],
    ) -> None:
        self.arrays: dict[int, Array] = {}
        for number, index in manifest.constants.items():
            value = manifest.values[number]
            self.arrays[number] = _shaped(weights[index][: value.bytes], value)
        self.arrays |= _side_by_side({n: manifest.values[n] for n in manifest.packed})
        for alias in manifest.aliases:
            root = manifest.root(alias)
            if root in self.arrays:
                self.arrays[alias] = _shaped(self.arrays[root], manifest.values[alias])
        self.tensors = {n: tvm_ffi.from_dlpack(array) for n, array in self.arrays.items()}
        for call in manifest.packs:
            functions[call.function](*_arguments(call, self.tensors))


class Execution:
    """Memory for one call at a time: the arena, and the calls with their arguments."""

    def __init__(
        self, manifest: ModelManifest, fixed: Fixed, functions: Mapping[str, Function]
    ) -> None:
        self._manifest = manifest
        self._arena = paged_empty(manifest.arena_bytes)
        self._arrays = dict(fixed.arrays)
        for number in range(len(manifest.values)):
            root = manifest.root(number)
            if root in manifest.offsets:
                value, start = manifest.values[number], manifest.offsets[root]
                self._arrays[number] = _shaped(self._arena[start : start + value.bytes], value)
        tensors = dict(fixed.tensors)
        tensors |= {
            number: tvm_ffi.from_dlpack(array)
            for number, array in self._arrays.items()
            if number not in tensors
        }
        self.calls = [
            (functions[call.function], _arguments(call, tensors)) for call in manifest.steps
        ]
        self._places = {
            root: _Place(manifest, root, self.calls)
            for root in (*manifest.inputs.values(), *manifest.written)
        }

        self._bound: tuple[int, ...] = ()
        self._copies: list[tuple[Array, Array]] = []

    def bind(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Let the next run read inputs from and write outputs to these addresses, in the order of
        the manifest."""
        addresses = (*sources, *targets)
        if addresses == self._bound:
            return
        self._bound = ()  # should this be interrupted, the next call must not take it for done
        manifest = self._manifest
        for root, address in zip(manifest.inputs.values(), sources, strict=True):
            self._places[root].bind(address)
        copied = []
        for address, (name, number) in zip(targets, manifest.outputs.items(), strict=True):
            if manifest.written.get(manifest.root(number)) == name:
                self._places[manifest.root(number)].bind(address)
            else:
                copied.append((address, number))
        # Outputs that no step writes: inputs, weights, another output again.
        self._copies = [
            (_at(address, manifest.values[number]), self.array(number))
            for address, number in copied
        ]
        self._bound = addresses

    def run(self) -> None:
        """One pass over bound memory."""
        for function, arguments in self.calls:
            function(*arguments)
        self._copy_outputs()

    def timed(self) -> list[float]:
        """One pass; seconds of each step."""
        seconds = []
        for function, arguments in self.calls:
            started = time.perf_counter()
            function(*arguments)
            seconds.append(time.perf_counter() - started)
        self._copy_outputs()
        return seconds

    def array(self, number: int) -> Array:
        """A value's memory; what a step wrote there holds until another reuses it."""
        if number in self._arrays:
            return self._arrays[number]
        return self._places[self._manifest.root(number)].array(number)

    def _copy_outputs(self) -> None:
        for target, source in self._copies:
            target[...] = source


class _Place:
    """A value in the caller's memory, with its aliases, and where calls have it as an argument."""

    def __init__(
        self, manifest: ModelManifest, root: int, calls: Sequence[tuple[Function, list[Any]]]
    ) -> None:
        self._values = {root: manifest.values[root]}
        for alias in manifest.aliases:
            if manifest.root(alias) == root:
                self._values[alias] = manifest.values[alias]
        self._uses = [
            (arguments, position, argument)
            for call, (_, arguments) in zip(manifest.steps, calls, strict=True)
            for position, argument in enumerate(call.arguments)
            if isinstance(argument, int) and argument in self._values
        ]
        self._address = 0

    def bind(self, address: int) -> None:
        """Have the calls use this memory. It is not kept alive: it is the caller's."""
        if address == self._address:
            return
        self._address = 0  # until all calls have it: this may be interrupted
        arrays = {n: _at(address, value) for n, value in self._values.items()}
        tensors = {n: tvm_ffi.from_dlpack(array) for n, array in arrays.items()}
        for arguments, position, number in self._uses:
            arguments[position] = tensors[number]
        self._address = address

    def array(self, number: int) -> Array:
        return _at(self._address, self._values[number])


def _arguments(call: Call, tensors: Mapping[int, Any]) -> list[Any]:
    """The arguments of a call as functions take them; None for what is bound later."""
    return [a if isinstance(a, float) else tensors.get(a) for a in call.arguments]


def _side_by_side(values: Mapping[int, Value]) -> dict[int, Array]:
    """Memory for all of these in one piece, in their order."""
    spans: list[tuple[int, int]] = []
    end = 0
    for value in values.values():
        spans.append((end, end + value.bytes))
        end += -(-value.bytes // ALIGNMENT) * ALIGNMENT
    memory = paged_empty(end)
    return {
        number: _shaped(memory[start:stop], value)
        for (number, value), (start, stop) in zip(values.items(), spans, strict=True)
    }


def _at(address: int, value: Value) -> Array:
    return _shaped(memory_at(address, value.bytes), value)


def _shaped(memory: Array, value: Value) -> Array:
    return memory.reshape(-1).view(np.dtype(value.dtype)).reshape(value.shape)
