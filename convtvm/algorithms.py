"""The one table of algorithms: name -> compute, weight packing, template, applicability, costs.

A name is `family` or `family:variant`, as in `direct` and `winograd:4` for F(4x4, 3x3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

from tvm import tirx

from convtvm.compute import direct, im2col, mec, winograd
from convtvm.compute.winograd_matrices import MAX_ALPHA
from convtvm.errors import WorkloadError
from convtvm.workload import ConvWorkload
from schedules.cpu import direct as cpu_direct
from schedules.cpu import im2col as cpu_im2col
from schedules.cpu import mec as cpu_mec
from schedules.cpu import winograd as cpu_winograd


@dataclass(frozen=True)
class Algorithm:
    """One way to compute a convolution.

    `inapplicable(w)` gives the reason why the algorithm cannot compute `w`, or None if it can;
    `compute(w, layout, lanes, **compute_knobs)` is a function over (data, packed weight, bias,
    out); `pack(w, lanes)` maps a weight [oc, ic/groups, kh, kw] to the packed weight;
    `tolerance` is the largest error, relative to the largest output, that is not a wrong answer;
    `multiplications(w)` counts those of the inner products, without transforms.
    """

    name: str
    template: ModuleType
    inapplicable: Callable[[ConvWorkload], str | None]
    compute: Callable[..., tirx.PrimFunc]
    pack: Callable[[ConvWorkload, int], tirx.PrimFunc]
    multiplications: Callable[[ConvWorkload], int]
    tolerance: float

    @property
    def family(self) -> str:
        return self.name.partition(":")[0]


def _always(w: ConvWorkload) -> str | None:
    return None


def _winograd_inapplicable(w: ConvWorkload, m: int) -> str | None:
    r = max(w.kh, w.kw)
    if r == 1:
        return "kernel is 1x1, Winograd saves nothing"
    if m + r - 1 > MAX_ALPHA:
        return f"F({m}, {r}) has tiles of {m + r - 1} > {MAX_ALPHA}, which lose too much accuracy"
    if (w.sh, w.sw) != (1, 1):
        return f"stride is {w.sh}x{w.sw}, Winograd needs 1"
    if (w.dh, w.dw) != (1, 1):
        return f"dilation is {w.dh}x{w.dw}, Winograd needs 1"
    if w.groups != 1:
        return f"groups is {w.groups}, Winograd needs 1"
    return None


def _winograd_multiplications(w: ConvWorkload, m: int) -> int:
    tiling = winograd.Tiling.of(w, m)
    grid_h, grid_w = tiling.grid(w)
    return w.n * grid_h * grid_w * tiling.rows.alpha * tiling.cols.alpha * w.ic * w.oc


def _winograd(m: int, tolerance: float) -> Algorithm:
    return Algorithm(
        name=f"winograd:{m}",
        template=cpu_winograd,
        inapplicable=partial(_winograd_inapplicable, m=m),
        compute=partial(winograd.conv2d, m=m),
        pack=lambda w, lanes: winograd.pack_weight(w, m, lanes),
        multiplications=partial(_winograd_multiplications, m=m),
        tolerance=tolerance,
    )


_TABLE = (
    Algorithm(
        name="direct",
        template=cpu_direct,
        inapplicable=_always,
        compute=direct.conv2d,
        pack=direct.pack_weight,
        multiplications=lambda w: w.macs,
        tolerance=1e-5,
    ),
    Algorithm(
        name="im2col",
        template=cpu_im2col,
        inapplicable=_always,
        compute=im2col.conv2d,
        pack=direct.pack_weight,
        multiplications=lambda w: w.macs,
        tolerance=1e-5,
    ),
    Algorithm(
        name="mec:a",
        template=cpu_mec,
        inapplicable=_always,
        compute=mec.conv2d_a,
        pack=direct.pack_weight,
        multiplications=lambda w: w.macs,
        tolerance=1e-5,
    ),
    Algorithm(
        name="mec:b",
        template=cpu_mec,
        inapplicable=_always,
        compute=mec.conv2d_b,
        pack=direct.pack_weight,
        multiplications=lambda w: w.macs,
        tolerance=1e-5,
    ),
    # Errors grow with the tile: each bound is about ten times what large layers show.
    _winograd(2, 1e-5),
    _winograd(3, 1e-4),
    _winograd(4, 1e-4),
    _winograd(5, 3e-4),
    _winograd(6, 5e-4),
)
ALGORITHMS: dict[str, Algorithm] = {a.name: a for a in _TABLE}


def select(names: Sequence[str] | None = None) -> list[Algorithm]:
    """The algorithms called `names`, a family standing for all its variants; all without names.

    Raises WorkloadError for an unknown name.
    """
    if not names:
        return list(ALGORITHMS.values())
    chosen: dict[str, Algorithm] = {}
    for name in names:
        found = [a for a in ALGORITHMS.values() if name in (a.name, a.family)]
        if not found:
            raise WorkloadError(
                f"unknown algorithm {name!r}; expected one of {', '.join(ALGORITHMS)}"
            )
        chosen.update((a.name, a) for a in found)
    return list(chosen.values())


def applicable(w: ConvWorkload, names: Sequence[str] | None = None) -> list[Algorithm]:
    """Those of `select(names)` that can compute `w`; `direct` always can."""
    return [a for a in select(names) if a.inapplicable(w) is None]
