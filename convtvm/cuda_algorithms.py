"""The table of algorithms on NVIDIA GPUs, under the same names as on the CPU.

What an algorithm is, where it applies and what it costs in multiplications comes from the CPU's
row; compute, packing, template and workspace are the GPU's own.
"""

from __future__ import annotations

from dataclasses import replace

from convtvm.algorithms import ALGORITHMS, Algorithm
from convtvm.compute.cuda import direct, gemm
from convtvm.workload import ConvWorkload
from schedules.cuda import direct as cuda_direct
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions


def _tiling(d: Decisions) -> gemm.Tiling:
    return gemm.Tiling(d["tile_p"], d["tile_c"], d["tile_k"], d["split_k"])


def _direct_workspace(w: ConvWorkload, layout: str, gpu: GpuModel, d: Decisions) -> int:
    """The partial sums, if several blocks share a sum."""
    return gemm.parts_bytes(w.groups, w.n * w.oh * w.ow, w.oc // w.groups, _tiling(d))


_TABLE = (
    replace(
        ALGORITHMS["direct"],
        template=cuda_direct,
        compute=direct.conv2d,
        pack=lambda w, lanes, layout: direct.pack_weight(w),
        workspace_bytes=_direct_workspace,
    ),
)
CUDA_ALGORITHMS: dict[str, Algorithm] = {a.name: a for a in _TABLE}
