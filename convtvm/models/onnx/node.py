"""One ONNX node in the hands of a converter: operands, attributes and constants, no protos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper
from tvm import relax

from convtvm.errors import ModelError
from convtvm.models.constants import array_of, constant, static_shape


def raw_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node by name: text as bytes, several as a tuple, graphs as protos."""
    found = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        found[attribute.name] = tuple(value) if isinstance(value, list) else value
    return found


def described(node: onnx.NodeProto) -> str:
    """How messages name a node: its name and operator, or its output where it has no name."""
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    name = node.name or (f"with output {node.output[0]}" if node.output else "without a name")
    return f"node {name} ({domain}{node.op_type})"


@dataclass
class Node:
    """An operator and its operands as Relax expressions; a missing operand is None."""

    proto: onnx.NodeProto
    attributes: dict[str, Any]
    inputs: list[relax.Expr | None]
    opset: int
    builder: relax.BlockBuilder

    def __str__(self) -> str:
        return described(self.proto)

    def fails(self, message: str) -> ModelError:
        """What to raise when this node cannot be imported."""
        return ModelError(f"{self}: {message}")

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, text as str; `default` where the node has none."""
        value = self.attributes.get(name, default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def sizes(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute of one integer an axis."""
        found = [int(size) for size in self.get(name) or default]
        if len(found) != len(default):
            raise self.fails(f"{name} has {len(found)} numbers, expected {len(default)}")
        return found

    def has(self, index: int) -> bool:
        """Is there an operand at `index`?"""
        return index < len(self.inputs) and self.inputs[index] is not None

    def input(self, index: int = 0) -> relax.Expr:
        """The operand at `index`."""
        if not self.has(index):
            raise self.fails(f"lacks its input {index}")
        return self.inputs[index]

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """The shape of an operand."""
        return static_shape(self.input(index))

    def dtype(self, index: int = 0) -> str:
        """The dtype of an operand."""
        return str(self.input(index).ty.dtype.dtype)

    def array(self, index: int, what: str) -> np.ndarray | None:
        """The constant at `index`, None where there is no operand."""
        if not self.has(index):
            return None
        array = array_of(self.input(index))
        if array is None:
            raise self.fails(
                f"its {what} is computed at run time, but what decides shapes must be known when "
                "a model is compiled; make it a constant when exporting"
            )
        return array

    def numbers(self, index: int, name: str) -> list[int] | None:
        """Integers that are an attribute in some opsets and a constant operand in others."""
        array = self.array(index, name)
        if array is not None:
            return [int(number) for number in array.reshape(-1)]
        found = self.get(name)
        return None if found is None else [int(number) for number in found]

    def axis(self, axis: int, ndim: int) -> int:
        """An axis counted from the front."""
        if not -ndim <= axis < ndim:
            raise self.fails(f"axis {axis} is out of range, its operand has {ndim} axes")
        return axis % ndim

    def axes(self, axes: Sequence[int], ndim: int) -> list[int]:
        """Axes counted from the front."""
        return [self.axis(axis, ndim) for axis in axes]

    def const(self, value: Any, index: int = 0) -> relax.Expr:
        """A constant of the dtype of an operand."""
        return constant(np.asarray(value, self.dtype(index)))

    def emit(self, expr: relax.Expr) -> relax.Var:
        """A variable for an intermediate value."""
        return self.builder.emit(expr)
