"""The convolutions of a graph after AOTAutograd, and what a kernel can take along with each; linear
layers are among them as 1x1 convolutions, which `products` makes of them.

Such a graph is functional: no operation is in place, no module, hook or parametrisation is left,
and a batch normalisation says itself whether it is of training. What a value depends on is all that
has to be asked.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from convtvm.errors import WorkloadError
from convtvm.problem.activations import BOUNDS, LEAKY
from convtvm.problem.dtypes import BYTES
from convtvm.problem.transposed import Phases, as_phases
from convtvm.problem.workload import ConvWorkload
from convtvm.torch.channelwise import MAX_POOL
from convtvm.torch.kernels import Need
from convtvm.torch.operator import Recipe

aten = torch.ops.aten

SCALE, SHIFT = aten.mul.Tensor, aten.add.Tensor
NORM = aten._native_batch_norm_legit_no_training.default
# Operations that Inductor takes apart, and that a kernel may take along whole.
NAMED = {
    aten.relu.default: "relu",
    aten.silu.default: "silu",
    aten.hardswish.default: "hardswish",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.mish.default: "mish",
}
_BOUNDS = (
    aten.hardtanh.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
)
_GELU, _LEAKY = aten.gelu.default, aten.leaky_relu.default
ACTIVATIONS = (*NAMED, *_BOUNDS, _GELU, _LEAKY)
HELD_BACK = (NORM, *ACTIVATIONS, MAX_POOL)
_MOST_GROWTH = 4  # times the multiplications of a transposed convolution, for which none is faster
# PyTorch's dtype -> a workload's, by kind of device.
_DTYPES = {
    "cpu": {torch.float32: "float32"},
    "cuda": {getattr(torch, dtype): dtype for dtype in BYTES},
}


@dataclass
class Site:
    """A convolution of a graph and the nodes that go with it; `why_not` says why it stays as it is.

    `affine` are multiplications and additions of one constant a channel, `sources` the tensors that
    weight, bias, norm and those are computed from. A linear layer has pixels for rows.
    """

    name: str
    conv: fx.Node
    nodes: list[fx.Node]
    is_linear: bool = False
    affine: list[fx.Node] = field(default_factory=list)
    norm: fx.Node | None = None
    sum: fx.Node | None = None
    activation: str | tuple[float, float] | None = None
    sources: list[fx.Node] = field(default_factory=list)
    recipe: Recipe | None = None
    why_not: str = ""

    @property
    def residual(self) -> fx.Node | None:
        """What `sum` adds to what comes before it, as the graph is now."""
        return _added(self.sum, self.before(self.sum)) if self.sum else None

    def before(self, node: fx.Node) -> fx.Node:
        """The node of the site that comes before another one."""
        return self.nodes[self.nodes.index(node) - 1]

    def vectors(self) -> Iterator[tuple[Any, fx.Node]]:
        """The operations in `affine`, each with its constant."""
        for node in self.affine:
            (vector,) = (a for a in node.all_input_nodes if a is not self.before(node))
            yield node.target, vector

    def leave_activation(self) -> None:
        """Let the graph keep the activation."""
        assert self.recipe is not None
        self.nodes.pop()
        self.activation = None
        self.recipe = replace(self.recipe, need=replace(self.recipe.need, activation=None))

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def is_transposed(self) -> bool:
        return self.conv.target is aten.convolution.default and bool(self.conv.args[6])


def sites(
    graph: fx.Graph, static: set[fx.Node], linear: Mapping[fx.Node, Any] | None = None
) -> Iterator[Site]:
    """Every convolution and linear layer with what follows it and nothing else uses.

    `static` are the placeholders of parameters and buffers: the same tensors at every call.
    `linear` has the nodes that are linear layers, with why no kernel computes it where that is
    text.
    """
    taken: set[fx.Node] = set()
    linear = linear or {}
    for node in list(graph.nodes):
        if node.target is not aten.convolution.default and node not in linear:
            continue
        site = Site(_name(node), node, [node], node in linear)
        known = linear.get(node)
        site.why_not = known if isinstance(known, str) else _objection(site, static)
        if not site.why_not:
            _extend(site, static, taken)
            site.recipe, site.why_not = _recipe(site)
        if not site.why_not:
            taken.update(site.nodes)
        yield site


def _name(node: fx.Node) -> str:
    """The path of the module that computes it, as `named_modules` has it."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    path = paths[-1] if paths else ""
    path = re.sub(r"_modules\['([^']*)'\]", r"\1", path)
    return re.sub(r"^L\['\w+'\]\.?", "", path) or node.name


