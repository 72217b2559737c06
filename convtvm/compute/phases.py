"""Phases: a dilated convolution as convolutions without dilation, which know nothing of each other.

Along an axis with stride s and dilation d, output y reads y*s + k*d. With g = gcd(s, d), outputs
y = j*(d/g) + p of one phase p < d/g read p*s + d*(j*(s/g) + k): every d-th pixel from p*s on, with
stride s/g and dilation 1. The phases of all images count as images of one convolution,
`Phases.part`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import tirx

from convtvm.compute import stages
from convtvm.problem.workload import ConvWorkload


@dataclass(frozen=True)
class Phases:
    """`high` x `wide` phases of each image, whose neighbouring pixels are `step_h` rows and
    `step_w` columns apart in the padded input. `part` is the convolution of all of them, without
    padding, its output rounded up to that of the largest phase."""

    w: ConvWorkload
    high: int
    wide: int
    step_h: int
    step_w: int
    part: ConvWorkload

    @classmethod
    def of(cls, w: ConvWorkload) -> Phases:
        """Those of `w`: one, with `w` itself as `part`, if it is not dilated."""
        step_h, step_w = (d if k > 1 else 1 for k, d in ((w.kh, w.dh), (w.kw, w.dw)))
        if (step_h, step_w) == (1, 1):
            return cls(w, 1, 1, 1, 1, w)
        common_h, common_w = math.gcd(w.sh, step_h), math.gcd(w.sw, step_w)
        high, wide = step_h // common_h, step_w // common_w
        sh, sw = w.sh // common_h, w.sw // common_w
        part = ConvWorkload.make(
            w.ic,
            w.oc,
            (stages.ceil_div(w.oh, high) - 1) * sh + w.kh,
            (stages.ceil_div(w.ow, wide) - 1) * sw + w.kw,
            w.kh,
            w.kw,
            n=w.n * high * wide,
            stride=(sh, sw),
            groups=w.groups,
            dtype=w.dtype,
        )
        return cls(w, high, wide, step_h, step_w, part)

    @property
    def alone(self) -> bool:
        """Whether there is a single phase, every pixel of which counts."""
        return self.part is self.w

    def image(self, n: tirx.PrimExpr) -> tirx.PrimExpr:
        """The image of image `n` of the part."""
        return n if self.alone else n // (self.high * self.wide)

    def source(self, n, y, x) -> tuple[tirx.PrimExpr, tirx.PrimExpr]:
        """Row and column of the padded input that are row y, column x of image `n` of the part."""
        if self.alone:
            return y, x
        row, column = n // self.wide % self.high, n % self.wide
        return row * self.w.sh + y * self.step_h, column * self.w.sw + x * self.step_w

    def inside(self) -> tuple[range, range]:
        """Rows and columns that the part's images read, without those that are padding in all of
        them."""
        w, part = self.w, self.part
        return (
            _inside((part.oh - 1) * part.sh + w.kh, self.high, self.step_h, w.sh, w.ph, w.ih),
            _inside((part.ow - 1) * part.sw + w.kw, self.wide, self.step_w, w.sw, w.pw, w.iw),
        )

    def interleave(self, func: tirx.PrimFunc, layout: str) -> tirx.PrimFunc:
        """`func` of the part (data, packed weight, bias, out, ..) in `layout`, not yet scheduled,
        with the output of `w`: the block `out` stores where pixels belong, as far as they exist."""
        if self.alone:
            return func
        w, at = self.w, 1 if layout == "NHWC" else 2

        def place(indices: list[tirx.PrimExpr]) -> tuple[list, list[tirx.PrimExpr]]:
            n = indices[0]
            indices[0] = self.image(n)
            indices[at] = indices[at] * self.high + n // self.wide % self.high
            indices[at + 1] = indices[at + 1] * self.wide + n % self.wide
            exists = [
                indices[at + axis] < extent
                for axis, (extent, phases) in enumerate(((w.oh, self.high), (w.ow, self.wide)))
                if extent % phases
            ]
            return indices, exists

        out = tirx.decl_buffer(w.out_shape(layout), w.dtype, "out")
        return stages.with_output(func, out, place)


def _inside(read: int, phases: int, step: int, stride: int, padding: int, pixels: int) -> range:
    """Of `read` positions along an axis, `step` apart, those from the first to the last that lies
    within the `pixels` behind the padding, for phases that begin `stride` apart."""
    first = -(-(padding - (phases - 1) * stride) // step)
    return range(max(0, first), min(read, (padding + pixels - 1) // step + 1))
