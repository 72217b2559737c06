"""The table of algorithms on NVIDIA GPUs, under the same names as on the CPU.

What an algorithm is, where it applies and what it costs in multiplications comes from the CPU's
row; compute, packing, template and workspace are the GPU's own.
"""

from __future__ import annotations

from dataclasses import replace

from convtvm.algorithms import ALGORITHMS, Algorithm
from convtvm.compute.cuda import plain
from convtvm.workload import ConvWorkload
from schedules.cuda import plain as cuda_plain
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions


def _no_workspace(w: ConvWorkload, layout: str, gpu: GpuModel, d: Decisions) -> int:
    return 0


_TABLE = (
    replace(
        ALGORITHMS["direct"],
        template=cuda_plain,
        compute=plain.conv2d,
        pack=lambda w, lanes, layout: plain.pack_weight(w),
        workspace_bytes=_no_workspace,
    ),
)
CUDA_ALGORITHMS: dict[str, Algorithm] = {a.name: a for a in _TABLE}
