"""ONNX files read and checked: what is wrong with one is said in a line, before any work."""

from __future__ import annotations

import graphlib
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import google.protobuf.message
import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper
from onnx.external_data_helper import (
    ExternalDataInfo,
    load_external_data_for_tensor,
    uses_external_data,
)

from convtvm.errors import ModelError
from convtvm.models.imported import Port

# What protobuf can hold in one message, and so in one file.
_LARGEST_FILE = 2**31 - 1
LARGEST = 2**31  # elements of a tensor, whose places kernels count in 32 bits: less than this
# How the names of operators begin that make numbers of 8 bits, or read what others made.
_ROUNDS = ("Quantize", "DynamicQuantize", "QLinear", "QGemm", "ConvInteger", "MatMulInteger")
_DTYPES = {
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
}


def read_model(path: Path) -> onnx.ModelProto:
    """The model in a file, with its external data, its functions inlined.

    Raises ModelError: no such file, damaged, too large, no model, data beside it missing.
    """
    try:
        mode, size = os.stat(path).st_mode, os.path.getsize(path)
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
            raise ModelError(f"cannot read {path}: it is {kind}")
        if size > _LARGEST_FILE:
            raise ModelError(
                f"{path} has {size / 1e9:.1f} GB, and an ONNX file is at most 2 GB; save it with "
                "its weights beside it: onnx.save(model, path, save_as_external_data=True)"
            )
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except google.protobuf.message.DecodeError as error:
        raise ModelError(
            f"{path} is no ONNX file, or a damaged one; export or download it again"
        ) from error
    if not model.graph.output or not model.ir_version:
        raise ModelError(f"{path} holds no ONNX graph with outputs; expected an exported model")
    newest = onnx.defs.onnx_opset_version()
    known = any(o.domain in ("", "ai.onnx") for o in model.opset_import)
    if (
        not known
        and model.ir_version >= 3
        and any(node.domain in ("", "ai.onnx") for node in model.graph.node)
    ):
        raise ModelError(f"{path} does not say of which opset its operators are; export it anew")
    if opset_of(model) < 1:
        raise ModelError(f"{path} is of opset {opset_of(model)}, expected 1 to {newest}")
    if opset_of(model) > newest:
        raise ModelError(
            f"{path} is of opset {opset_of(model)}, and onnx {onnx.__version__} knows up to "
            f"{newest}; pip install -U onnx, or export with an older opset"
        )
    if model.functions:
        model = inliner.inline_local_functions(model)
    _load_external(model, path)
    for graph in _graphs(model.graph):
        _put_in_order(graph, path)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that a model uses."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def precisions_of(model: onnx.ModelProto) -> set[str]:
    """The types of a model's inputs and weights, and those that it casts to; int8 where it rounds
    to 8 bits what it computes with."""
    found: set[int] = set()
    rounds = False
    for graph in _graphs(model.graph):
        found |= {value.type.tensor_type.elem_type for value in graph.input}
        found |= {tensor.data_type for tensor in graph.initializer}
        for node in graph.node:
            found |= {a.i for a in node.attribute if a.name == "to" and node.op_type == "Cast"}
            found |= {a.t.data_type for a in node.attribute if a.HasField("t")}
            rounds |= node.op_type.startswith(_ROUNDS)
    known = TensorProto.DataType.values()
    names = {TensorProto.DataType.Name(kind).lower() for kind in found if kind in known}
    return names - {"int8"} | ({"int8"} if rounds else set())


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all that its nodes hold."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.HasField("g") else []
            for held in (*inner, *attribute.graphs):
                yield from _graphs(held)


def _put_in_order(graph: onnx.GraphProto, path: Path) -> None:
    """Every node after those whose results it reads: files that were edited may have it otherwise.

    Raises ModelError: two nodes make the same, or one needs its own result.
    """
    made: dict[str, int] = {}
    known = {value.name for value in (*graph.input, *graph.initializer)}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in made or name in known:
                raise ModelError(
                    f"{path}: two nodes, or a node and an input or weight, make {name}"
                )
            made[name] = index
    needs = [{made[name] for name in _read_by(node) if name in made} for node in graph.node]
    if all(max(needed, default=-1) < index for index, needed in enumerate(needs)):
        return
    try:
        order = list(graphlib.TopologicalSorter(dict(enumerate(needs))).static_order())
    except graphlib.CycleError as error:
        names = [graph.node[index].output[0] for index in error.args[1][:-1]]
        raise ModelError(f"{path}: {', '.join(names)} are computed from each other") from error
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes[index] for index in order)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """The names around a node that it and the graphs that it holds read."""
    yield from node.input
    for attribute in node.attribute:
        for held in (attribute.g, *attribute.graphs):
            own = {value.name for value in (*held.input, *held.initializer)}
            own |= {name for inner in held.node for name in inner.output}
            read = [name for inner in held.node for name in _read_by(inner)]
            yield from ({*read, *(value.name for value in held.output)} - own)


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    """Fetch weights that lie in files beside the model."""
    folder = path.parent
    tensors = []
    for graph in _graphs(model.graph):
        tensors += graph.initializer
        for node in graph.node:
            tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
    for tensor in tensors:
        if not uses_external_data(tensor):
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "nowhere")
        try:
            info = ExternalDataInfo(tensor)
            present = os.path.getsize(folder / info.location)
            needed = (info.offset or 0) + (info.length or 0)
            if present < needed:
                raise ModelError(
                    f"{folder / info.location} has {present} bytes, and {tensor.name} of {path} "
                    f"ends at byte {needed}; it is cut short: download it again"
                )
            load_external_data_for_tensor(tensor, str(folder))
        except ModelError:
            raise
        except Exception as error:  # a missing file has many faces in onnx
            raise ModelError(
                f"the weights of {path} lie in {location}, which cannot be read from "
                f"{folder}; put that file beside the model"
            ) from error
        tensor.ClearField("data_location")
        del tensor.external_data[:]


