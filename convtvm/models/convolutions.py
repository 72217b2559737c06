"""The layers of a function that convolution kernels compute, each with what follows it.

Besides 2-D convolutions these are 1-D ones, of images of height 1, and dense layers, whose rows are
the pixels of an image that is one pixel high, with its channels innermost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
from tvm import relax

from convtvm.models.constants import array_of, op_name
from convtvm.models.dataflow import Dataflow, shape_of
from convtvm.models.epilogues import Epilogue, epilogue_of
from convtvm.problem.workload import ConvWorkload


@dataclass(frozen=True, eq=False)
class Convolution:
    """One kernel of a model.

    `weight` is [oc, ic/groups, kh, kw]; `data` and the tensors of the epilogue are expressions of
    the function, whose shapes differ from the kernel's in axes of length 1 only. In the only layout
    of a dense layer, NHWC, they lie in memory as the kernel has them.
    """

    name: str
    start: int
    workload: ConvWorkload
    weight: np.ndarray
    data: relax.Expr
    epilogue: Epilogue
    is_dense: bool = False

    @property
    def bias(self) -> np.ndarray:
        bias = self.epilogue.bias
        return np.zeros(self.workload.oc, np.float32) if bias is None else bias

    @property
    def label(self) -> str:
        """For the profile: the operator, its origin, output and kernel, and what follows."""
        w = self.workload
        kind = "dense" if self.is_dense else "conv"
        size = f"{w.n * w.ow}x{w.oc}" if self.is_dense else f"{w.oc}x{w.oh}x{w.ow} {w.kh}x{w.kw}"
        groups = f" g{w.groups}" if w.groups > 1 else ""
        stride = f" s{w.sh}" if w.sh == w.sw > 1 else f" s{w.sh}x{w.sw}" * (w.sh != w.sw)
        return " ".join([f"{kind} {self.name} {size}{groups}{stride}", *self.epilogue.words])


def find(flow: Dataflow, origins: dict[str, str] | None = None) -> list[Convolution]:
    """All of them in the order of the function.

    Of two layers whose results are added, the later one adds: the other has to be there by then.
    """
    found: list[Convolution] = []
    taken: set[int] = set()
    for at in reversed(range(flow.end)):
        value = flow.bindings[at].value
        if at in taken or not isinstance(value, relax.Call):
            continue
        problem = _problem(value)
        if problem is None:
            continue
        workload, weight = problem
        dense = op_name(value) == "relax.matmul"
        shape = shape_of(flow.bindings[at].var) or ()
        epilogue = epilogue_of(flow, at, len(shape) - 1 if dense else 1, taken)
        taken.update(epilogue.absorbed)
        var = flow.bindings[at].var.name
        name = (origins or {}).get(var, var)
        found.append(Convolution(name, at, workload, weight, value.args[0], epilogue, dense))
    return found[::-1]


def counted(layers: list[Convolution]) -> list[tuple[ConvWorkload, int]]:
    """The different problems, each with how many layers have it, in the order of the function."""
    times: dict[ConvWorkload, int] = {}
    for layer in layers:
        times[layer.workload] = times.get(layer.workload, 0) + 1
    return [(replace_count(w, count), count) for w, count in times.items()]


def replace_count(w: ConvWorkload, count: int) -> ConvWorkload:
    return replace(w, multiplicity=count)


def _problem(call: relax.Call) -> tuple[ConvWorkload, np.ndarray] | None:
    """The convolution that a call is, and its weight; None where no kernel computes it."""
    if op_name(call) not in ("relax.nn.conv2d", "relax.nn.conv1d", "relax.matmul"):
        return None
    weight, data, out = array_of(call.args[1]), shape_of(call.args[0]), shape_of(call)
    if weight is None or weight.dtype != np.float32 or data is None or out is None:
        return None
    if str(call.ty.dtype.dtype) != "float32" or 0 in (*data, *out):
        return None
    if op_name(call) == "relax.matmul":
        return _dense(weight, data)
    attrs = call.attrs
    if str(attrs.data_layout) not in ("NCHW", "NCW") or str(attrs.kernel_layout)[0] != "O":
        return None
    strides, padding, dilation = (
        [int(v) for v in values] for values in (attrs.strides, attrs.padding, attrs.dilation)
    )
    if op_name(call) == "relax.nn.conv1d":
        (left, right) = padding
        strides, dilation, padding = [1, *strides], [1, *dilation], [0, left, 0, right]
        data, weight = (*data[:2], 1, data[2]), weight[:, :, None]
    n, ic, ih, iw = data
    workload = ConvWorkload.make(
        n=n,
        ic=ic,
        ih=ih,
        iw=iw,
        oc=weight.shape[0],
        kh=weight.shape[2],
        kw=weight.shape[3],
        stride=strides,
        padding=padding,
        dilation=dilation,
        groups=int(attrs.groups),
    )
    return workload, np.ascontiguousarray(weight)


def _dense(weight: np.ndarray, data: tuple[int, ...]) -> tuple[ConvWorkload, np.ndarray] | None:
    if weight.ndim != 2 or len(data) < 2:
        return None
    rows, (ic, oc) = prod(data[:-1]), weight.shape
    workload = ConvWorkload.make(ic=ic, oc=oc, ih=1, iw=rows)
    return workload, np.ascontiguousarray(weight.T[:, :, None, None])
