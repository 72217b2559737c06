"""Whether a workload's tensors fit any memory, and an algorithm's own buffer: its elements are
counted with 32 bits.

Only `direct` computes what is larger, with wider indices, as all do where data, weight or output
are: a column matrix of more than 8 GiB gains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from convtvm.compute import im2col, mec, stages, winograd
from convtvm.compute.cuda.direct import held_channels
from convtvm.compute.phases import Phases
from convtvm.problem.workload import ConvWorkload


def columns(w: ConvWorkload) -> int:
    """Elements of im2col's column matrix."""
    return im2col.column_bytes(w) // 4 // w.ic * _held(w)


def lowered(w: ConvWorkload) -> int:
    """Elements of MEC's L."""
    return mec.lowered_bytes(w) // 4 // w.ic * _held(w)


def _held(w: ConvWorkload) -> int:
    """Channels, with the zeros that a GPU's products in 16 bits may have."""
    return w.groups * held_channels(w)


def padded(w: ConvWorkload) -> int:
    """Elements of a padded copy of the data, as far as windows reach."""
    return w.n * w.ic * math.prod(stages.read_rows_cols(w))


def padded_to_tiles(w: ConvWorkload, m: int) -> int:
    """Elements of Winograd's padded copy, of all phases of a dilation."""
    tiling = winograd.Tiling.of(w, m)
    return Phases.of(w).part.n * w.ic * math.prod(tiling.padded(*tiling.grid(w)))


_ADDRESSABLE = 1 << 47  # bytes that a process can address on CPUs of today


def _too_large(w: ConvWorkload) -> str | None:
    """Which tensor no memory holds, None if there is none."""
    sizes = {
        "data": w.data_bytes,
        "weight": w.weight_bytes,
        "output": w.out_bytes,
        "padded data": padded(w) * w.element_bytes,
    }
    name = max(sizes, key=lambda name: sizes[name])
    if sizes[name] <= _ADDRESSABLE:
        return None
    return f"its {name} takes {sizes[name]:,} bytes, more than a process can address"


@dataclass(frozen=True)
class Applicability:
    """Why an algorithm cannot compute a workload, None if it can: tensors that no memory holds, a
    reason of its own, or else the size of its buffer."""

    name: str
    reason: Callable[[ConvWorkload], str | None]
    buffer: Callable[[ConvWorkload], int]

    def __call__(self, w: ConvWorkload) -> str | None:
        reason = _too_large(w) or self.reason(w)
        if reason is not None:
            return reason
        size, most = self.buffer(w), stages.MOST_ELEMENTS
        if size <= most:
            return None
        return f"{self.name} needs a buffer of {size:,} elements, more than {most:,} (32 bits)"
