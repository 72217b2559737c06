"""Recurrent layers as one function each: every step of LSTM, GRU and RNN reads the one before it.

The gates are [gate, hidden] padded to whole vectors, in which zeros stay zeros or are cut off
later. A vector of every gate is summed up at a time, and what follows is computed on the spot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from convtvm.compute.larger import larger, smaller
from convtvm.models.constants import constant

LANES = 16
_OPAQUE = {"op_pattern": 8}  # nothing is fused with loops that are written out

Function = Callable[[Any], Any]


@dataclass(frozen=True)
class Cell:
    """One direction of a layer. `kind` is LSTM (gates i, o, f, c), GRU (z, r, h) or RNN.

    `weight` is [gates, hidden, hidden], `bias`, which is added to its product, [gates, hidden];
    `peepholes` are [3, hidden] for i, o and f. `functions` are the activations in ONNX's order,
    `bound` limits what goes into them. `reset_after` is GRU's linear_before_reset. An LSTM that is
    `rounded` reads its hidden state in 255 steps of its range.
    """

    kind: str
    weight: np.ndarray
    bias: np.ndarray
    functions: tuple[Function, ...]
    peepholes: np.ndarray | None = None
    bound: float | None = None
    reset_after: bool = False
    backwards: bool = False
    rounded: bool = False

    @property
    def gates(self) -> int:
        return int(self.weight.shape[0])

    @property
    def hidden(self) -> int:
        return int(self.weight.shape[1])

    @property
    def padded(self) -> int:
        """Hidden elements in whole vectors."""
        return -(-self.hidden // LANES) * LANES

    def packed(self) -> np.ndarray:
        """The weight as [vector, hidden in, gate, lane]."""
        wide = np.zeros((self.gates, self.padded, self.hidden), np.float32)
        wide[:, : self.hidden] = self.weight
        split = wide.reshape(self.gates, -1, LANES, self.hidden)
        return np.ascontiguousarray(split.transpose(1, 3, 0, 2))


def widened(array: np.ndarray, padded: int) -> np.ndarray:
    """An array whose last axis, of hidden elements, is filled up with zeros."""
    widths = [(0, 0)] * (array.ndim - 1) + [(0, padded - array.shape[-1])]
    return np.pad(np.asarray(array, np.float32), widths)


def emit(
    builder: relax.BlockBuilder,
    cell: Cell,
    projected: relax.Expr,
    hidden: relax.Expr,
    state: relax.Expr,
) -> tuple[relax.Expr, relax.Expr]:
    """All hidden states [steps + 1, batch, padded], the first one at the end where the layer reads
    backwards, and the last state of an LSTM [batch, padded].

    `projected` [steps, batch, gates * padded] is what the inputs add to the gates; `hidden` and
    `state` [batch, padded] are the first.
    """
    steps, batch, _ = (int(extent) for extent in projected.ty.shape)
    peepholes = np.zeros((3, cell.hidden)) if cell.peepholes is None else cell.peepholes
    operands = [
        projected,
        constant(cell.packed()),
        constant(widened(cell.bias, cell.padded)),
        constant(widened(peepholes, cell.padded)),
        hidden,
        state,
    ]

    def compute(*tensors: te.Tensor) -> list[te.Tensor]:
        shapes = [(steps + 1, batch, cell.padded), (batch, cell.padded), (batch, 2, cell.padded)]
        return list(
            te.extern(
                shapes,
                list(tensors),
                lambda ins, outs: _Loops(cell, steps, batch, ins, outs).written(),
                dtype=["float32"] * 3,
                name=cell.kind.lower(),
            )
        )

    made = builder.emit(
        builder.call_te(
            compute, *operands, primfunc_name_hint=cell.kind.lower(), primfunc_attrs=_OPAQUE
        )
    )
    return relax.TupleGetItem(made, 0), relax.TupleGetItem(made, 1)


class _Loops:
    """The loops of a cell over steps, images of the batch and vectors."""

    def __init__(
        self, cell: Cell, steps: int, batch: int, ins: Sequence[Any], outs: Sequence[Any]
    ) -> None:
        self.cell, self.steps, self.batch = cell, steps, batch
        self._buffers = (*ins, *outs)

    def written(self) -> Any:
        with IRBuilder() as builder:
            proxies = [T.buffer_proxy(buffer) for buffer in self._buffers]
            self.x, self.weight, self.bias, self.peepholes, first, state = proxies[:6]
            self.out, self.state, self.scratch = proxies[6:]
            cell, begin = self.cell, self.steps if self.cell.backwards else 0
            with T.parallel(0, self.batch) as n:
                with T.serial(0, cell.padded) as j:
                    self.out[begin, n, j] = first[n, j]
                    self.state[n, j] = state[n, j]
                with T.serial(0, self.steps) as t:
                    at = self.steps - 1 - t if cell.backwards else t
                    before, after = (at + 1, at) if cell.backwards else (at, at + 1)
                    self._step(n, at, before, after)
            return builder.get()

    def _step(self, n: Any, at: Any, before: Any, after: Any) -> None:
        def last(k: Any) -> Any:
            return self.out[before, n, k]

        step = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.cell.kind]
        step(n, at, last, after)

    def _vectors(self) -> Any:
        return T.serial(0, self.cell.padded // LANES)

    def _sums(self, v: Any, read: Function, gates: Sequence[int]) -> Any:
        """For some gates, a vector of rows by what `read` gives, as [gate, lane]."""
        cell = self.cell
        sums = T.buffer_proxy(T.alloc_buffer((cell.gates, LANES), "float32", scope="local"))
        for g in gates:
            with T.vectorized(0, LANES) as lane:
                sums[g, lane] = self.bias[g, v * LANES + lane]
        with T.serial(0, cell.hidden) as k:
            for g in gates:
                with T.vectorized(0, LANES) as lane:
                    sums[g, lane] = sums[g, lane] + read(k) * self.weight[v, k, g, lane]
        return sums

    def _input(self, n: Any, at: Any, gate: int, j: Any) -> Any:
        """What the input adds to a gate."""
        return self.x[at, n, gate * self.cell.padded + j]

    def _activated(self, index: int, value: Any) -> Any:
        if self.cell.bound is not None:
            low, high = (tirx.const(s * self.cell.bound, "float32") for s in (-1, 1))
            value = larger(low, smaller(high, value))
        return self.cell.functions[index](value)

    def _rounded(self, n: Any, last: Function) -> Function:
        """What reads the hidden state in steps of its range, as 8 bits hold it, 0 among them."""
        zero, most = tirx.const(0.0, "float32"), tirx.const(255.0, "float32")
        low, high, step, point = (
            T.buffer_proxy(T.alloc_buffer((1,), "float32", scope="local")) for _ in range(4)
        )
        low[0] = zero
        high[0] = zero
        with T.serial(0, self.cell.hidden) as k:
            low[0] = tirx.min(low[0], last(k))
            high[0] = tirx.max(high[0], last(k))
        span = (high[0] - low[0]) / most
        step[0] = tirx.Select(span > zero, span, tirx.const(1.0, "float32"))
        point[0] = tirx.nearbyint(tirx.max(tirx.min(-low[0] / step[0], most), zero))
        with T.serial(0, self.cell.hidden) as k:
            whole = tirx.nearbyint(last(k) / step[0]) + point[0]
            whole = tirx.max(tirx.min(whole, most), zero)
            self.scratch[n, 0, k] = (whole - point[0]) * step[0]
        return lambda k: self.scratch[n, 0, k]

    def _lstm(self, n: Any, at: Any, last: Function, after: Any) -> None:
        read = self._rounded(n, last) if self.cell.rounded else last
        with self._vectors() as v:
            sums = self._sums(v, read, range(4))
            with T.vectorized(0, LANES) as lane:
                j = v * LANES + lane
                total = [sums[g, lane] + self._input(n, at, g, j) for g in range(4)]
                old, (pi, po, pf) = self.state[n, j], (self.peepholes[i, j] for i in range(3))
                has_peepholes = self.cell.peepholes is not None
                enters, stays = (
                    self._activated(0, total[g] + p * old if has_peepholes else total[g])
                    for g, p in ((0, pi), (2, pf))
                )
                new = stays * old + enters * self._activated(1, total[3])
                self.state[n, j] = new
                new = self.state[n, j]
                shown = self._activated(0, total[1] + po * new if has_peepholes else total[1])
                self.out[after, n, j] = shown * self.cell.functions[2](new)

    def _gru(self, n: Any, at: Any, last: Function, after: Any) -> None:
        """Two passes: the candidate reads what the reset gate leaves of all the hidden state."""
        late = self.cell.reset_after
        with self._vectors() as v:
            sums = self._sums(v, last, (0, 1))
            with T.vectorized(0, LANES) as lane:
                j = v * LANES + lane
                self.scratch[n, 0, j] = self._activated(0, sums[0, lane] + self._input(n, at, 0, j))
                reset = self._activated(0, sums[1, lane] + self._input(n, at, 1, j))
                self.scratch[n, 1, j] = reset if late else reset * last(j)

        def read(k: Any) -> Any:
            return last(k) if late else self.scratch[n, 1, k]

        with self._vectors() as v:
            sums = self._sums(v, read, (2,))
            with T.vectorized(0, LANES) as lane:
                j = v * LANES + lane
                product = sums[2, lane] * self.scratch[n, 1, j] if late else sums[2, lane]
                update = self.scratch[n, 0, j]
                new = self._activated(1, product + self._input(n, at, 2, j))
                one = tirx.const(1.0, "float32")
                self.out[after, n, j] = (one - update) * new + update * last(j)

    def _rnn(self, n: Any, at: Any, last: Function, after: Any) -> None:
        with self._vectors() as v:
            sums = self._sums(v, last, (0,))
            with T.vectorized(0, LANES) as lane:
                j = v * LANES + lane
                total = sums[0, lane] + self._input(n, at, 0, j)
                self.out[after, n, j] = self._activated(0, total)
