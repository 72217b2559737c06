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
from convtvm.problem.transposed import Phases, as_phases
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
    phases: Phases | None = None

    @property
    def bias(self) -> np.ndarray:
        """One value for each output channel of the kernel."""
        bias = self.epilogue.bias
        return np.zeros(self.workload.oc, np.float32) if bias is None else self._repeated(bias)

    @property
    def vectors(self) -> list[np.ndarray]:
        """The vectors of the epilogue, as long as the kernel has output channels."""
        return [self._repeated(vector) for vector in self.epilogue.vectors]

    def _repeated(self, values: np.ndarray) -> np.ndarray:
        return values if self.phases is None else self.phases.of_channels(values)

    @property
    def label(self) -> str:
        """For the profile: the operator, its origin, output and kernel, and what follows."""
        w = self.workload
        kind = "dense" if self.is_dense else "deconv" if self.phases else "conv"
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
        workload, weight, phases = problem
        dense = op_name(value) == "relax.matmul"
        axis = len(shape_of(flow.bindings[at].var)) - 1 if dense else 1
        epilogue = epilogue_of(flow, at, axis, taken, max_tensors=0 if phases else 2)
        taken.update(epilogue.absorbed)
        var = flow.bindings[at].var.name
        name = (origins or {}).get(var, var)
        layer = Convolution(name, at, workload, weight, value.args[0], epilogue, dense, phases)
        found.append(layer)
    return found[::-1]


def counted(layers: list[Convolution]) -> list[tuple[ConvWorkload, int]]:
    """The different problems, each with how many layers have it, in the order of the function."""
    times: dict[ConvWorkload, int] = {}
    for layer in layers:
        times[layer.workload] = times.get(layer.workload, 0) + 1
    return [(replace(w, multiplicity=count), count) for w, count in times.items()]


_Problem = tuple[ConvWorkload, np.ndarray, Phases | None]
_CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d")
_TRANSPOSED = ("relax.nn.conv1d_transpose", "relax.nn.conv2d_transpose")


def _problem(call: relax.Call) -> _Problem | None:
    """The convolution that a call is, its weight and, of a transposed one, the phases; None where
    no kernel computes it."""
    name = op_name(call)
    if name not in (*_CONVOLUTIONS, *_TRANSPOSED, "relax.matmul"):
        return None
    weight, data, out = array_of(call.args[1]), shape_of(call.args[0]), shape_of(call)
    if weight is None or weight.dtype != np.float32 or data is None or out is None:
        return None
    if str(call.ty.dtype.dtype) != "float32" or 0 in (*data, *out):
        return None
    if name == "relax.matmul":
        return _dense(weight, data)
    kernel_layout = ("IOHW", "IOW") if name in _TRANSPOSED else ("OIHW", "OIW")
    attrs = call.attrs
    if str(attrs.data_layout) not in ("NCHW", "NCW"):
        return None
    if str(attrs.kernel_layout) not in kernel_layout:
        return None
    strides, padding, dilation = (
        [int(v) for v in values] for values in (attrs.strides, attrs.padding, attrs.dilation)
    )
    if len(data) == 3:
        strides, dilation, padding = [1, *strides], [1, *dilation], [0, padding[0], 0, padding[1]]
        data, out, weight = (*data[:2], 1, data[2]), (*out[:2], 1, out[2]), weight[:, :, None]
    if name in _TRANSPOSED:
        kernel, groups = weight.shape[2:], int(attrs.groups)
        phases = as_phases(data, kernel, out, strides, padding[:2], dilation, groups)
        return phases.workload, phases.weight(weight), phases
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
    return workload, np.ascontiguousarray(weight), None


def _dense(weight: np.ndarray, data: tuple[int, ...]) -> _Problem | None:
    if weight.ndim != 2 or len(data) < 2:
        return None
    rows, (ic, oc) = prod(data[:-1]), weight.shape
    workload = ConvWorkload.make(ic=ic, oc=oc, ih=1, iw=rows)
    return workload, np.ascontiguousarray(weight.T[:, :, None, None]), None
