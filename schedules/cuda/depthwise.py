"""GPU template of depthwise convolution: a thread has a strip of pixels of one channel, or of a
vector of channels, and keeps what it reads in registers."""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from schedules.cuda import gemm
from schedules.cuda.elementwise import spread
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions, Space

VERSION = 1
COMPUTE_KNOBS = ("tile_h", "tile_w")

_HELD = 160  # floats that a thread keeps in registers
_WANTED = 1024  # threads of a processor that hide the latency of memory


def space(sch: Schedule, gpu: GpuModel) -> Space:
    """Knobs: a thread's strip and channels, and the threads of a block."""
    nchw = gemm.layout(sch) == "NCHW"
    extents = [int(sch.get(loop).extent) for loop in sch.get_loops(sch.get_sblock("conv"))]
    n, oc, oh, ow = extents[:4] if nchw else (extents[0], extents[3], *extents[1:3])
    taps = extents[4] * extents[5]
    scalar = nchw or gemm.attribute(sch, "multiplier") > 1
    knobs = {
        "tile_h": tuple(t for t in (1, 2, 4, 7, 8) if t <= oh),
        "tile_w": tuple(t for t in (1, 2, 4, 7, 8) if t <= ow),
        # Neighbouring channels of a thread (NHWC).
        "vector": (1,) if scalar else tuple(v for v in (1, 2, 4) if oc % v == 0),
        "threads": (32, 64, 128, 256),
    }
    stride_h, stride_w, span_h, span_w = (
        gemm.attribute(sch, name) for name in ("stride_h", "stride_w", "span_h", "span_w")
    )

    def patch(d: Decisions) -> int:
        """Input pixels that a thread holds; a single output pixel reads its taps one by one."""
        if _is_single(d):
            return taps
        return ((d["tile_h"] - 1) * stride_h + span_h) * ((d["tile_w"] - 1) * stride_w + span_w)

    def is_valid(d: Decisions) -> bool:
        pixels = d["tile_h"] * d["tile_w"]
        return _is_single(d) or (patch(d) + pixels) * d["vector"] <= _HELD

    def count(d: Decisions) -> int:
        return n * -(-oh // d["tile_h"]) * -(-ow // d["tile_w"]) * (oc // d["vector"])

    def cost(d: Decisions) -> float:
        # Of a processor that has all its threads: loads, arithmetic, and the rest of a thread.
        loads = patch(d) + taps
        work = loads + d["vector"] * (taps * d["tile_h"] * d["tile_w"] / 8 + 4) + 16
        blocks = -(-count(d) // d["threads"])
        resident = max(1, _WANTED // d["threads"])
        turns = max(1.0, blocks / (gpu.processors * resident))
        return turns * work + abs(d["threads"] - 128) / 1e4

    def features(d: Decisions) -> dict[str, float]:
        return {"patch": patch(d), "total_threads": count(d), "pixels": d["tile_h"] * d["tile_w"]}

    return Space(knobs, is_valid, lambda d: True, cost, features)


def schedule(sch: Schedule, gpu: GpuModel, d: Decisions) -> None:
    conv, patch, out = (sch.get_sblock(name) for name in ("conv", "patch", "out"))
    nchw = gemm.layout(sch) == "NCHW"

    # A strip for each thread; neighbours along memory.
    *loops, ky, kx = sch.get_loops(conv)
    n, c, y, x = loops if nchw else (loops[0], loops[3], *loops[1:3])
    y, yi = sch.split(y, [None, d["tile_h"]])
    x, xi = sch.split(x, [None, d["tile_w"]])
    c, ci = sch.split(c, [None, d["vector"]])
    outer = [n, c, y, x] if nchw else [n, y, x, c]
    sch.reorder(*outer, ky, kx, yi, xi, ci)
    thread = spread(sch, outer, d["threads"])

    # Sums and, of more than one pixel, the input in registers.
    sch.set_scope(conv, 0, "local")
    sch.reverse_compute_at(out, thread, preserve_unit_loops=True)
    if _is_single(d):
        sch.compute_inline(patch)
    else:
        sch.set_scope(patch, 0, "local")
        sch.compute_at(patch, thread, preserve_unit_loops=True)
        _finish(sch, sch.get_loops(patch)[-4:], d["vector"])
    _finish(sch, sch.get_loops(out)[-4:], d["vector"])
    _finish(sch, [ky, kx, yi, xi, ci], d["vector"])
    init = sch.decompose_reduction(conv, ky)
    _finish(sch, sch.get_loops(init)[-3:], d["vector"])


def _is_single(d: Decisions) -> bool:
    return d["tile_h"] * d["tile_w"] == 1


def _finish(sch: Schedule, loops: list[LoopRV], vector: int) -> None:
    """Unroll a thread's own loops, the last one by vectors if it runs over channels."""
    if vector > 1:
        sch.vectorize(loops.pop())
    gemm.unroll(sch, *loops)
