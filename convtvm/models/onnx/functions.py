"""Operators that ONNX defines by others: what they are made of."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper

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
    """What ONNX makes a node of; None for an operator that it defines no function of, not for this
    node or not in this opset."""
    try:
        schema = onnx.defs.get_schema(node.proto.op_type, node.opset)
    except onnx.defs.SchemaError:
        return None
    function = _function(node, schema)
    if function is None or any(p.op_type == node.proto.op_type for p in function.node):
        return None
    prefix = f"part_{next(_numbers)}_"
    inputs = [name and f"{prefix}in{i}" for i, name in enumerate(node.proto.input)]
    outputs = [name and f"{prefix}out{i}" for i, name in enumerate(node.proto.output)]
    known = dict.fromkeys((*function.input, ""), "")  # operands that the node does not have
    known |= dict(zip(function.input, inputs, strict=False))
    known |= {f: name for f, name in zip(function.output, outputs, strict=False) if name}
    given = {n: a.default_value for n, a in schema.attributes.items() if a.default_value.type}
    given |= {attribute.name: attribute for attribute in node.proto.attribute}
    graph = helper.make_graph(
        [_renamed(part, known, prefix, given) for part in function.node],
        prefix,
        [helper.make_empty_tensor_value_info(name) for name in inputs if name],
        [helper.make_empty_tensor_value_info(name) for name in outputs if name],
    )
    opset = next(one.version for one in function.opset_import if one.domain in ("", "ai.onnx"))
    return Parts(graph, opset, tuple(outputs))


def _function(node: Node, schema: Any) -> onnx.FunctionProto | None:
    """The newest definition that the node's opset has."""
    by_context = schema.has_context_dependent_function
    versions = (
        schema.context_dependent_function_opset_versions
        if by_context
        else schema.function_opset_versions
    )
    version = max((v for v in versions if v <= node.opset), default=0)
    if not version:
        return None
    if not by_context:
        return onnx.FunctionProto.FromString(schema.get_function_with_opset_version(version))
    types = [
        _type(node, index).SerializeToString() if name else b""
        for index, name in enumerate(node.proto.input)
    ]
    made = schema.get_context_dependent_function_with_opset_version(
        version, node.proto.SerializeToString(), types
    )
    return onnx.FunctionProto.FromString(made) if made else None


def _type(node: Node, index: int) -> onnx.TypeProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(node.dtype(index)))
    return helper.make_tensor_type_proto(element, static_shape(node.input(index)))


def _renamed(
    part: onnx.NodeProto,
    known: Mapping[str, str],
    prefix: str,
    given: Mapping[str, AttributeProto],
) -> onnx.NodeProto:
    """A node of a definition: the names of operands and results as they are `known`, all others
    with a prefix; attributes that stand for the operator's own as they are `given`."""

    def name_of(name: str) -> str:
        return known[name] if name in known else prefix + name

    made = onnx.NodeProto()
    made.CopyFrom(part)
    del made.attribute[:]
    for names in (made.input, made.output):
        names[:] = [name_of(name) for name in names]
    for attribute in part.attribute:
        own = given.get(attribute.ref_attr_name) if attribute.ref_attr_name else None
        if attribute.ref_attr_name and own is None:
            continue  # one that the node does not have
        copy = made.attribute.add()
        copy.CopyFrom(own or attribute)
        copy.name = attribute.name
        if own is None and copy.HasField("g"):
            _rename_graph(copy.g, known, prefix, given)
    return made


def _rename_graph(
    graph: onnx.GraphProto,
    known: Mapping[str, str],
    prefix: str,
    given: Mapping[str, AttributeProto],
) -> None:
    """The same within a graph that a node holds."""
    nodes = [_renamed(part, known, prefix, given) for part in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = known[value.name] if value.name in known else prefix + value.name
