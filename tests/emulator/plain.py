"""A task with as little structure as a GPU needs, for planted faults: a sum for every output.

    conv[n, y, x, c] = sum_{ky, kx, i} data_pad[n, i, y*sh + ky*dh, x*sw + kx*dw]
                                       * weight[ky, kx, i, c]

A thread has a pixel, a block the weights of a tap in shared memory, which it fetches together.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from tvm import te, tirx
from tvm.s_tir import Schedule

from convtvm.compute import stages
from convtvm.kernels.algorithms import ALGORITHMS, Algorithm
from convtvm.kernels.task import Task
from convtvm.problem.workload import ConvWorkload
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions, Rules, Space

VERSION = 1
COMPUTE_KNOBS = ()


def packed_weight_shape(w: ConvWorkload) -> tuple[int, ...]:
    """[kh, kw, ic/groups, oc]: neighbouring channels lie together."""
    return (w.kh, w.kw, w.ic // w.groups, w.oc)


def pack_weight(w: ConvWorkload) -> tirx.PrimFunc:
    """weight [oc, ic/groups, kh, kw] -> `packed_weight_shape`."""
    weight = te.placeholder(w.weight_shape, w.dtype, name="weight")
    packed = te.compute(
        packed_weight_shape(w), lambda ky, kx, i, c: weight[c, i, ky, kx], name="pack"
    )
    return te.create_prim_func([weight, packed])


def conv2d(w: ConvWorkload, layout: str, lanes: int) -> tirx.PrimFunc:
    """(data, packed weight, bias [oc], out) in `layout`; blocks data_pad (if padded), conv, out."""
    icg, ocg = w.ic // w.groups, w.oc // w.groups
    data, bias = stages.placeholders(w, layout)
    weight = te.placeholder(packed_weight_shape(w), w.dtype, name="weight")
    read = stages.padded_reader(w, data, layout, *stages.read_rows_cols(w))
    ky = te.reduce_axis((0, w.kh), "ky")
    kx = te.reduce_axis((0, w.kw), "kx")
    i = te.reduce_axis((0, icg), "ic")

    def product(n, y, x, c):
        value = read(n, c // ocg * icg + i, y * w.sh + ky * w.dh, x * w.sw + kx * w.dw)
        return te.sum(value * weight[ky, kx, i, c], axis=[ky, kx, i])

    conv = te.compute((w.n, w.oh, w.ow, w.oc), product, name="conv")
    out = stages.output(w, layout, lambda n, c, y, x: conv[n, y, x, c], bias)
    return stages.prim_func([data, weight, bias, out], layout)


@dataclass(frozen=True)
class _Rules(Rules):
    channels: int

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        return {
            "tile_p": (32, 64, 128, 256),
            "tile_oc": tuple(t for t in (1, 2, 4, 8, 16) if self.channels % t == 0),
        }

    def cost(self, d: Decisions) -> float:
        return 1 / d["tile_oc"] + abs(d["tile_p"] - 64) / 1000


def space(sch: Schedule, gpu: GpuModel) -> Space:
    """Knobs: threads (pixels) of a block, output channels of a thread."""
    return Space(_Rules(int(sch.mod["main"].params[1].shape[-1])))


def schedule(sch: Schedule, gpu: GpuModel, d: Decisions) -> None:
    out, conv = sch.get_sblock("out"), sch.get_sblock("conv")
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        if sch.get(block).name_hint == "data_pad":
            sch.compute_inline(block)

    # Pixels to threads, channels to blocks; a thread keeps its sums in registers.
    nhwc = str(sch.mod["main"].attrs["layout"]) == "NHWC"
    loops = sch.get_loops(out)
    n, y, x, c = loops if nhwc else (loops[0], loops[2], loops[3], loops[1])
    sch.reorder(n, y, x, c)
    co, ci = sch.split(c, [None, d["tile_oc"]])
    po, pi = sch.split(sch.fuse(n, y, x), [None, d["tile_p"]])
    sch.reorder(po, co, pi, ci)
    sch.bind(po, "blockIdx.x")
    sch.bind(co, "blockIdx.y")
    sch.bind(pi, "threadIdx.x")
    sch.set_scope(conv, 0, "local")
    sch.compute_at(conv, pi, preserve_unit_loops=True)

    # The weights of a few taps, fetched by all threads together.
    *_, c, ky, kx, i = sch.get_loops(conv)
    sch.reorder(ky, kx, i, c)
    weights = sch.cache_read(conv, 1, "shared")
    sch.compute_at(weights, kx, preserve_unit_loops=True)
    fetched = sch.fuse(*sch.get_loops(weights)[-4:])
    _, thread = sch.split(fetched, [None, d["tile_p"]])
    sch.bind(thread, "threadIdx.x")
    sch.unroll(c)
    sch.decompose_reduction(conv, ky)


class PlainTask(Task):
    """`direct` by the compute and template of this file."""

    @property
    def algorithm(self) -> Algorithm:
        return replace(
            ALGORITHMS["direct"],
            template=sys.modules[__name__],
            compute=conv2d,
            pack=lambda w, lanes, layout: pack_weight(w),
        )