def _objection(site: Site, static: set[fx.Node]) -> str:
    """Why the convolution itself is none for a plan; empty if it is one."""
    x, weight, bias, *_, transposed, _, _ = site.conv.args
    data = x.meta["val"]  # type: ignore[union-attr]
    if transposed and data.device.type != "cpu":
        return "it is transposed, on a GPU"
    if data.dim() not in (3, 4):
        return f"it has {data.dim() - 2} dimensions"
    known = _DTYPES.get(data.device.type)
    if known is None or data.dtype not in known:
        return f"its input is {data.dtype} on {data.device}"
    if any(not isinstance(size, int) for size in data.shape[1:]):
        return "its image size is dynamic"
    if sources([weight, bias], static) is None:
        return "its weight changes with every call: it is no parameter, nor computed from some"
    return ""


def sources(values: Sequence[Any], static: set[fx.Node]) -> list[fx.Node] | None:
    """The static tensors that values are computed from; None if they depend on anything else."""
    found: dict[fx.Node, None] = {}
    pending = [v for v in values if isinstance(v, fx.Node)]
    seen: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "placeholder" and node in static:
            found[node] = None
        elif node.op == "call_function" and _is_pure(node) and node.all_input_nodes:
            pending += node.all_input_nodes
        else:
            return None
    return list(found)


