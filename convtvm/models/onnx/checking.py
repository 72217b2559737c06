"""Nodes beside ONNX's own rules, before any converter or TVM sees them."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
from onnx import checker, helper, numpy_helper, shape_inference
from tvm import relax

from convtvm.errors import ModelError
from convtvm.models.constants import array_of
from convtvm.models.onnx.node import Node
from convtvm.models.onnx.reading import LARGEST

_LARGEST = 4096  # elements of an operand that decides shapes; larger ones are weights
_LARGEST_CONSTANT = 2**29  # elements of what is computed when a model is imported


class InvalidNode(ModelError):
    """A node that nobody could compute, the original's run time neither."""


def check(node: Node) -> None:
    """Raise InvalidNode, naming the node, for operands or attributes that its operator does not
    take: too few, of shapes that do not fit, beyond an axis; ModelError for results that are too
    large, before anything makes them."""
    proto, domain = node.proto, "" if node.proto.domain == "ai.onnx" else node.proto.domain
    if domain or any(isinstance(expr, relax.Tuple) for expr in node.inputs):
        return
    if any(attribute.HasField("g") for attribute in proto.attribute):
        return
    try:
        schema = onnx.defs.get_schema(proto.op_type, node.opset, domain)
    except onnx.defs.SchemaError:
        return  # an operator that ONNX does not know is refused elsewhere
    context = checker.C.CheckerContext()
    context.ir_version, context.opset_imports = onnx.IR_VERSION, {"": node.opset}
    try:
        checker.check_node(proto, context)
        made = _infer(node, schema)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        raise InvalidNode(f"{node}: is no valid operator: {_first(error)}") from error
    known = all(expr is None or array_of(expr) is not None for expr in node.inputs)
    most = _LARGEST_CONSTANT if known else LARGEST
    for shape in made:
        if math.prod(shape) >= most:
            text = "x".join(map(str, shape))
            raise node.fails(f"its result would be {text}, expected less than {most} elements")


def _infer(node: Node, schema: Any) -> list[list[int]]:
    """The shapes of results as far as the operator's own rule finds them from the operands'."""
    types, data = {}, {}
    for name, expr in zip(node.proto.input, node.inputs, strict=True):
        if expr is None:
            continue
        dtype = np.dtype(str(expr.ty.dtype.dtype))
        shape = [int(extent) for extent in expr.ty.shape]
        types[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(dtype), shape)
        array = array_of(expr)
        if array is not None and array.size <= _LARGEST:
            data[name] = numpy_helper.from_array(array, name)
    opsets = [helper.make_opsetid("", node.opset)]
    made: dict[str, onnx.TypeProto] = {}
    with suppress(RuntimeError):  # an operator that is a function of others is looked into later
        made = shape_inference.infer_node_outputs(
            schema, node.proto, types, data, opset_imports=opsets, ir_version=onnx.IR_VERSION
        )
    shapes = [kind.tensor_type.shape.dim for kind in made.values()]
    return [[dim.dim_value for dim in dims] for dims in shapes]


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removeprefix("[ShapeInferenceError] ") if lines else type(error).__name__