def weight_of(tensor: TensorProto) -> np.ndarray:
    """The array of a weight. Raises ModelError if it does not hold what it says."""
    try:
        if min(tensor.dims, default=0) < 0:
            raise ValueError(f"it has a shape of {list(tensor.dims)}")
        if tensor.data_type not in TensorProto.DataType.values() or not tensor.data_type:
            raise ValueError(
                f"its elements are of type {tensor.data_type}, which onnx does not know"
            )
        return numpy_helper.to_array(tensor)
    except (TypeError, ValueError) as error:
        first = (str(error).splitlines() or ["no message"])[0]
        raise ModelError(f"weight {tensor.name} is damaged: {first}") from error


# --- inputs ------------------------------------------------------------------------------------


def input_ports(
    graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]], source: str
) -> list[Port]:
    """The inputs that are no weights, their open dimensions pinned by `shapes`.

    Raises ModelError: a dimension stays open, a shape does not fit the file's, no such input, an
    input that is no tensor of numbers.
    """
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {tensor.values.name for tensor in graph.sparse_initializer}
    values = [value for value in graph.input if value.name not in weights]
    names = [value.name for value in values]
    for name in shapes:
        if name not in names:
            raise ModelError(
                f"{source} has no input {name} to pin by --shape; its inputs are "
                f"{', '.join(names) or 'none'}"
            )
    ports = [_port(value, shapes.get(value.name)) for value in values]
    opened = [value for value, port in zip(values, ports, strict=True) if port is None]
    if opened:
        found = ", ".join(f"{value.name} ({_declared(value)})" for value in opened)
        options = " ".join(f"--shape {name}={text}" for name, text in _suggested(opened).items())
        raise ModelError(
            f"{source} leaves the shape of {found} open, and a compiled model's shapes are fixed; "
            f"give one, such as {options}"
        )
    return [port for port in ports if port is not None]


def _dimensions(value: onnx.ValueInfoProto) -> list[int | str] | None:
    """The sizes of an input, a name or "?" where it is open; None for an unknown rank."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or "?"
        for dim in tensor.shape.dim
    ]


def _declared(value: onnx.ValueInfoProto) -> str:
    dims = _dimensions(value)
    return "of unknown rank" if dims is None else "x".join(map(str, dims)) or "scalar"


def _suggested(values: Sequence[onnx.ValueInfoProto]) -> dict[str, str]:
    """Shapes for the message by input: the file's own, with a usual number in every open place,
    the same wherever a name stands for it."""
    declared: dict[str, list[tuple[int | str, int]]] = {}
    named: dict[int | str, int] = {}
    for value in values:
        dims = _dimensions(value)
        usual = [1, 3, 224, 224]
        if dims is not None and len(dims) != 4:
            usual = [1] + [16] * len(dims)
        declared[value.name] = list(zip(usual if dims is None else dims, usual, strict=False))
        for dim, number in declared[value.name]:
            named[dim] = min(number, named.get(dim, number))
    return {
        name: "x".join(
            str(dim if isinstance(dim, int) else number if dim == "?" else named[dim])
            for dim, number in pairs
        )
        for name, pairs in declared.items()
    }


def _port(value: onnx.ValueInfoProto, pinned: tuple[int, ...] | None) -> Port | None:
    """The input with its shape, None if that stays open."""
    if value.type.WhichOneof("value") != "tensor_type":
        kind = str(value.type.WhichOneof("value") or "unknown").removesuffix("_type")
        raise ModelError(f"input {value.name} is of type {kind}, expected a tensor")
    element = value.type.tensor_type.elem_type
    dtype = str(helper.tensor_dtype_to_np_dtype(element)) if element else "undefined"
    if dtype not in _DTYPES:
        name = TensorProto.DataType.Name(element).lower()
        raise ModelError(
            f"input {value.name} holds elements of type {name}, expected numbers that numpy has"
        )
    dims = _dimensions(value)
    if pinned is None:
        if dims is None or any(isinstance(dim, str) for dim in dims):
            return None
        return _bounded(Port(value.name, tuple(int(dim) for dim in dims), dtype))
    shape = tuple(int(size) for size in pinned)
    text = "x".join(map(str, shape)) or "scalar"
    if any(size < 1 for size in shape):
        raise ModelError(f"--shape {value.name}={text} is empty; expected sizes of at least 1")
    fits = dims is None or (
        len(dims) == len(shape)
        and all(isinstance(d, str) or d == size for d, size in zip(dims, shape, strict=True))
    )
    if not fits:
        raise ModelError(
            f"--shape {value.name}={text} does not fit the model, where it is {_declared(value)}"
        )
    return _bounded(Port(value.name, shape, dtype))


def _bounded(port: Port) -> Port:
    """An input with no more elements than kernels can count."""
    if math.prod(port.shape) >= LARGEST:
        raise ModelError(f"input {port} is too large, expected less than {LARGEST} elements")
    return port
