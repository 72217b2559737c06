"""Converters of recurrent layers: LSTM, GRU and RNN, with constant weights, in both directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from tvm import relax, tirx

from convtvm.compute.larger import larger, smaller
from convtvm.models.constants import constant
from convtvm.models.onnx import quantized
from convtvm.models.onnx.arithmetic import Converter
from convtvm.models.onnx.node import Node
from convtvm.models.recurrent import Cell, Function, emit, widened

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DEFAULTS = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
}


def _number(value: float) -> Any:
    return tirx.const(value, "float32")


def _hard_sigmoid(alpha: float, beta: float) -> Function:
    def function(x: Any) -> Any:
        return larger(smaller(x * _number(alpha) + _number(beta), _number(1)), _number(0))

    return function


# From alpha and beta, which not every function has, to the function.
_FUNCTIONS: dict[str, tuple[tuple[float, float], Callable[[float, float], Function]]] = {
    "sigmoid": ((0, 0), lambda a, b: tirx.sigmoid),
    "tanh": ((0, 0), lambda a, b: tirx.tanh),
    "relu": ((0, 0), lambda a, b: lambda x: tirx.max(x, _number(0))),
    "affine": ((1, 0), lambda a, b: lambda x: x * _number(a) + _number(b)),
    "leakyrelu": (
        (0.01, 0),
        lambda a, b: lambda x: larger(x, _number(0)) + smaller(x, _number(0)) * _number(a),
    ),
    "hardsigmoid": ((0.2, 0.5), _hard_sigmoid),
    "scaledtanh": ((1, 1), lambda a, b: lambda x: tirx.tanh(x * _number(b)) * _number(a)),
    "softsign": ((0, 0), lambda a, b: lambda x: x / (tirx.abs(x) + _number(1))),
}
_TAKES_ALPHA = ("affine", "leakyrelu", "hardsigmoid", "scaledtanh")
_TAKES_BETA = ("affine", "hardsigmoid", "scaledtanh")


def _functions(node: Node, directions: int) -> list[tuple[Function, ...]]:
    """The activations of every direction."""
    kind = node.proto.op_type
    names = [
        name.decode() if isinstance(name, bytes) else str(name)
        for name in node.get("activations") or _DEFAULTS[kind] * directions
    ]
    count = len(_DEFAULTS[kind])
    if len(names) != count * directions:
        raise node.fails(f"has {len(names)} activations, expected {count * directions}")
    alphas, betas = (list(node.get(f"activation_{n}") or ()) for n in ("alpha", "beta"))
    made = []
    for name in names:
        if name.lower() not in _FUNCTIONS:
            known = ", ".join(sorted(_FUNCTIONS))
            raise node.fails(f"has the activation {name}, expected one of {known}")
        (alpha, beta), make = _FUNCTIONS[name.lower()]
        alpha = alphas.pop(0) if alphas and name.lower() in _TAKES_ALPHA else alpha
        beta = betas.pop(0) if betas and name.lower() in _TAKES_BETA else beta
        made.append(make(alpha, beta))
    return [tuple(made[i * count : (i + 1) * count]) for i in range(directions)]


def _recurrent(node: Node, rounded: bool = False) -> list[relax.Expr]:
    """The outputs of a layer; `rounded` is of the cells of an LSTM."""
    kind, by_batch = node.proto.op_type, bool(node.get("layout", 0))
    x = node.emit(relax.op.permute_dims(node.input(), [1, 0, 2])) if by_batch else node.input()
    steps, batch, inputs = (int(extent) for extent in x.ty.shape)
    _check_lengths(node, steps)
    directions = 1 + (node.get("direction", "forward") == "bidirectional")
    hidden = int(node.get("hidden_size") or node.shape(2)[-1])
    _check_weights(node, directions, hidden, inputs)
    functions = _functions(node, directions)
    outputs, lasts, states = [], [], []
    for d in range(directions):
        backwards = node.get("direction", "forward") == "reverse" or d == 1
        cell, projection, bias = _cell(node, d, hidden, functions[d], backwards)
        cell = replace(cell, rounded=rounded)
        product = node.emit(relax.op.matmul(x, constant(projection)))
        projected = node.emit(relax.op.add(product, constant(bias)))
        first = [_first(node, i, d, batch, cell, by_batch) for i in (5, 6)]
        whole, state = emit(node.builder, cell, projected, *first)
        whole = node.emit(whole)
        begin, end = (0, steps) if backwards else (1, steps + 1)
        out = relax.op.strided_slice(whole, [0, 2], [begin, 0], [end, hidden])
        at = 0 if backwards else steps
        last = relax.op.strided_slice(whole, [0, 2], [at, 0], [at + 1, hidden])
        outputs.append(node.emit(relax.op.expand_dims(node.emit(out), [1])))
        lasts.append(node.emit(last))
        kept = relax.op.strided_slice(node.emit(state), [1], [0], [hidden])
        states.append(node.emit(relax.op.expand_dims(node.emit(kept), [0])))
    made = [_joined(node, outputs, 1), _joined(node, lasts, 0)]
    if kind == "LSTM":
        made.append(_joined(node, states, 0))
    if by_batch:
        orders = ([2, 0, 1, 3], [1, 0, 2], [1, 0, 2])
        made = [
            node.emit(relax.op.permute_dims(one, order))
            for one, order in zip(made, orders, strict=False)
        ]
    return made[: len(node.proto.output)]


def _joined(node: Node, parts: list[relax.Expr], axis: int) -> relax.Expr:
    return parts[0] if len(parts) == 1 else node.emit(relax.op.concat(parts, axis))


def _check_weights(node: Node, directions: int, hidden: int, inputs: int) -> None:
    rows = _GATES[node.proto.op_type] * hidden
    wanted = {1: (rows, inputs), 2: (rows, hidden), 3: (2 * rows,), 7: (3 * hidden,)}
    for index, shape in wanted.items():
        if node.has(index) and node.shape(index) != (directions, *shape):
            raise node.fails(
                f"its input {index} has shape {node.shape(index)}, expected {(directions, *shape)}"
            )


def _check_lengths(node: Node, steps: int) -> None:
    lengths = node.array(4, "lengths of sequences")
    if lengths is not None and (lengths != steps).any():
        raise node.fails(
            f"has sequences of {', '.join(map(str, lengths))} steps, and only whole ones of "
            f"{steps} can be compiled; export the model without sequence_lens"
        )


def _cell(
    node: Node, d: int, hidden: int, functions: tuple[Function, ...], backwards: bool
) -> tuple[Cell, np.ndarray, np.ndarray]:
    """A direction, the matrix from its inputs to its gates and what is added to the product."""
    kind = node.proto.op_type
    gates = _GATES[kind]
    weight, recurrence, bias, peepholes = (
        node.array(i, what)
        for i, what in ((1, "weight"), (2, "weight"), (3, "bias"), (7, "peepholes"))
    )
    assert weight is not None and recurrence is not None
    both = np.zeros((2, gates, hidden)) if bias is None else bias[d].reshape(2, gates, hidden)
    late = kind == "GRU" and bool(node.get("linear_before_reset", 0))
    inner = np.zeros((gates, hidden))
    if late:  # the reset gate scales this bias too
        inner[2] = both[1, 2]
    cell = Cell(
        kind,
        recurrence[d].reshape(gates, hidden, hidden),
        inner,
        functions,
        None if peepholes is None else peepholes[d].reshape(3, hidden),
        node.get("clip"),
        late,
        backwards,
    )
    if node.get("input_forget", 0):
        raise node.fails(
            "couples its input and forget gates (input_forget), which nothing computes"
        )
    by_gate = weight[d].reshape(gates, hidden, -1).transpose(2, 0, 1)
    projection = widened(by_gate, cell.padded).reshape(by_gate.shape[0], -1)
    added = widened(both.sum(0) - inner, cell.padded).reshape(-1)
    return cell, projection, added


def _first(node: Node, index: int, d: int, batch: int, cell: Cell, by_batch: bool) -> relax.Expr:
    """The first hidden state or the first state, [batch, padded]."""
    if not node.has(index):
        return constant(np.zeros((batch, cell.padded), np.float32))
    axis = 1 if by_batch else 0
    part = node.emit(relax.op.strided_slice(node.input(index), [axis], [d], [d + 1]))
    part = node.emit(relax.op.squeeze(part, [axis]))
    return node.emit(relax.op.nn.pad(part, [0, 0, 0, cell.padded - cell.hidden]))


def _quantised(node: Node) -> list[relax.Expr]:
    """ONNX Runtime's LSTM of 8-bit weights [directions, inputs, gates], whose inputs and hidden
    states are rounded to 8 bits by their ranges: the inputs' at once, the states' step by step."""
    if node.shape()[1] > 1:
        raise node.fails(
            f"rounds the states of {node.shape()[1]} sequences by their common range, which "
            "nothing computes; give it a batch of one"
        )
    weights = []
    for index, scale in ((1, 8), (2, 10)):
        whole, step, point = (node.array(i, "weight") for i in (index, scale, scale + 1))
        assert whole is not None and step is not None
        row = (step.shape[0], 1, -1)
        around = whole.astype("float32") - (0 if point is None else point.reshape(row))
        weights.append(constant((around * step.reshape(row)).transpose(0, 2, 1)))
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    proto.op_type = "LSTM"
    inputs = [quantized.in_steps(node), *weights, *node.inputs[3:8]]
    return _recurrent(replace(node, proto=proto, inputs=inputs), rounded=True)


MICROSOFT: dict[str, Converter] = {"DynamicQuantizeLSTM": _quantised}
CONVERTERS: dict[str, Converter] = {"LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent}
