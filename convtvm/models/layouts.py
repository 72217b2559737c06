"""Which layers and operators compute in blocks of channels: the cheapest assignment of all.

A layer has a time in each layout and every tensor that changes it a price, paid once however many
read it. With two layouts to choose from, the assignment with the lowest sum is a minimum cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

from tvm import relax

from convtvm.models.blocked import InBlocks, fits, in_blocks
from convtvm.models.candidates import ALONG_PIXELS, Candidate, Candidates
from convtvm.models.convolutions import Convolution
from convtvm.models.cut import Labels
from convtvm.models.dataflow import Dataflow, shape_of, variables
from convtvm.problem.workload import BLOCKED_LAYOUTS, ENTRY_LAYOUTS, ConvWorkload, channel_block

# Of one thread (Zen 4, AVX2), in bytes a second:
_CONVERTED = 15e9  # read and written from one layout to the other
_ADDED, _ADDED_PLAIN = 10e9, 2e9  # read by an epilogue, where it lies as vectors and where not
_POOLED = 1.2e9  # written by pooling and the like where pixels of several rows are no vectors
_NEVER = float("inf")


@dataclass
class Assignment:
    """The kernel of each layer by its position, and what else is computed in blocks, by variable.

    `block` is 0 where nothing is.
    """

    block: int
    kernels: dict[int, Candidate] = field(default_factory=dict)
    operators: dict[relax.Var, InBlocks] = field(default_factory=dict)

    def is_blocked(self, layer: Convolution) -> bool:
        """Whether a layer's output is in blocks."""
        return channel_block(self.kernels[layer.start].task.layout) > 0

    def is_entry(self, layer: Convolution) -> bool:
        """Whether a layer reads NCHW and its output is in blocks."""
        return self.kernels[layer.start].task.layout in ENTRY_LAYOUTS


def assign(
    flow: Dataflow, layers: Sequence[Convolution], candidates: Candidates, block: int | None = None
) -> Assignment:
    """The layouts and kernels with the lowest sum of times.

    `block` is the channels of a block, by default the target's lanes, 0 for NCHW everywhere. Raises
    NoCandidate for a layer that no kernel computes within the limits.
    """
    block = candidates.target.lanes if block is None else block
    layout = f"NCHW{block}c"
    problem = _Problem(flow, layers, candidates, layout if layout in BLOCKED_LAYOUTS else "")
    return problem.solved()


class _Problem:
    """Nodes are positions of bindings; the one of a layer is that of the last thing it absorbs."""

    def __init__(
        self, flow: Dataflow, layers: Sequence[Convolution], candidates: Candidates, layout: str
    ) -> None:
        self.flow, self.layout = flow, layout
        self.block = int(layout[4:-1]) if layout else 0
        self.threads = candidates.target.threads
        self.layers = {layer.epilogue.sink: layer for layer in layers}
        self.absorbed = {at for layer in layers for at in (layer.start, *layer.epilogue.absorbed)}
        self.plain: dict[int, Candidate] = {}
        self.packed: dict[int, Candidate] = {}
        self._choose(candidates)
        self.rules = dict(self._rules()) if self.block else {}

    def solved(self) -> Assignment:
        labels, readers = Labels(), self._readers()
        for at, own in self.plain.items():
            packed = self.packed.get(at)
            price = own.seconds + self._epilogue(at, own)
            labels.price(
                at, price, packed.seconds + self._epilogue(at, packed) if packed else _NEVER
            )
        for at, rule in self.rules.items():
            written = 4 * prod(shape_of(self.flow.bindings[at].var) or ())
            labels.price(at, written / _POOLED / self.threads if rule.is_slower_plain else 1e-9)
        for var, reading in readers.items():
            self._price_conversion(labels, var, reading)
        labels.price("plain", 0.0, _NEVER)
        blocked = labels.solve()
        made = Assignment(self.block)
        for at, layer in self.layers.items():
            made.kernels[layer.start] = (self.packed if at in blocked else self.plain)[at]
        for at, rule in self.rules.items():
            if at in blocked:
                made.operators[self.flow.bindings[at].var] = rule
        return made

    def _epilogue(self, at: int, kernel: Candidate) -> float:
        """Seconds in which a kernel reads the tensors of its epilogue, such as a residual: where it
        computes vectors of channels and the layout has pixels, element by element."""
        layer, task = self.layers[at], kernel.task
        tensors = len(layer.epilogue.tensors)
        aligned = task.layout != "NCHW" or task.algorithm_name in ALONG_PIXELS
        rate = (_ADDED if aligned else _ADDED_PLAIN) * self.threads
        return tensors * task.workload.out_bytes / rate

    def _price_conversion(self, labels: Labels, var: relax.Var, reading: set[object]) -> None:
        """What it costs that some of those that read `var` have another layout than what made
        it."""
        shape = shape_of(var)
        if shape is None or not fits(shape, self.block):
            return
        # One pixel an image lies in memory alike; the rest is read and written once.
        pixels = shape[2] * shape[3]
        price = 8 * prod(shape) / _CONVERTED / self.threads if pixels > 1 else 1e-9
        source: object = self.flow.position.get(var, "plain")
        if source not in self.rules and source not in self.packed:
            source = "plain"
        labels.convert(var, source, reading, price)

    def _readers(self) -> dict[relax.Var, set[object]]:
        """The nodes that read a tensor in a layout of their own choice, "plain" standing for all
        that take NCHW only."""
        found: dict[relax.Var, set[object]] = {}

        def note(expr: relax.Expr, node: object) -> None:
            for var in variables(expr):
                found.setdefault(var, set()).add(node)

        for at, binding in enumerate(self.flow.bindings):
            if at in self.layers:
                layer = self.layers[at]
                node = at if at in self.packed else "plain"
                note(layer.data, "plain" if self._is_entry(layer) else node)
                for tensor in layer.epilogue.tensors:
                    note(tensor, node)
            elif at in self.rules:
                for operand in self.rules[at].operands:
                    note(operand, at)
            elif at not in self.absorbed:
                note(binding.value, "plain")
        note(self.flow.function.body.body, "plain")
        return found

    def _rules(self) -> Iterator[tuple[int, InBlocks]]:
        for at, binding in enumerate(self.flow.bindings):
            if at in self.absorbed:
                continue
            rule = in_blocks(binding.value, self.block)
            if rule is not None:
                yield at, rule

    def _choose(self, candidates: Candidates) -> None:
        """The best kernel of every layer in NCHW, and in blocks where it can have them."""
        wanted: dict[str, dict[int, ConvWorkload]] = {}
        for at, layer in self.layers.items():
            plain = "NHWC" if layer.is_dense else "NCHW"
            wanted.setdefault(plain, {})[at] = layer.workload
            shape = shape_of(self.flow.bindings[layer.start].var)
            if self.layout and not layer.is_dense and fits(shape, self.block):
                layout = f"NCHW-{self.layout}" if self._is_entry(layer) else self.layout
                wanted.setdefault(layout, {})[at] = layer.workload
        for layout, workloads in wanted.items():
            candidates.prepare(list(workloads.values()), layout)
            for at, workload in workloads.items():
                best = candidates.best(workload, layout)
                if best is not None:
                    (self.packed if channel_block(layout) else self.plain)[at] = best

    def _is_entry(self, layer: Convolution) -> bool:
        """Whether a layer cannot read blocks, as the first one cannot of three channels."""
        return self.block > 0 and not fits(shape_of(layer.data), self.block)
