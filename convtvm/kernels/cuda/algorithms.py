"""The table of algorithms on NVIDIA GPUs, under the same names as on the CPU.

What an algorithm is, where it applies and what it costs in multiplications comes from the CPU's
row; compute, packing, template and workspace are the GPU's own. Workspaces are parameters of the
computes, whose bytes these formulas give. In float16 and bfloat16, and by the variants `tf32`,
products are for tensor cores.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from tvm import tirx

from convtvm.compute.cuda import depthwise, direct, gemm, im2col, mec, winograd
from convtvm.compute.im2col import has_columns
from convtvm.compute.mec import lowered_bytes
from convtvm.compute.phases import Phases
from convtvm.compute.winograd import Tiling
from convtvm.kernels.algorithms import ALGORITHMS, Algorithm
from convtvm.problem.workload import ConvWorkload
from schedules.cuda import depthwise as cuda_depthwise
from schedules.cuda import direct as cuda_direct
from schedules.cuda import lowered as cuda_lowered
from schedules.cuda import winograd as cuda_winograd
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions


def _tiling(d: Decisions) -> gemm.Tiling:
    return gemm.Tiling(d["tile_p"], d["tile_c"], d["tile_k"], d["split_k"])


def _direct_workspace(w: ConvWorkload, layout: str, gpu: GpuModel, d: Decisions) -> int:
    """The partial sums, if several blocks share a sum."""
    return gemm.parts_bytes(w.groups, w.n * w.oh * w.ow, w.oc // w.groups, _tiling(d))


def _im2col_workspace(w: ConvWorkload, layout: str, gpu: GpuModel, d: Decisions) -> int:
    """The columns, and the partial sums."""
    shape = im2col.columns_shape(w, layout)
    columns = w.element_bytes * math.prod(shape) if has_columns(w) else 0
    return columns + _direct_workspace(w, layout, gpu, d)


def _lowered_bytes(w: ConvWorkload, layout: str) -> int:
    own = lowered_bytes(w) * w.element_bytes // 4  # as the CPU counts it, in float32
    return own * direct.held_channels(w) * w.groups // w.ic if layout == "NHWC" else own


def _mec_a_workspace(w: ConvWorkload, layout: str, gpu: GpuModel, d: Decisions) -> int:
    """L and the sums, in whole tiles."""
    sums = gemm.sums_bytes(w.groups, w.n * w.oh * w.ow, w.oc // w.groups, _tiling(d))
    return _lowered_bytes(w, layout) + sums


def _mec_b_workspace(w: ConvWorkload, layout: str, gpu: GpuModel, d: Decisions) -> int:
    """L, and the partial sums."""
    return _lowered_bytes(w, layout) + _direct_workspace(w, layout, gpu, d)


def _winograd_workspace(w: ConvWorkload, layout: str, gpu: GpuModel, d: Decisions, m: int) -> int:
    """V and M."""
    batch, _, _ = winograd.packed_weight_shape(w, m)
    products = gemm.sums_bytes(batch, Tiling.of(w, m).count(w), w.oc, _tiling(d))
    return 4 * math.prod(winograd.input_shape(w, m, layout)) + products


def _in_float32(a: Algorithm) -> Algorithm:
    """The row for workloads in float32 only."""

    def inapplicable(w: ConvWorkload) -> str | None:
        if w.dtype != "float32":
            return f"dtype is {w.dtype}, {a.name} needs float32"
        return a.inapplicable(w)

    return replace(a, inapplicable=inapplicable)


def _tf32(a: Algorithm) -> Algorithm:
    """The row with factors rounded to 10 bits: errors of up to 2^-11 for each of a sum's terms."""
    compute = partial(a.compute, tf32=True)
    variant = replace(a, name=f"{a.name}:tf32", compute=compute, tolerance=2e-3, opt_in=True)
    return _in_float32(variant)


def _winograd(m: int) -> Algorithm:
    cpu = ALGORITHMS[f"winograd:{m}"]

    def inapplicable(w: ConvWorkload) -> str | None:
        # A thread keeps a tile in registers, and a strided one has too many pixels.
        part = Phases.of(w).part
        if (part.sh, part.sw) != (1, 1):
            of_phases = "" if part is w else " of phases"
            return f"stride is {part.sh}x{part.sw}{of_phases}, Winograd on a GPU needs 1"
        return cpu.inapplicable(w)

    return replace(
        _in_float32(replace(cpu, inapplicable=inapplicable)),
        template=cuda_winograd,
        compute=partial(winograd.conv2d, m=m),
        pack=lambda w, lanes, layout: winograd.pack_weight(w, m),
        workspace_bytes=partial(_winograd_workspace, m=m),
    )


def _pack_matrix(w: ConvWorkload, lanes: int, layout: str) -> tirx.PrimFunc:
    """The weight as the right operand of a product, the same for direct, im2col and MEC."""
    return direct.pack_weight(w, layout)


_DIRECT = replace(
    ALGORITHMS["direct"],
    template=cuda_direct,
    compute=direct.conv2d,
    pack=_pack_matrix,
    workspace_bytes=_direct_workspace,
)
_IM2COL = replace(
    ALGORITHMS["im2col"],
    template=cuda_lowered,
    compute=im2col.conv2d,
    pack=_pack_matrix,
    workspace_bytes=_im2col_workspace,
)
_TABLE = (
    _DIRECT,
    _tf32(_DIRECT),
    replace(
        _in_float32(ALGORITHMS["direct:depthwise"]),
        template=cuda_depthwise,
        compute=depthwise.conv2d,
        pack=lambda w, lanes, layout: depthwise.pack_weight(w),
        workspace_bytes=lambda w, layout, gpu, d: 0,
    ),
    _IM2COL,
    _tf32(_IM2COL),
    replace(
        ALGORITHMS["mec:a"],
        template=cuda_lowered,
        compute=mec.conv2d_a,
        pack=_pack_matrix,
        workspace_bytes=_mec_a_workspace,
    ),
    replace(
        ALGORITHMS["mec:b"],
        template=cuda_lowered,
        compute=mec.conv2d_b,
        pack=_pack_matrix,
        workspace_bytes=_mec_b_workspace,
    ),
    *(_winograd(m) for m in (2, 4, 6)),
)
CUDA_ALGORITHMS: dict[str, Algorithm] = {a.name: a for a in _TABLE}
