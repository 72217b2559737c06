"""Whether an algorithm's own buffer fits: its elements are counted with 32 bits.

Only `direct` computes what is larger, with wider indices, as all do where data, weight or output
are: a column matrix of more than 8 GiB gains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from convtvm.compute import im2col, mec, stages, winograd
from convtvm.compute.phases import Phases
from convtvm.problem.workload import ConvWorkload


def columns(w: ConvWorkload) -> int:
    """Elements of im2col's column matrix."""
    return im2col.column_bytes(w) // 4


def lowered(w: ConvWorkload) -> int:
    """Elements of MEC's L."""
    return mec.lowered_bytes(w) // 4


def padded(w: ConvWorkload) -> int:
    """Elements of a padded copy of the data, as far as windows reach."""
    return w.n * w.ic * math.prod(stages.read_rows_cols(w))


def padded_to_tiles(w: ConvWorkload, m: int) -> int:
    """Elements of Winograd's padded copy, of all phases of a dilation."""
    tiling = winograd.Tiling.of(w, m)
    return Phases.of(w).part.n * w.ic * math.prod(tiling.padded(*tiling.grid(w)))


@dataclass(frozen=True)
class Applicability:
    """Why an algorithm cannot compute a workload, None if it can: a reason of its own, or else the
    size of its buffer."""

    name: str
    reason: Callable[[ConvWorkload], str | None]
    buffer: Callable[[ConvWorkload], int]

    def __call__(self, w: ConvWorkload) -> str | None:
        reason = self.reason(w)
        if reason is not None:
            return reason
        size, most = self.buffer(w), stages.MOST_ELEMENTS
        if size <= most:
            return None
        return f"{self.name} needs a buffer of {size:,} elements, more than {most:,} (32 bits)"
