"""The one table of algorithms: name -> compute, weight packing, template, applicability, costs.

A name is `family` or `family:variant`, as in `direct`, `mec:b` for MEC by Solution B and
`winograd:4` for F(4x4, 3x3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from tvm import tirx

from convtvm.compute import depthwise, direct, im2col, mec, pointwise, stages, strassen, winograd
from convtvm.compute.phases import Phases
from convtvm.compute.winograd_matrices import MAX_ALPHA
from convtvm.errors import WorkloadError
from convtvm.kernels import sizes, workspace
from convtvm.kernels.sizes import Applicability
from convtvm.kernels.workspace import STACK_BYTES
from convtvm.problem.workload import ConvWorkload
from schedules.cpu import depthwise as cpu_depthwise
from schedules.cpu import direct as cpu_direct
from schedules.cpu import im2col as cpu_im2col
from schedules.cpu import mec as cpu_mec
from schedules.cpu import pointwise as cpu_pointwise
from schedules.cpu import strassen as cpu_strassen
from schedules.cpu import winograd as cpu_winograd
from schedules.knobs import Decisions

_MOST_LANES = 16  # of float32 in a vector of any CPU


def _always(w: ConvWorkload) -> str | None:
    return None


def _pack_vectors(w: ConvWorkload, lanes: int, layout: str) -> tirx.PrimFunc:
    """The weight by vectors of output channels, the same for both layouts."""
    return direct.pack_weight(w, lanes)


def _products(w: ConvWorkload) -> int:
    """One for each element of each window."""
    return w.macs


def _additions(w: ConvWorkload) -> int:
    """One for each product, one for each bias."""
    return w.macs + w.n * w.oc * w.oh * w.ow


def _weight_elements(w: ConvWorkload) -> int:
    return w.oc * (w.ic // w.groups) * w.kh * w.kw


@dataclass(frozen=True)
class Algorithm:
    """One way to compute a convolution.

    `inapplicable(w)` gives the reason why the algorithm cannot compute `w`, or None if it can; its
    own buffer, of at least `buffer(w)` elements, has to fit too;
    `compute(w, layout, lanes, **compute_knobs)` is a function over (data, packed weight, bias,
    out); `pack(w, lanes, layout)` maps a weight [oc, ic/groups, kh, kw] to the packed weight;
    `tolerance` is the largest error, relative to the largest output, that is not a wrong answer;
    `multiplications(w)` counts those of the inner products, without transforms; `additions(w)` all
    of a kernel whose tiles fit the shape, with transforms, bias and subtractions;
    `weight_elements(w)` counts those of the packed weight, without what only fills vectors;
    `workspace_bytes(w, layout, device, decisions)` is a kernel's scratch memory; `device` is the
    CpuModel or GpuModel that templates get. One that is an `opt_in` gives up accuracy that users
    expect: it is only considered where its full name is given. What a row leaves out is as of
    direct convolution.
    """

    name: str
    template: ModuleType
    compute: Callable[..., tirx.PrimFunc]
    workspace_bytes: Callable[[ConvWorkload, str, Any, Decisions], int]
    inapplicable: Callable[[ConvWorkload], str | None] = _always
    pack: Callable[[ConvWorkload, int, str], tirx.PrimFunc] = _pack_vectors
    multiplications: Callable[[ConvWorkload], int] = _products
    additions: Callable[[ConvWorkload], int] = _additions
    weight_elements: Callable[[ConvWorkload], int] = _weight_elements
    tolerance: float = 1e-5
    opt_in: bool = False
    buffer: Callable[[ConvWorkload], int] = lambda w: 0

    def __post_init__(self) -> None:
        if not isinstance(self.inapplicable, Applicability):
            checked = Applicability(self.name, self.inapplicable, self.buffer)
            object.__setattr__(self, "inapplicable", checked)

    @property
    def family(self) -> str:
        return self.name.partition(":")[0]


def _inplace_multiplications(w: ConvWorkload) -> int:
    """Those of pixels inside the image."""

    def taps(outputs: int, stride: int, kernel: int, dilation: int, pad: int, extent: int) -> int:
        """How often windows along an axis meet a pixel: outputs in a row by each tap."""
        before = (pad - k * dilation for k in range(kernel))
        ends = ((stages.ceil_div(b, stride), stages.ceil_div(b + extent, stride)) for b in before)
        return sum(max(0, min(end, outputs) - max(start, 0)) for start, end in ends)

    rows = taps(w.oh, w.sh, w.kh, w.dh, w.ph, w.ih)
    cols = taps(w.ow, w.sw, w.kw, w.dw, w.pw, w.iw)
    return w.n * w.oc * (w.ic // w.groups) * rows * cols


def _inplace_additions(w: ConvWorkload) -> int:
    return _inplace_multiplications(w) + w.n * w.oc * w.oh * w.ow


def _inplace_inapplicable(w: ConvWorkload) -> str | None:
    if _depthwise_inplace_inapplicable(w) is None:
        return "direct:depthwise:inplace is for depthwise convolution"
    if not stages.is_padded(w):
        return "no window reaches into padding, so that direct copies nothing"
    if not workspace.padded_copy(w):
        return f"direct has its padded copy, up to {STACK_BYTES} bytes, on the stack"
    return None


def _depthwise_inapplicable(w: ConvWorkload) -> str | None:
    if not w.is_depthwise:
        return f"groups is {w.groups} of {w.ic} channels, depthwise needs one group per channel"
    return None


def _depthwise_inplace_inapplicable(w: ConvWorkload) -> str | None:
    if not w.is_depthwise:
        return _depthwise_inapplicable(w)
    if not workspace.padded_copy(w):
        return f"direct:depthwise has its padded copy, up to {STACK_BYTES} bytes, on the stack"
    least = depthwise.least_copied(w, _MOST_LANES)
    if least > STACK_BYTES:
        return f"windows take {least} bytes, more than the {STACK_BYTES} of a copy on the stack"
    return None


def _pointwise_inapplicable(w: ConvWorkload) -> str | None:
    if (w.kh, w.kw) != (1, 1):
        return f"kernel is {w.kh}x{w.kw}, pointwise needs 1x1"
    if (w.sh, w.sw) != (1, 1):
        return f"stride is {w.sh}x{w.sw}, pointwise needs 1x1"
    if (w.oh, w.ow) != (w.ih, w.iw):
        return f"the input of {w.ih}x{w.iw} is padded to {w.oh}x{w.ow}, pointwise needs it as it is"
    if w.groups > 1:
        return f"groups is {w.groups}, pointwise needs 1"
    return None


def _mec_a_inapplicable(w: ConvWorkload) -> str | None:
    if w.n == 1:
        return "batch is 1, where Solution A does the same as Solution B (mec:b)"
    if w.out_bytes > mec.lowered_bytes(w):
        return (
            f"the output has {w.out_bytes} bytes, L only {mec.lowered_bytes(w)}: Solution A needs "
            "L to hold the output"
        )
    return None


def _winograd_inapplicable(w: ConvWorkload, m: int) -> str | None:
    part = Phases.of(w).part  # without dilation
    stride = f"{part.sh}x{part.sw}" + (" of phases" if part is not w else "")
    taps = max(stages.ceil_div(w.kh, part.sh), stages.ceil_div(w.kw, part.sw))  # of a phase
    if taps == 1:
        strided = "" if (part.sh, part.sw) == (1, 1) else f" with stride {stride}"
        return f"kernel is {w.kh}x{w.kw}{strided}, Winograd saves nothing"
    if 1 < w.kh < part.sh or 1 < w.kw < part.sw:
        return f"stride is {stride}, Winograd needs no more than the kernel's {w.kh}x{w.kw}"
    if m + taps - 1 > MAX_ALPHA:
        alpha = m + taps - 1
        return f"F({m}, {taps}) has tiles of {alpha} > {MAX_ALPHA}, which lose too much accuracy"
    side = max((m - 1) * s + r for r, s in ((w.kh, part.sh), (w.kw, part.sw)) if r > 1)
    if side > winograd.MAX_TILE:
        return f"{m} outputs of stride {stride} take {side} > {winograd.MAX_TILE} pixels"
    if w.groups != 1:
        return f"groups is {w.groups}, Winograd needs 1"
    return None


def _winograd_weight_elements(w: ConvWorkload, m: int) -> int:
    tiling = winograd.Tiling.of(w, m)
    return tiling.rows.alpha * tiling.cols.alpha * w.ic * w.oc


def _winograd_multiplications(w: ConvWorkload, m: int) -> int:
    return winograd.Tiling.of(w, m).count(w) * _winograd_weight_elements(w, m)


def _winograd_additions(w: ConvWorkload, m: int) -> int:
    """Those of the products, of both transforms of each tile, and one for each bias."""
    tiling = winograd.Tiling.of(w, m)
    data, out = tiling.transform_additions()
    transforms = tiling.count(w) * (w.ic * data + w.oc * out)
    return _winograd_multiplications(w, m) + transforms + w.n * w.oc * w.oh * w.ow


def _winograd(m: int, tolerance: float) -> Algorithm:
    return Algorithm(
        name=f"winograd:{m}",
        template=cpu_winograd,
        inapplicable=partial(_winograd_inapplicable, m=m),
        compute=partial(winograd.conv2d, m=m),
        pack=lambda w, lanes, layout: winograd.pack_weight(w, m, lanes),
        multiplications=partial(_winograd_multiplications, m=m),
        additions=partial(_winograd_additions, m=m),
        weight_elements=partial(_winograd_weight_elements, m=m),
        workspace_bytes=partial(workspace.of_winograd, m=m),
        tolerance=tolerance,
        buffer=partial(sizes.padded_to_tiles, m=m),
    )


def _strassen_inapplicable(w: ConvWorkload, levels: int) -> str | None:
    if w.groups != 1:
        return f"groups is {w.groups}, Strassen needs 1"
    if _winograd_inapplicable(w, 2) is None:
        return f"kernel is {w.kh}x{w.kw}, of which Winograd saves more than Strassen"
    parts = 2**levels
    sizes = (w.ic * w.kh * w.kw // parts, w.oc // parts, w.oh * w.ow // parts)
    least = strassen.LEAST_TERMS, strassen.LEAST_CHANNELS, strassen.LEAST_PIXELS
    if any(size < wanted for size, wanted in zip(sizes, least, strict=True)):
        found, wanted = (", ".join(map(str, numbers)) for numbers in (sizes, least))
        return (
            f"parts have {found} terms, output channels and pixels, of fewer than {wanted} "
            "Strassen's sums cost more than they save"
        )
    return None


def _strassen_multiplications(w: ConvWorkload, levels: int) -> int:
    return w.n * strassen.part_pixels(w, levels) * _strassen_weight_elements(w, levels)


def _strassen_weight_elements(w: ConvWorkload, levels: int) -> int:
    parts = 2**levels
    channels = stages.ceil_div(w.ic, parts) * stages.ceil_div(w.oc, parts)
    return strassen.PRODUCTS**levels * channels * w.kh * w.kw


def _strassen_additions(w: ConvWorkload, levels: int) -> int:
    """Those of the products, of the sums before and after, and one for each bias."""
    parts, part = 2**levels, w.n * strassen.part_pixels(w, levels)
    data, out = strassen.additions(levels)
    columns = stages.ceil_div(w.ic, parts) * w.kh * w.kw * part
    sums = data * columns + out * stages.ceil_div(w.oc, parts) * part
    return _strassen_multiplications(w, levels) + sums + w.n * w.oc * w.oh * w.ow


def _strassen(levels: int) -> Algorithm:
    return Algorithm(
        name=f"strassen:{levels}",
        template=cpu_strassen,
        inapplicable=partial(_strassen_inapplicable, levels=levels),
        compute=partial(strassen.conv2d, levels=levels),
        pack=lambda w, lanes, layout: strassen.pack_weight(w, levels, lanes),
        multiplications=partial(_strassen_multiplications, levels=levels),
        additions=partial(_strassen_additions, levels=levels),
        weight_elements=partial(_strassen_weight_elements, levels=levels),
        workspace_bytes=partial(workspace.of_strassen, levels=levels),
        tolerance=3e-5,
    )


_TABLE = (
    Algorithm(
        name="direct",
        template=cpu_direct,
        compute=direct.conv2d,
        workspace_bytes=workspace.of_direct,
    ),
    Algorithm(
        name="direct:inplace",
        template=cpu_direct,
        inapplicable=_inplace_inapplicable,
        compute=partial(direct.conv2d, inplace=True),
        multiplications=_inplace_multiplications,
        additions=_inplace_additions,
        workspace_bytes=workspace.none,
    ),
    Algorithm(
        name="direct:depthwise",
        template=cpu_depthwise,
        inapplicable=_depthwise_inapplicable,
        compute=depthwise.conv2d,
        pack=depthwise.pack_weight,
        workspace_bytes=workspace.of_depthwise,
        buffer=sizes.padded,
    ),
    Algorithm(
        name="direct:depthwise:inplace",
        template=cpu_depthwise,
        inapplicable=_depthwise_inplace_inapplicable,
        compute=partial(depthwise.conv2d, inplace=True),
        pack=depthwise.pack_weight,
        workspace_bytes=workspace.none,
    ),
    Algorithm(
        name="direct:pointwise",
        template=cpu_pointwise,
        inapplicable=_pointwise_inapplicable,
        compute=pointwise.conv2d,
        pack=lambda w, lanes, layout: pointwise.pack_weight(w),
        workspace_bytes=workspace.of_pointwise,
    ),
    Algorithm(
        name="im2col",
        template=cpu_im2col,
        compute=im2col.conv2d,
        workspace_bytes=workspace.of_im2col,
        buffer=sizes.columns,
    ),
    Algorithm(
        name="mec:a",
        template=cpu_mec,
        inapplicable=_mec_a_inapplicable,
        compute=mec.conv2d_a,
        workspace_bytes=workspace.of_mec,
        buffer=sizes.lowered,
    ),
    Algorithm(
        name="mec:b",
        template=cpu_mec,
        compute=mec.conv2d_b,
        workspace_bytes=workspace.of_mec,
        buffer=sizes.lowered,
    ),
    _strassen(1),
    _strassen(2),
    # Errors grow with the tile: each bound is about ten times what large layers show.
    _winograd(2, 1e-5),
    _winograd(3, 1e-4),
    _winograd(4, 1e-4),
    _winograd(5, 3e-4),
    _winograd(6, 5e-4),
)
ALGORITHMS: dict[str, Algorithm] = {a.name: a for a in _TABLE}


def select(
    names: Sequence[str] | None = None, table: Mapping[str, Algorithm] = ALGORITHMS
) -> list[Algorithm]:
    """The algorithms called `names`, a family standing for all its variants; all without names;
    those that are an opt-in only by their full name.

    `table` has the algorithms of one kind of device; without it, those of the CPU.

    Raises WorkloadError for an unknown name.
    """
    if not names:
        return [a for a in table.values() if not a.opt_in]
    chosen: dict[str, Algorithm] = {}
    for name in names:
        found = [a for a in table.values() if name == a.name or (name == a.family and not a.opt_in)]
        if not found:
            raise WorkloadError(f"unknown algorithm {name!r}; expected one of {', '.join(table)}")
        chosen.update((a.name, a) for a in found)
    return list(chosen.values())


def applicable(
    w: ConvWorkload,
    names: Sequence[str] | None = None,
    table: Mapping[str, Algorithm] = ALGORITHMS,
) -> list[Algorithm]:
    """Those of `select(names, table)` that can compute `w`; `direct` can whatever memory holds."""
    return [a for a in select(names, table) if a.inapplicable(w) is None]
