"""An ONNX graph as a Relax function: converters of our own first, then those of TVM's importer.

Shapes are static, so whatever depends on shapes alone is a constant here, and a node whose
operands are all constant is computed on the spot (by ONNX's reference implementation). float16
and bfloat16 are computed in float32; only inputs and outputs of the model keep them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from functools import partial

import numpy as np
import onnx
import tvm
from onnx.reference import ReferenceEvaluator
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend as frontend

from convtvm.dispatch.model_manifest import DTYPES
from convtvm.errors import ModelError
from convtvm.models.constants import array_of, constant, folded, static_shape
from convtvm.models.imported import Port
from convtvm.models.onnx import (
    arithmetic,
    checking,
    dropped,
    functions,
    fused,
    layers,
    numbers,
    quantized,
    recurrent,
    regions,
    resize,
    rows,
    sequences,
    shapes,
    signals,
    subgraphs,
    windows,
)
from convtvm.models.onnx.node import Node, described, raw_attributes
from convtvm.models.onnx.reading import LARGEST, weight_of

_CONVERTERS = {
    **arithmetic.CONVERTERS,
    **dropped.CONVERTERS,
    **layers.CONVERTERS,
    **numbers.CONVERTERS,
    **quantized.CONVERTERS,
    **recurrent.CONVERTERS,
    **regions.CONVERTERS,
    **resize.CONVERTERS,
    **rows.CONVERTERS,
    **sequences.CONVERTERS,
    **shapes.CONVERTERS,
    **signals.CONVERTERS,
    **windows.CONVERTERS,
}
_NARROW = ("float16", "bfloat16")
_NO_NUMBERS = "OUSc"  # numpy's kinds of text and complex numbers
_PACKED = {"int4": "int8", "uint4": "uint8"}  # what is smaller than a byte, and is held in one
# Operators whose results have another shape for other data, and those that nobody can compare.
_BY_DATA = {"NonZero", "NonMaxSuppression", "Unique"}
_RANDOM = {
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Bernoulli", "Multinomial"),
}
# Operators that TVM has converters for which are of another domain's, or wrong.
_BETTER_IN_PARTS = {"Attention", "RMSNormalization"}
# Operators of ONNX Runtime's own: those with converters here, and those that TVM has some for.
_FUSED = {**fused.MICROSOFT, **quantized.MICROSOFT, **recurrent.MICROSOFT}
_MICROSOFT = {"Gelu", "FastGelu", "BiasGelu", "SkipLayerNormalization", "EmbedLayerNormalization"}


def import_graph(
    graph: onnx.GraphProto, opset: int, inputs: Iterable[Port]
) -> tuple[tvm.IRModule, dict[str, str], dict[str, float]]:
    """The graph as a module with one function `main`, the nodes its variables came from, and what
    inputs have to be for the branches that were taken.

    Raises ModelError, naming the node, for whatever cannot be compiled.
    """
    importer = _Importer(opset)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importer.function(graph, inputs)
    return module, _all_origins(module["main"], importer.origins), importer.decided


def _all_origins(function: relax.Function, known: dict[str, str]) -> dict[str, str]:
    """Every variable's node: one without a name belongs to the next that has one."""
    found: dict[str, str] = {}
    origin = ""
    for block in reversed(function.body.blocks):
        for binding in reversed(block.bindings):
            origin = known.get(binding.var.name, origin)
            found[binding.var.name] = origin
    return found


def _widened(array: np.ndarray) -> relax.Expr:
    """A constant that holds no half precision."""
    return constant(array.astype("float32") if str(array.dtype) in _NARROW else array)


