"""What follows a transposed convolution that is computed by phases: its channels spread over the
pixels, in operations that Inductor makes a part of other loops."""

from __future__ import annotations

import torch
from torch import fx

from convtvm.problem.transposed import Phases
from convtvm.problem.workload import channel_block
from convtvm.torch.nodes import call
from convtvm.torch.operator import Recipe

aten = torch.ops.aten


def spread(graph: fx.Graph, node: fx.Node, recipe: Recipe) -> fx.Node:
    """The output [n, c, h, w] of a transposed convolution from its phases, in the order of memory
    that the recipe gives them: one in blocks is [n, c / b, h, w, b], a 1-D one [n, c, w]."""
    phases, need = recipe.phases, recipe.need
    assert phases is not None
    _, c, h, w = phases.shape
    (sh, sw), groups, rows, columns = phases.strides, phases.groups, *phases.image
    if recipe.wide:
        node = call(graph, aten.permute.default, node, [0, 2, 3, 1])
        split = [-1, rows, columns, groups, sh, sw, phases.of_group]
        order, merged, axis = [0, 1, 4, 2, 5, 3, 6], [-1, rows * sh, columns * sw, c], 1
    else:
        block = channel_block(need.layout) or 1
        split = [-1, groups, sh, sw, phases.of_group // block, rows, columns]
        order, merged, axis = [0, 1, 4, 5, 2, 6, 3], [-1, c // block, rows * sh, columns * sw], 2
        if need.is_blocked:
            split, order, merged = [*split, block], [*order, 7], [*merged, block]
    if phases.repeats > 1 or recipe.flat:
        node = call(graph, aten.reshape.default, node, split)
        node = call(graph, aten.permute.default, node, order)
        node = call(graph, aten.reshape.default, node, merged)
    if [rows * sh, columns * sw] != [h, w]:
        node = _cut(graph, node, axis, phases)
    if recipe.wide:
        return call(graph, aten.permute.default, node, [0, 3, 1, 2])
    return call(graph, aten.squeeze.dim, node, 2) if recipe.flat else node


def _cut(graph: fx.Graph, node: fx.Node, axis: int, phases: Phases) -> fx.Node:
    """Rows and columns of the output alone, in memory of their own."""
    for i, (first, size) in enumerate(zip(phases.first, phases.shape[2:], strict=True), axis):
        node = call(graph, aten.slice.Tensor, node, i, first, first + size)
    contiguous = {"memory_format": torch.contiguous_format}
    return call(graph, aten.clone.default, node, **contiguous)
