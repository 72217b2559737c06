"""What a model is called with: inputs in order or by name, whole batches or several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convtvm.dispatch import tensors
from convtvm.dispatch.tensors import Port
from convtvm.errors import ArrayError


class Signature:
    """The ports of a model by name, in its order.

    `batch` is the size of the first axis that inputs and outputs share, if calls may bring
    multiples of it; else None.
    """

    def __init__(
        self, inputs: Mapping[str, Port], outputs: Mapping[str, Port], batch: int | None = None
    ) -> None:
        self.inputs, self.outputs, self.batch = dict(inputs), dict(outputs), batch

    def in_order(self, args: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        """The inputs of a call in the model's order: positional, by name, or in one mapping.

        Raises ArrayError for one that is missing, unknown or given twice.
        """
        if len(args) == 1 and isinstance(args[0], Mapping) and not named:
            named, args = args[0], ()
        if not named and len(args) == len(self.inputs):
            return list(args)
        expected = ", ".join(map(str, self.inputs.values())) or "none"
        if len(args) > len(self.inputs):
            raise ArrayError(f"found {len(args)} inputs, expected {len(self.inputs)}: {expected}")
        given = dict(zip(self.inputs, args, strict=False))
        for name, value in named.items():
            if name not in self.inputs:
                raise ArrayError(f"there is no input {name!r}, expected {expected}")
            if name in given:
                raise ArrayError(f"input {name!r} is given twice")
            given[name] = value
        missing = [name for name in self.inputs if name not in given]
        if missing:
            raise ArrayError(f"input {missing[0]!r} is missing, expected {expected}")
        return [given[name] for name in self.inputs]

    def slices(self, values: Sequence[Any]) -> int:
        """How many times the model's batch the inputs are; 1 if it takes no other. Raises
        ArrayError."""
        if self.batch is None or not values:
            return 1
        shape = tuple(getattr(values[0], "shape", ()))
        total = shape[0] if shape else self.batch
        if total < 1 or total % self.batch:
            raise ArrayError(
                f"{next(iter(self.inputs))} has a batch of {total}, expected {self.batch}, which "
                "the model was compiled for, or a multiple of it"
            )
        return int(total // self.batch)

    def take(
        self, values: Sequence[Any], out: Any, slices: int
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """The outputs as the caller's kind of tensors; then inputs and outputs as tvm_ffi tensors.

        Raises ArrayError if one does not fit, or an output overlaps another tensor.
        """
        inputs, outputs = _times(self.inputs, slices), _times(self.outputs, slices)
        sources = [port.read(value) for port, value in zip(inputs, values, strict=True)]
        if out is None:
            like = values[0] if values else np.empty(0)
            results = [port.empty_like(like) for port in outputs]
        else:
            results = list(out) if isinstance(out, (tuple, list)) else [out]
            if len(results) != len(outputs):
                raise ArrayError(f"out has {len(results)} tensors, expected {len(outputs)}")
        targets = [port.write(result) for port, result in zip(outputs, results, strict=True)]
        if out is not None:
            _check_apart(
                [*zip(sources, inputs, strict=True)], [*zip(targets, outputs, strict=True)]
            )
        return results, sources, targets


def _times(ports: Mapping[str, Port], slices: int) -> list[Port]:
    """The ports for as many batches."""
    if slices == 1:
        return list(ports.values())
    return [Port(p.name, (slices * p.shape[0], *p.shape[1:]), str(p.dtype)) for p in ports.values()]


def _check_apart(inputs: Sequence[tuple[Any, Port]], outputs: Sequence[tuple[Any, Port]]) -> None:
    for index, (tensor, port) in enumerate(outputs):
        for other, its in (*inputs, *outputs[:index]):
            if tensors.overlap(tensor.data_ptr(), port.bytes, other.data_ptr(), its.bytes):
                raise ArrayError(
                    f"{port.name} overlaps {its.name}, expected memory of its own: the call would "
                    "write one while it uses the other"
                )