def _is_pure(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded not in tags and not node.is_impure()


def _extend(site: Site, static: set[fx.Node], taken: set[fx.Node]) -> None:
    """Take along batch normalisation, or constants a channel, then a residual addition, then an
    activation."""
    after = only_user(site.last, taken)
    if after and after.target is NORM and after.args[0] is site.conv:
        normed = _normed(after, taken)
        if normed and sources(after.args[1:5], static) is not None:
            site.norm = after
            site.nodes += [after, normed]
            after = only_user(normed, taken)
    while after and not site.norm and _is_affine(after, site, static):
        site.affine.append(after)
        site.nodes.append(after)
        after = only_user(after, taken)
    values = [*site.conv.args[1:3], *(site.norm.args[1:5] if site.norm else ())]
    values += [vector for _, vector in site.vectors()]
    site.sources = sources(values, static) or []
    if after and not site.is_transposed and _added(after, site.last) is not None:
        site.sum = after
        site.nodes.append(after)
        after = only_user(after, taken)
    activation = _activation(after, site.last) if after else None
    if after and activation is not None:
        site.activation = activation
        site.nodes.append(after)


def only_user(node: fx.Node, taken: Container[fx.Node] = ()) -> fx.Node | None:
    """The one user of `node`, None if there are several or another site has it."""
    users = list(node.users)
    usable = len(users) == 1 and users[0] not in taken and users[0].op == "call_function"
    return users[0] if usable else None


def _is_affine(node: fx.Node, site: Site, static: set[fx.Node]) -> bool:
    """Whether `node` multiplies the last image of a site by one constant a channel, or adds one."""
    term, is_grouped = site.last, site.conv.args[8] != 1
    if node.target not in (SCALE, SHIFT) or node.kwargs:
        return False
    # The weight of a transposed convolution has no axis of all output channels then.
    if node.target is SCALE and site.is_transposed and is_grouped:
        return False
    others = [a for a in node.args if a is not term]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return False
    here, there = term.meta["val"], others[0].meta.get("val")
    if not isinstance(there, torch.Tensor) or {here.dtype, there.dtype} != {torch.float32}:
        return False
    shape = (1,) * (here.dim() - there.dim()) + tuple(there.shape)
    channels = here.dim() == 4 and shape == (1, here.shape[1], 1, 1)
    return channels and sources(others, static) is not None


def _normed(norm: fx.Node, taken: set[fx.Node]) -> fx.Node | None:
    """The normalised tensor, if a batch normalisation gives nothing else that is used."""
    _, weight, bias, *_ = norm.args
    result = only_user(norm, taken)
    right = result and result.target is operator.getitem and result.args[1] == 0
    return result if right and (weight is None) == (bias is None) else None


def _added(node: fx.Node, term: fx.Node) -> fx.Node | None:
    """What `node` adds to `term`, if that is another tensor of the same shape and dtype."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    others = [a for a in node.args if a is not term]
    if len(node.args) != 2 or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    here, there = term.meta["val"], others[0].meta.get("val")
    if not isinstance(there, torch.Tensor) or there.shape != here.shape:
        return None
    alike = there.dtype == here.dtype and there.device == here.device
    return others[0] if alike else None


def _activation(node: fx.Node, term: fx.Node) -> str | tuple[float, float] | None:
    """The activation of `node` as `KernelLibrary.plan` takes it, None if a kernel has no such."""
    if node.args[0] is not term:
        return None
    function = _function(node)
    if function is not None:
        # Kernels for GPUs are only tried with bounds.
        right = function in BOUNDS or term.meta["val"].device.type == "cpu"
        return function if right else None
    if node.kwargs:
        return None
    if node.target not in _BOUNDS or not all(_is_bound(a) for a in node.args[1:]):
        return None
    given = [*node.args[1:], None, None]
    if node.target is aten.hardtanh.default and len(node.args) < 3:
        given = [-1.0, 1.0] if len(node.args) == 1 else [node.args[1], 1.0]
    if node.target is aten.clamp_max.default:
        given = [None, given[0]]
    low = -math.inf if given[0] is None else float(given[0])  # type: ignore[arg-type]
    high = math.inf if given[1] is None else float(given[1])  # type: ignore[arg-type]
    named = {bounds: name for name, bounds in BOUNDS.items()}
    return named.get((low, high), (low, high)) if low <= high else None


def _function(node: fx.Node) -> str | None:
    """The name of an activation without arguments, of a GELU or a leaky ReLU."""
    if node.target is _GELU:
        return "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu"
    if node.target is _LEAKY and not node.kwargs:
        slope = node.args[1] if len(node.args) > 1 else 0.01
        finite = isinstance(slope, (int, float)) and math.isfinite(slope)
        return f"{LEAKY}:{float(slope)!r}" if finite else None
    alone = len(node.args) == 1 and not node.kwargs
    return NAMED.get(node.target) if alone else None  # type: ignore[call-overload]


def _is_bound(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _recipe(site: Site) -> tuple[Recipe | None, str]:
    """How an operator computes the site, or why none does."""
    out = site.last.meta["val"]
    flat = out.dim() == 3
    wide = not out.is_contiguous()
    if wide and (flat or not out.is_contiguous(memory_format=torch.channels_last)):
        return None, "its output is neither contiguous nor channels-last"
    data, bias = site.conv.args[0].meta["val"], site.conv.args[2]  # type: ignore[union-attr]
    dynamic = not isinstance(data.shape[0], int)
    try:
        phases = _phases(site) if site.is_transposed else None
        workload = phases.workload if phases else _workload(site)
    except WorkloadError as error:
        return None, str(error)
    if phases and phases.growth > _MOST_GROWTH:
        return None, f"as a convolution it has {phases.growth:.1f} times as many multiplications"
    layout = "NHWC" if wide or site.is_linear else "NCHW"
    adds = site.sum is not None
    need = Need(workload, layout, data.device.type, site.activation, adds, dynamic, site.is_linear)
    eps = float(site.norm.args[6]) if site.norm else 0.0  # type: ignore[arg-type]
    return Recipe(need, eps, bias is not None, wide, flat, phases=phases), ""


def _workload(site: Site) -> ConvWorkload:
    """Raises WorkloadError."""
    x, weight, _, stride, padding, dilation, _, _, groups = site.conv.args
    data, kernel = x.meta["val"], weight.meta["val"]  # type: ignore[union-attr]
    n, ic, ih, iw = _image(data)
    if site.is_linear and isinstance(data.shape[0], int):
        n, ih, iw = 1, 1, n * ih * iw  # one row of pixels, as whole models have it
    _, _, kh, kw = _image(kernel)
    flat = data.dim() == 3
    return ConvWorkload.make(
        n=n,
        ic=ic,
        ih=ih,
        iw=iw,
        oc=kernel.shape[0],
        kh=kh,
        kw=kw,
        stride=_pair(stride, flat, 1),
        padding=_pair(padding, flat, 0),
        dilation=_pair(dilation, flat, 1),
        groups=groups,  # type: ignore[arg-type]
        dtype=_DTYPES[data.device.type][data.dtype],
    )


def _phases(site: Site) -> Phases:
    """Raises WorkloadError."""
    x, weight, _, stride, padding, dilation, _, _, groups = site.conv.args
    data, kernel = x.meta["val"], weight.meta["val"]  # type: ignore[union-attr]
    flat = data.dim() == 3
    return as_phases(
        _image(data),
        _image(kernel)[2:],
        _image(site.conv.meta["val"]),
        _pair(stride, flat, 1),
        _pair(padding, flat, 0),
        _pair(dilation, flat, 1),
        groups,  # type: ignore[arg-type]
    )


def _image(value: Any) -> list[int]:
    """The shape of a tensor with a height, and with the batch that it has just now."""
    n, channels, *size = value.shape
    n = n if isinstance(n, int) else n.node.hint
    return [n, channels, *([1] if len(size) == 1 else []), *size]


def _pair(values: Any, flat: bool, none: int) -> tuple[int, ...]:
    """Numbers of height and width: a graph may give one for both, a 1-D one has none of height."""
    width = values[-1]
    return (none if flat else values[0], width)
