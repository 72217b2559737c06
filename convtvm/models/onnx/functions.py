"""Operators that ONNX defines by others: what they are made of."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, inliner

from convtvm.models.constants import static_shape
from convtvm.models.onnx.node import Node

_numbers = itertools.count()


@dataclass(frozen=True)
class Parts:
    """A graph with the operands that a node has as inputs; the names in it of the node's outputs,
    empty for those that it does not have."""

    graph: onnx.GraphProto
    opset: int
    outputs: tuple[str, ...]


def parts_of(node: Node) -> Parts | None:
    """What ONNX makes a node of; None for an operator that it defines no function of. Raises
    ModelError where onnx cannot say."""
    try:
        schema = onnx.defs.get_schema(node.proto.op_type, node.opset)
    except onnx.defs.SchemaError:
        return None
    if not (schema.has_function or schema.has_context_dependent_function):
        return None
    prefix = f"part_{next(_numbers)}_"
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    for index, name in enumerate(node.proto.input):
        proto.input[index] = name and f"{prefix}in{index}"
    for index, name in enumerate(node.proto.output):
        proto.output[index] = name and f"{prefix}out{index}"
    inputs = [
        helper.make_tensor_value_info(name, _element(node, index), static_shape(node.input(index)))
        for index, name in enumerate(proto.input)
        if name
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in proto.output if name]
    graph = helper.make_graph([proto], prefix, inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", node.opset)])
    try:
        made = inliner.inline_selected_functions(
            model, [("", node.proto.op_type)], inline_schema_functions=True
        )
    except RuntimeError as error:  # onnx takes no operand left out before one that is given
        raise node.fails(
            "is defined by other operators, but cannot be taken apart: give all of its operands, "
            "or export it as those operators"
        ) from error
    if any(part.op_type == node.proto.op_type for part in made.graph.node):
        return None
    opset = next(one.version for one in made.opset_import if one.domain in ("", "ai.onnx"))
    return Parts(made.graph, opset, tuple(proto.output))


def _element(node: Node, index: int) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(node.dtype(index)))
