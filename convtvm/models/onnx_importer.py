"""An ONNX graph as a Relax function: TVM's importer with converters of our own before its own.

Shapes are static, so whatever depends on shapes alone is a constant here, and a node whose
operands are all constant is computed on the spot (by ONNX's reference implementation).
"""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import onnx
import tvm
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend as frontend

from convtvm.errors import ModelError
from convtvm.models.constants import array_of, constant
from convtvm.models.onnx_node import Node, attributes_of, described
from convtvm.models.onnx_operators import CONVERTERS

# Shapes of results that only the data decides, or values that chance decides.
_DATA_DEPENDENT = {"NonZero", "NonMaxSuppression", "Unique", "Compress"}
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli"}
_RANDOM |= {"Multinomial"}
_CONTROL_FLOW = {"Loop", "Scan", "SequenceMap"}
# TVM's converters for ONNX Runtime's own operators.
_MICROSOFT = {"Gelu", "FastGelu", "BiasGelu", "SkipLayerNormalization", "EmbedLayerNormalization"}


def import_graph(
    graph: onnx.GraphProto, opset: int, shapes: dict[str, tuple[int, ...]]
) -> tuple[tvm.IRModule, dict[str, str]]:
    """The graph as a module with one function `main`, and the nodes its variables came from.

    Raises ModelError, naming the node, for whatever Relax cannot compute.
    """
    importer = _Importer(shapes, {}, sanitize=False)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        module = importer.from_onnx(graph, opset)
    return module, _all_origins(module["main"], importer.origins)


def _all_origins(function: relax.Function, known: dict[str, str]) -> dict[str, str]:
    """Every variable's node: one without a name belongs to the next that has one."""
    found: dict[str, str] = {}
    origin = ""
    for block in reversed(function.body.blocks):
        for binding in reversed(block.bindings):
            origin = known.get(binding.var.name, origin)
            found[binding.var.name] = origin
    return found


class _Importer(frontend.ONNXGraphImporter):
    """TVM's importer, which keeps the graph's values in `_nodes`."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.origins: dict[str, str] = {}

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        known = set(CONVERTERS) | set(frontend._get_convert_map()) | {"If", "Constant"}
        for node in graph.node:
            if node.op_type in _DATA_DEPENDENT:
                raise ModelError(
                    f"{described(node)}: the shape of its result depends on the data, and a "
                    "compiled model's shapes are fixed; cut the graph before it "
                    "(onnx.utils.extract_model) and compute the rest outside"
                )
            if node.op_type in _CONTROL_FLOW:
                raise ModelError(
                    f"{described(node)}: loops cannot be compiled; export the model with the "
                    "loop unrolled, or cut the graph before it (onnx.utils.extract_model)"
                )
            if node.op_type in _RANDOM:
                raise ModelError(f"{described(node)}: random values cannot be compiled")
            standard = node.domain in ("", "ai.onnx")
            contrib = node.domain == "com.microsoft" and node.op_type in _MICROSOFT
            if node.op_type not in known or not (standard or contrib):
                raise ModelError(
                    f"{described(node)}: no such operator in TVM's Relax; replace it by standard "
                    "ones when exporting, or cut the graph before it (onnx.utils.extract_model)"
                )

    def _construct_nodes(self, graph: onnx.GraphProto) -> None:
        for proto in graph.node:
            missing = [name for name in proto.input if name and name not in self._nodes]
            if missing:
                raise ModelError(
                    f"{described(proto)}: its input {missing[0]} is made nowhere before"
                )
            attributes = attributes_of(proto)
            inputs = [self._nodes[name] if name else None for name in proto.input]
            node = Node(proto, attributes, inputs, self.opset, self.bb)
            for name, value in zip(proto.output, self._values(node), strict=False):
                if name:
                    self._nodes[name] = self._named(value, proto)

    def _named(self, value: relax.Expr, proto: onnx.NodeProto) -> relax.Expr:
        """A result, as a variable that is known to come from the node."""
        if isinstance(value, (tvm.ir.GenericConst, relax.Var)):
            return value
        var = self.bb.emit(value)
        self.origins[var.name] = proto.name or proto.op_type
        return var

    def _values(self, node: Node) -> list[relax.Expr]:
        """The outputs of a node."""
        operator = node.proto.op_type
        if operator == "If":
            return self._branch(node)
        constants = [array_of(expr) for expr in node.inputs if expr is not None]
        known = CONVERTERS.get(operator)
        if constants and all(array is not None for array in constants):
            return _computed(node)
        try:
            made = known(node) if known else self._by_tvm(node)
        except ModelError:
            raise
        except Exception as error:  # whatever TVM's converters and type inference raise
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise node.fails(f"TVM cannot import it: {first}") from error
        if isinstance(made, (list, tuple)):
            return list(made)
        made = self.bb.normalize(made)
        if isinstance(made, relax.Tuple):
            return list(made.fields)
        if isinstance(made.ty, relax.TupleType):
            var = self.bb.emit(made)
            return [relax.TupleGetItem(var, i) for i in range(len(made.ty.fields))]
        return [made]

    def _by_tvm(self, node: Node) -> relax.Expr:
        attributes = self._parse_attr(node.proto.attribute)
        attributes["tvm_custom"] = {
            "name": node.proto.name,
            "num_outputs": len(node.proto.output),
        }
        inputs = frontend.onnx_input(node.inputs)
        return self._convert_operator(node.proto.op_type, inputs, attributes, self.opset)

    def _branch(self, node: Node) -> list[relax.Expr]:
        """The outputs of the branch that a constant condition takes."""
        condition = array_of(node.input(0))
        if condition is None:
            raise node.fails(
                "its condition is computed at run time; a compiled model has one way through: "
                "export the model with the condition decided"
            )
        branch = node.get("then_branch" if condition.reshape(-1)[0] else "else_branch")
        for tensor in branch.initializer:
            self._nodes[tensor.name] = constant(numpy_helper.to_array(tensor))
        self._check_for_unsupported_ops(branch)
        self._construct_nodes(branch)
        return [self._nodes[output.name] for output in branch.output]


def _computed(node: Node) -> list[relax.Expr]:
    """The outputs of a node whose operands are constants."""
    names = [name for name in node.proto.input if name]
    arrays = [array_of(expr) for expr in node.inputs if expr is not None]
    evaluator = ReferenceEvaluator(node.proto, opsets={node.proto.domain: node.opset})
    with np.errstate(all="ignore"):
        values = evaluator.run(None, dict(zip(names, arrays, strict=True)))
    return [constant(np.asarray(value)) for value in values]
