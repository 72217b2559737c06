"""The channels of a convolution that computes the phases of a transposed one, over its pixels."""

from __future__ import annotations

from typing import Any

from tvm import te

from convtvm.problem.transposed import Phases


def spread(phases: Phases, data: te.Tensor) -> te.Tensor:
    """Of `data` in NCHW or in blocks, in the same."""
    (sh, sw), (top, left), (n, c, h, w) = phases.strides, phases.first, phases.shape
    block = int(data.shape[4]) if len(data.shape) == 5 else 0
    of_group = phases.of_group

    def element(image: Any, channel: Any, y: Any, x: Any) -> Any:
        row, col = y + top, x + left
        phase = row % sh * sw + col % sw
        group = channel // of_group
        source = (group * phases.repeats + phase) * of_group + channel % of_group
        if block:
            return data[image, source // block, row // sh, col // sw, source % block]
        return data[image, source, row // sh, col // sw]

    if not block:
        return te.compute(phases.shape, element, name="spread")
    return te.compute(
        (n, c // block, h, w, block),
        lambda i, k, y, x, lane: element(i, k * block + lane, y, x),
        name="spread",
    )