class _Importer:
    """Walks a graph with the values known so far."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.builder = relax.BlockBuilder()
        self.values: dict[str, relax.Expr] = {}
        self.origins: dict[str, str] = {}
        self.decided: dict[str, float] = {}
        self.repeated, self.written = 1, 0  # nodes of loops, as of subgraphs.Walker

    def function(self, graph: onnx.GraphProto, inputs: Iterable[Port]) -> tvm.IRModule:
        """The module whose `main` computes the outputs of the graph from `inputs`."""
        ports = list(inputs)
        params = [relax.Var(p.name, relax.TensorType(p.shape, p.dtype)) for p in ports]
        self.values.update({p.name: var for p, var in zip(ports, params, strict=True)})
        problem: Exception | None = None
        with self.builder.function("main", params):
            with self.builder.dataflow():
                try:
                    result = self.outputs(graph, ports)
                except Exception as error:  # raised below: TVM complains of blocks left open
                    problem, result = error, constant(np.zeros(1))
                result = self.builder.emit_output(result)
            self.builder.emit_func_output(result)
        if problem is not None:
            raise problem
        return self.builder.get()

    def outputs(self, graph: onnx.GraphProto, inputs: list[Port]) -> relax.Expr:
        """The outputs of the graph as one expression."""
        for port in inputs:
            if port.dtype in _NARROW:
                wide = relax.op.astype(self.values[port.name], "float32")
                self.values[port.name] = self.builder.emit(wide)
        self.weights(graph)
        self.walk(graph)
        found = [self.output(value) for value in graph.output]
        return found[0] if len(found) == 1 else relax.Tuple(found)

    def output(self, declared: onnx.ValueInfoProto) -> relax.Expr:
        """An output of the graph, in half precision if it is declared so."""
        if declared.name not in self.values:
            raise ModelError(f"output {declared.name} is computed by no node")
        value = self.values[declared.name]
        if isinstance(value, relax.Tuple):
            raise ModelError(f"output {declared.name} is a sequence, expected a tensor")
        if 0 in static_shape(value):
            text = "x".join(map(str, static_shape(value)))
            raise ModelError(f"output {declared.name} would be {text}, which is empty")
        dtype = declared.type.tensor_type.elem_type
        if dtype == onnx.TensorProto.BFLOAT16:
            raise ModelError(f"output {declared.name} is bfloat16; cast it to float32")
        if dtype == onnx.TensorProto.FLOAT16:
            return self.builder.emit(relax.op.astype(value, "float16"))
        return value

    def weights(self, graph: onnx.GraphProto) -> None:
        """Add the weights of a graph, or of one that a node holds, to the values."""
        if graph.sparse_initializer:
            raise ModelError("its weights are sparse; save them dense")
        for tensor in graph.initializer:
            array = weight_of(tensor)
            if array.dtype.kind in _NO_NUMBERS:
                kind = "text" if array.dtype.kind != "c" else "complex numbers"
                raise ModelError(f"weight {tensor.name} holds {kind}, expected real numbers")
            if str(array.dtype) in _PACKED:
                array = self.unpacked(array, tensor.name, graph)
            self.values[tensor.name] = _widened(array)

    def unpacked(self, array: np.ndarray, name: str, graph: onnx.GraphProto) -> np.ndarray:
        """A weight of less than a byte in bytes, if nobody makes such numbers of it."""
        for proto in graph.node:
            if name in proto.input and proto.op_type != "DequantizeLinear":
                raise ModelError(
                    f"{described(proto)}: takes {name}, which holds {array.dtype}; only "
                    "DequantizeLinear does so"
                )
        return array.astype(_PACKED[str(array.dtype)])

    def walk(self, graph: onnx.GraphProto) -> None:
        """Compute what the nodes of a graph make, or of one that a node holds."""
        for proto in graph.node:
            missing = [name for name in proto.input if name and name not in self.values]
            if missing:
                raise ModelError(f"{described(proto)}: no node before it makes {missing[0]}")
            inputs = [self.values[name] if name else None for name in proto.input]
            node = Node(proto, raw_attributes(proto), inputs, self.opset, self.builder)
            made = self.results(node)
            for index, name in enumerate(proto.output):
                if index < len(made):
                    self.values[name] = self.bound(made[index], node)
                elif name:
                    self.unmade(node, name, graph)

    def unmade(self, node: Node, name: str, graph: onnx.GraphProto) -> None:
        """Refuse a result that no converter makes, such as a mask, if somebody reads it."""
        read = {value for proto in graph.node for value in proto.input}
        if name in read | {value.name for value in graph.output}:
            raise node.fails(f"its output {name} cannot be computed; do without it")

    def bound(self, value: relax.Expr, node: Node) -> relax.Expr:
        """A result, as a variable that is known to come from its node, or a constant."""
        if isinstance(value, relax.Call):
            value = self.builder.normalize(value)
            value = folded(value) or value
        if isinstance(value, (tvm.ir.GenericConst, relax.Tuple)):
            return value  # a tuple is a sequence
        if isinstance(value, relax.Var):
            _check_result(value, node)
            return value
        var = self.builder.emit(value)
        _check_result(var, node)
        self.origins[var.name] = node.proto.name or node.proto.op_type
        return var

    def results(self, node: Node) -> list[relax.Expr]:
        """The outputs of a node."""
        operator = node.proto.op_type
        if operator in subgraphs.CONVERTERS:
            return self.converted(node, partial(subgraphs.CONVERTERS[operator], self))
        operands = [array_of(expr) for expr in node.inputs if expr is not None]
        computed = node.proto.domain in ("", "ai.onnx") and "Sequence" not in operator
        checking.check(node)
        if operands and computed and all(array is not None for array in operands):
            made = _computed(node)
            if made is not None:
                return made
        _check_operands(node)
        parts = functions.parts_of(node) if self.is_expanded(node) else None
        return self.inlined(node, parts) if parts else self.converted(node, self.converter(node))

    def is_expanded(self, node: Node) -> bool:
        """Whether a node is computed by the operators that ONNX defines it by, if it is."""
        operator = node.proto.op_type
        if node.proto.domain not in ("", "ai.onnx") or operator in _BY_DATA | _RANDOM:
            return False
        if operator in _CONVERTERS:
            return operator == "LayerNormalization" and len(node.proto.output) > 1
        return operator in _BETTER_IN_PARTS or operator not in frontend._get_convert_map()

    def inlined(self, node: Node, parts: functions.Parts) -> list[relax.Expr]:
        """The outputs of a node by the operators that it is made of."""
        opset, self.opset = self.opset, parts.opset
        known = set(self.values)
        names = zip(parts.graph.input, (e for e in node.inputs if e is not None), strict=True)
        self.values.update({value.name: expr for value, expr in names})
        try:
            self.walk(parts.graph)
            nothing = constant(np.zeros(1, "float32"))
            return [self.values[name] if name else nothing for name in parts.outputs]
        except ModelError as error:
            raise node.fails(f"is made of operators one of which is refused: {error}") from error
        finally:
            self.opset = opset
            for name in self.values.keys() - known:
                del self.values[name]

    def converted(self, node: Node, converter: arithmetic.Converter) -> list[relax.Expr]:
        """The outputs that a converter makes. Raises ModelError, whatever it raises."""
        try:
            made = converter(node)
            return list(made) if isinstance(made, (list, tuple)) else self.fields(made)
        except ModelError:
            raise
        except Exception as error:  # whatever TVM's converters and type inference raise
            lines = [line for line in str(error).splitlines() if line.strip()]
            first = lines[0].strip() if lines else type(error).__name__
            raise node.fails(f"TVM does not import it: {first}") from error

    def fields(self, made: relax.Expr) -> list[relax.Expr]:
        """One expression as the list of outputs that it is."""
        if isinstance(made, relax.Tuple):
            return list(made.fields)
        made = self.builder.normalize(made)
        if not isinstance(made.ty, relax.TupleType):
            return [made]
        var = self.builder.emit(made)
        return [relax.TupleGetItem(var, index) for index in range(len(made.ty.fields))]

    def converter(self, node: Node) -> arithmetic.Converter:
        """What converts the node; raises ModelError if nothing does."""
        operator, domain = node.proto.op_type, node.proto.domain
        if operator in _RANDOM:
            raise node.fails("its values are random; export the model for inference")
        if operator in _BY_DATA:
            raise node.fails(
                "the shape of its result depends on the data, and a compiled model's are fixed; "
                f"{_cut(node)}"
            )
        if domain in ("", "ai.onnx") and operator in _CONVERTERS:
            return _CONVERTERS[operator]
        if domain == "com.microsoft" and operator in _FUSED:
            return _FUSED[operator]
        known = frontend._get_convert_map()
        if operator in known and (domain in ("", "ai.onnx") or operator in _MICROSOFT):
            return self.by_tvm
        raise node.fails(
            f"nothing computes this operator; export it in terms of others, or {_cut(node)}"
        )

    def by_tvm(self, node: Node) -> relax.Expr:
        """What TVM's own converter makes of the node."""
        outputs = {"name": node.proto.name, "num_outputs": len(node.proto.output)}
        attributes = {**node.attributes, "tvm_custom": outputs}
        convert = frontend._get_convert_map()[node.proto.op_type].get_converter(self.opset)
        operands = frontend.onnx_input(node.inputs)
        return convert(self.builder, operands, attributes, [self.values, {}])


