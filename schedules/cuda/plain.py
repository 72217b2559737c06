"""Template of the plain convolution: a thread per pixel, a block's weights in shared memory."""

from __future__ import annotations

from tvm.s_tir import Schedule

from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions, Space

VERSION = 1
COMPUTE_KNOBS = ()


def space(sch: Schedule, gpu: GpuModel) -> Space:
    """Knobs: threads (pixels) of a block, output channels of a thread."""
    channels = int(sch.mod["main"].params[1].shape[-1])
    knobs = {
        "tile_p": (32, 64, 128, 256),
        "tile_oc": tuple(t for t in (1, 2, 4, 8, 16) if channels % t == 0),
    }

    def cost(d: Decisions) -> float:
        return 1 / d["tile_oc"] + abs(d["tile_p"] - 64) / 1000

    return Space(knobs, lambda d: True, lambda d: True, cost)


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
