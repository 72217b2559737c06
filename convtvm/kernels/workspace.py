"""Workspace of each algorithm's kernels on a CPU: bytes of scratch memory, by their decisions."""

from __future__ import annotations

import math

from convtvm.compute import depthwise, im2col, mec, pointwise, stages, strassen, winograd
from convtvm.compute.phases import Phases
from convtvm.problem.workload import ConvWorkload, channel_block
from schedules.cpu import depthwise as cpu_depthwise
from schedules.cpu.registers import CpuModel
from schedules.knobs import Decisions

# A buffer of up to this many bytes lives on the stack of its thread and is no workspace.
STACK_BYTES = cpu_depthwise.STACK_BYTES


def allocated_bytes(*sizes: int) -> int:
    """Bytes of those buffers that are workspace: the ones too large for the stack."""
    return sum(size for size in sizes if size > STACK_BYTES)


def padded_copy(w: ConvWorkload) -> int:
    """Workspace of a padded copy of the data, as far as windows reach."""
    rows, cols = stages.read_rows_cols(w)
    return allocated_bytes(4 * w.n * w.ic * rows * cols)


def of_direct(w: ConvWorkload, layout: str, cpu: CpuModel, d: Decisions) -> int:
    return padded_copy(w) if stages.is_padded(w) else 0


def none(w: ConvWorkload, layout: str, cpu: CpuModel, d: Decisions) -> int:
    return 0


def of_depthwise(w: ConvWorkload, layout: str, cpu: CpuModel, d: Decisions) -> int:
    """The padded copy: of a few channels for each thread (NCHW), of some rows of a block of
    channels (in blocks), or of all images (NHWC)."""
    if depthwise.are_blocks(w, layout):
        copied = depthwise.copied_block_bytes(w, layout, d["rows"] * d["tile_h"])
        alone = w.n * w.oc == channel_block(layout)
        return (1 if alone else cpu.threads) * allocated_bytes(copied)
    shape = depthwise.padded_shape(w, layout, cpu.lanes)
    if layout != "NCHW":
        return allocated_bytes(4 * math.prod(shape))
    alone = w.n * w.oc == d["channels"]  # a parallel loop of one turn is no loop
    copied = max(1, d["channels"] * w.ic // w.oc)
    return (1 if alone else cpu.threads) * allocated_bytes(4 * copied * math.prod(shape[2:]))


def of_pointwise(w: ConvWorkload, layout: str, cpu: CpuModel, d: Decisions) -> int:
    """The copy by tiles, if there is one."""
    return allocated_bytes(pointwise.copied_bytes(w, cpu.lanes, d["tile_p"])) if d["pack"] else 0


def of_im2col(w: ConvWorkload, layout: str, cpu: CpuModel, d: Decisions) -> int:
    """The column matrix, kh*kw*ic x oh*ow for each image, in whole panels."""
    return allocated_bytes(im2col.column_bytes(w, d["tile_ow"], d["panel"], d["pack"]))


def of_mec(w: ConvWorkload, layout: str, cpu: CpuModel, d: Decisions) -> int:
    """L, and nothing else."""
    return allocated_bytes(mec.lowered_bytes(w))


def of_winograd(w: ConvWorkload, layout: str, cpu: CpuModel, d: Decisions, m: int) -> int:
    """The padded copy in whole vectors, and V and M of one panel for each thread."""
    tiling = winograd.Tiling.of(w, m)
    grid_h, grid_w = tiling.grid(w, d["panel_h"], d["panel_w"])
    alpha_h, alpha_w, oc_chunks, ic_chunks, *blocks = winograd.packed_weight_shape(w, m, cpu.lanes)
    ic_vector, oc_vector = (4 * block for block in blocks)
    rows, cols = tiling.padded(grid_h, grid_w)
    images = Phases.of(w).part.n
    tiles, panel = images * grid_h * grid_w, d["images"] * d["panel_h"] * d["panel_w"]

    elements = alpha_h * alpha_w
    pad = images * ic_chunks * rows * cols * ic_vector
    v = elements * ic_chunks * ic_vector * (tiles if d["input_first"] else panel)
    gemm = elements * oc_vector * (d["tile_oc"] if d["gemm_at_oc"] else oc_chunks) * panel

    turns = tiles // panel * (oc_chunks // d["tile_oc"] if d["input_first"] else 1)
    if turns > 1:
        shared, own = ([pad, v], [gemm]) if d["input_first"] else ([pad], [v, gemm])
        return allocated_bytes(*shared) + cpu.threads * allocated_bytes(*own)
    # A parallel loop of one turn is no loop. Then M takes the memory of the copy, which V has made
    # useless, unless TVM finds their sizes too different.
    if max(pad, gemm) <= 16 * min(pad, gemm):
        return allocated_bytes(v, max(pad, gemm))
    return allocated_bytes(pad, v, gemm)


def of_strassen(w: ConvWorkload, layout: str, cpu: CpuModel, d: Decisions, levels: int) -> int:
    """V and M of one panel for each thread, and with two levels what is between M and the sums of a
    tile, where it outgrows the stack."""
    *products, _, ic_chunks, kh, kw, block, lanes = strassen.packed_weight_shape(
        w, levels, cpu.lanes
    )
    count, part = math.prod(products), strassen.part_pixels(w, levels, d["panel"])
    pixels = w.n * part if d["input_first"] else d["panel"]
    v = 4 * count * ic_chunks * block * kh * kw * pixels
    gemm = 4 * count * d["tile_oc"] * lanes * d["panel"]
    between = 4 * products[0] * 4 * d["tile_p"] * lanes if levels > 1 else 0
    sums = 4 * 4**levels * d["tile_p"] * lanes
    chunks_out = strassen.packed_weight_shape(w, levels, cpu.lanes)[levels]
    turns = w.n * part // d["panel"] * (chunks_out // d["tile_oc"] if d["input_first"] else 1)
    shared, own = ([v], [gemm]) if d["input_first"] else ([], [v, gemm])
    threads = cpu.threads if turns > 1 else 1
    return allocated_bytes(*shared) + threads * allocated_bytes(*own, between, sums)