def _cut(node: Node) -> str:
    """How to do without a node: by a graph that ends with what it reads."""
    pairs = zip(node.proto.input, node.inputs, strict=True)
    names = [name for name, expr in pairs if expr is not None and array_of(expr) is None]
    ends = f", its outputs {' and '.join(names)}" if names else ""
    return f"cut the graph before it (onnx.utils.extract_model{ends}) and compute the rest outside"


def _check_operands(node: Node) -> None:
    """Refuse constants that no kernel holds, such as 8-bit floats."""
    constants = [e for e in node.inputs if e is not None and array_of(e) is not None]
    for dtype in (str(expr.ty.dtype.dtype) for expr in constants):
        if dtype not in DTYPES:
            raise node.fails(f"takes {dtype}, expected one of {', '.join(DTYPES)}")


def _check_result(var: relax.Var, node: Node) -> None:
    """Refuse results without elements, those with more than kernels can count, those of a size
    that is not known, and numbers that no kernel holds."""
    shape = getattr(var.ty, "shape", None)
    if isinstance(var.ty, relax.TensorType) and str(var.ty.dtype.dtype) not in DTYPES:
        raise node.fails(f"makes {var.ty.dtype.dtype}, expected one of {', '.join(DTYPES)}")
    try:
        sizes = [int(size) for size in shape] if shape is not None else []
    except TypeError:
        raise node.fails(
            "the shape of its result is computed at run time, and a compiled model's are fixed; "
            "make what decides it a constant when exporting"
        ) from None
    text = "x".join(map(str, sizes))
    if min(sizes, default=1) < 1:
        raise node.fails(f"its result would be {text}, which is empty; is --shape right?")
    if math.prod(sizes) >= LARGEST:
        raise node.fails(f"its result would be {text}, expected less than {LARGEST} elements")


def _computed(node: Node) -> list[relax.Expr] | None:
    """The outputs of a node whose operands are constants; None where ONNX's reference
    implementation fails, which lacks old forms of some operators: a converter knows them."""
    names = [name for name in node.proto.input if name]
    arrays = [array_of(expr) for expr in node.inputs if expr is not None]
    try:
        evaluator = ReferenceEvaluator(node.proto, opsets={"": node.opset})
        with np.errstate(all="ignore"):
            values = evaluator.run(None, dict(zip(names, arrays, strict=True)))
    except Exception:  # it checks nothing itself, so whatever numpy raises
        return None
    made = [np.asarray(value) for value in values]
    if any(array.dtype.kind in _NO_NUMBERS for array in made):
        return None
    return [_widened(array) for array in made]
