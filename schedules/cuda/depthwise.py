"""GPU template of depthwise convolution: a thread has a strip of pixels of one channel, or of a
vector of channels, and keeps what it reads in registers."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from schedules.cuda import gemm
from schedules.cuda.elementwise import spread
from schedules.cuda.model import GpuModel
from schedules.knobs import Decisions, Rules, Space

VERSION = 1
COMPUTE_KNOBS = ("tile_h", "tile_w")

_HELD = 160  # floats that a thread keeps in registers
_WANTED = 1024  # threads of a processor that hide the latency of memory


@dataclass(frozen=True)
class _Rules(Rules):
    """Extents of the output; `taps` of a kernel, strides, rows and columns that a kernel spans;
    `scalar` where a thread has one channel."""

    gpu: GpuModel
    n: int
    oc: int
    oh: int
    ow: int
    taps: int
    scalar: bool
    stride_h: int
    stride_w: int
    span_h: int
    span_w: int

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        return {
            "tile_h": tuple(t for t in (1, 2, 4, 7, 8) if t <= self.oh),
            "tile_w": tuple(t for t in (1, 2, 4, 7, 8) if t <= self.ow),
            # Neighbouring channels of a thread (NHWC).
            "vector": (1,) if self.scalar else tuple(v for v in (1, 2, 4) if self.oc % v == 0),
            "threads": (32, 64, 128, 256),
        }

    def patch(self, d: Decisions) -> int:
        """Input pixels that a thread holds; a single output pixel reads its taps one by one."""
        if _is_single(d):
            return self.taps
        rows = (d["tile_h"] - 1) * self.stride_h + self.span_h
        return rows * ((d["tile_w"] - 1) * self.stride_w + self.span_w)

    def is_valid(self, d: Decisions) -> bool:
        pixels = d["tile_h"] * d["tile_w"]
        return _is_single(d) or (self.patch(d) + pixels) * d["vector"] <= _HELD

    def count(self, d: Decisions) -> int:
        """Threads in all."""
        strips = -(-self.oh // d["tile_h"]) * -(-self.ow // d["tile_w"])
        return self.n * strips * (self.oc // d["vector"])

    def cost(self, d: Decisions) -> float:
        # Of a processor that has all its threads: loads, arithmetic, and the rest of a thread.
        loads, products = self.patch(d) + self.taps, self.taps * d["tile_h"] * d["tile_w"]
        work = loads + d["vector"] * (products / 8 + 4) + 16
        blocks = -(-self.count(d) // d["threads"])
        resident = max(1, _WANTED // d["threads"])
        turns = max(1.0, blocks / (self.gpu.processors * resident))
        return turns * work + abs(d["threads"] - 128) / 1e4

    def features(self, d: Decisions) -> dict[str, float]:
        return {
            "patch": self.patch(d),
            "total_threads": self.count(d),
            "pixels": d["tile_h"] * d["tile_w"],
        }


def space(sch: Schedule, gpu: GpuModel) -> Space:
    """Knobs: a thread's strip and channels, and the threads of a block."""
    nchw = gemm.layout(sch) == "NCHW"
    extents = [int(sch.get(loop).extent) for loop in sch.get_loops(sch.get_sblock("conv"))]
    n, oc, oh, ow = extents[:4] if nchw else (extents[0], extents[3], *extents[1:3])
    scalar = nchw or gemm.attribute(sch, "multiplier") > 1
    reach = (gemm.attribute(sch, name) for name in ("stride_h", "stride_w", "span_h", "span_w"))
    return Space(_Rules(gpu, n, oc, oh, ow, extents[4] * extents[5], scalar, *reach))


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
