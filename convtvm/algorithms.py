"""The one table of algorithms: name -> compute, weight packing, template, applicability, costs.

A name is `family` or `family:variant`, as in `direct` and `winograd:4` for F(4x4, 3x3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

from tvm import tirx

from convtvm.compute import direct, winograd
from convtvm.errors import WorkloadError
from convtvm.workload import ConvWorkload
from schedules.cpu import direct as cpu_direct
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
    if w.kh != w.kw:
        return f"kernel is {w.kh}x{w.kw}, Winograd needs a square one"
    if w.kh == 1:
        return "kernel is 1x1, Winograd saves nothing"
    if m + w.kh - 1 > 8:
        return f"tile of {m}+{w.kh}-1 > 8 loses too much accuracy"
    if (w.sh, w.sw) != (1, 1):
        return f"stride is {w.sh}x{w.sw}, Winograd needs 1"
    if (w.dh, w.dw) != (1, 1):
        return f"dilation is {w.dh}x{w.dw}, Winograd needs 1"
    if w.groups != 1:
        return f"groups is {w.groups}, Winograd needs 1"
    return None


def _winograd_multiplications(w: ConvWorkload, m: int) -> int:
    tiles = w.n * -(-w.oh // m) * -(-w.ow // m)
    return tiles * (m + w.kh - 1) ** 2 * w.ic * w.oc


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
    _winograd(2, 1e-5),
    _winograd(4, 1e-4),
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
