"""PyTorch models with tuned convolutions: `handle = optimize(model, example)`, `handle.restore()`.

The model's graph is traced; every Conv2d that a plan can compute takes its batch normalisation, its
ReLU and a residual addition with it. The model object stays the same, only its `forward` is
replaced. Weights are packed when `optimize` is called: later changes to them are not seen.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_weights

from convtvm.dispatch import KernelLibrary, Plan, SlicedPlan, load
from convtvm.errors import ConvtvmError, NoCandidate, UnknownWorkload, WorkloadError
from convtvm.library.build import compile
from convtvm.problem.workload import ConvWorkload

_RELU = {nn.ReLU: "relu", nn.ReLU6: "relu6"}
_RELU_CALLS = {torch.relu: "relu", nn.functional.relu: "relu", nn.functional.relu6: "relu6"}
_RELU_METHODS = {"relu": "relu", "relu_": "relu"}
_ADDS = (operator.add, operator.iadd, torch.add)
_ADD_METHODS = ("add", "add_")


@dataclass
class Site:
    """A convolution of the model and what goes with it; `why_not` says why it stays eager."""

    name: str
    nodes: list[fx.Node]
    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None = None
    activation: str | None = None
    sum: fx.Node | None = None
    workload: ConvWorkload | None = None
    plan: Plan | SlicedPlan | None = None
    why_not: str = ""

    def __str__(self) -> str:
        if self.plan is None:
            return f"{self.name}: eager, {self.why_not}"
        parts = ["norm"] * (self.norm is not None) + ["residual"] * (self.sum is not None)
        parts += [self.activation] if self.activation else []
        return f"{self.name} {'+'.join(['conv', *parts])}: {self.plan.explain()}"


@dataclass
class Optimized:
    """What `optimize` did; a context manager that restores the model at its end."""

    model: nn.Module
    library: KernelLibrary | None
    sites: Sequence[Site] = field(default_factory=list)

    def restore(self) -> None:
        """Give the model its own `forward` back."""
        self.model.__dict__.pop("forward", None)

    def __enter__(self) -> Optimized:
        return self

    def __exit__(self, *problem: object) -> None:
        self.restore()


class _PlannedConv(nn.Module):
    """A plan in the place of modules; they still compute whatever the plan was not made for."""

    def __init__(self, site: Site, shape: Sequence[int]) -> None:
        super().__init__()
        self._site, self._shape = site, torch.Size(shape)
        self._eager = (site.conv, site.norm)  # in a tuple, so that they are not registered twice

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        fits = x.shape == self._shape and x.dtype is torch.float32 and x.is_cpu
        if fits and not torch.is_grad_enabled() and self._site.plan is not None:
            return self._site.plan(x, residual=residual)
        conv, norm = self._eager
        y = conv(x) if norm is None else norm(conv(x))
        y = y if residual is None else y + residual
        return getattr(nn.functional, self._site.activation)(y) if self._site.activation else y


def optimize(
    model: nn.Module,
    example: torch.Tensor,
    library: KernelLibrary | str | Path | None = None,
    threads: int | None = None,
    logs: Sequence[str | Path] | None = None,
) -> Optimized:
    """Let `model` compute its convolutions by plans, for inputs like `example` without gradients.

    Without a `library` one is compiled from `logs` (see `convtvm.compile`), for `threads` or as
    many as PyTorch uses. Anything else than the shapes of `example`, float32 on the CPU, or a call
    with gradients enabled, runs the model's own modules. Raises ConvtvmError for a model in
    training mode or one that torch.fx cannot trace.
    """
    if model.training:
        raise ConvtvmError("the model is in training mode, expected inference; call model.eval()")
    if "forward" in model.__dict__:
        raise ConvtvmError("the model is optimized already; restore it first")
    graph = _traced(model, example)
    sites = list(_sites(graph))
    wanted = [s for s in sites if s.workload is not None]
    if isinstance(library, (str, Path)):
        library = load(library, threads)
    if library is None and wanted:
        library = compile(
            list(dict.fromkeys(s.workload for s in wanted if s.workload is not None)),
            threads=threads or torch.get_num_threads(),
            logs=logs,
            keep="best",
            epilogues=sorted({_epilogue(s) for s in wanted}),
        )
    for site in wanted:
        _plan(site, library)
        if site.plan is not None:
            _replace(graph, site)
    graph.graph.lint()
    graph.recompile()
    model.forward = graph.forward
    return Optimized(model, library, sites)


def _traced(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """The model's graph with the shape of every tensor in it."""
    try:
        graph = fx.symbolic_trace(model)
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        first = (str(error).splitlines() or ["no message"])[0]
        raise ConvtvmError(f"torch.fx cannot trace the model: {first}") from error
    with torch.no_grad():
        ShapeProp(graph).propagate(example)
    return graph


def _sites(graph: fx.GraphModule) -> Iterator[Site]:
    """Every Conv2d with what follows it and nothing else uses."""
    modules = dict(graph.named_modules())
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    taken: set[fx.Node] = set()
    for node in list(graph.graph.nodes):
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(conv) is not nn.Conv2d:
            continue
        site = Site(str(node.target), [node], conv)
        after = _next(node, taken)
        norm = modules.get(str(after.target)) if after and after.op == "call_module" else None
        if after and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            site.norm = norm
            site.nodes.append(after)
            after = _next(after, taken)
        other = _added(after, site.nodes[-1]) if after else None
        if after and other is not None and order[other] < order[after]:
            site.sum = after
            site.nodes.append(after)
            after = _next(after, taken)
        site.activation = _activation(after, modules) if after else None
        if after and site.activation:
            site.nodes.append(after)
        taken.update(site.nodes)
        site.workload, site.why_not = _workload(site)
        yield site


def _next(node: fx.Node, taken: set[fx.Node]) -> fx.Node | None:
    """The one user of `node`, None if there are several or another site has it."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0] not in taken else None


def _added(node: fx.Node, term: fx.Node) -> fx.Node | None:
    """What `node` adds to `term`, if it is a plain sum of two different tensors of one shape."""
    sums = (node.op == "call_function" and node.target in _ADDS) or (
        node.op == "call_method" and node.target in _ADD_METHODS
    )
    if not sums or node.kwargs or len(node.args) != 2:
        return None
    others = [a for a in node.args if isinstance(a, fx.Node) and a is not term]
    if len(others) != 1 or _shape(others[0]) != _shape(term):
        return None
    return others[0]


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    if node.op == "call_module":
        return _RELU.get(type(modules.get(str(node.target))))  # type: ignore[arg-type]
    if node.op == "call_function":
        return _RELU_CALLS.get(node.target)  # type: ignore[arg-type]
    return _RELU_METHODS.get(str(node.target)) if node.op == "call_method" else None


def _shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's float32 tensor on the CPU, () for anything else."""
    found = node.meta.get("tensor_meta")
    right = hasattr(found, "shape") and found.dtype is torch.float32
    return tuple(found.shape) if right else ()


def _workload(site: Site) -> tuple[ConvWorkload | None, str]:
    """The convolution problem, or why there is none."""
    conv = site.conv
    shape = _shape(site.nodes[0].args[0]) if site.nodes[0].args else ()  # type: ignore[arg-type]
    if len(shape) != 4:
        return None, "its input is no float32 tensor of four axes"
    if conv.weight.device.type != "cpu" or conv.weight.dtype is not torch.float32:
        return None, f"its weight is {conv.weight.dtype} on {conv.weight.device}"
    if conv.padding_mode != "zeros" or conv.padding == "same":
        return None, f"its padding is {conv.padding_mode} {conv.padding}"
    n, ic, ih, iw = shape
    padding = (0, 0) if conv.padding == "valid" else conv.padding
    try:
        made = ConvWorkload.make(
            n=n,
            ic=ic,
            ih=ih,
            iw=iw,
            oc=conv.out_channels,
            kh=conv.kernel_size[0],
            kw=conv.kernel_size[1],
            stride=conv.stride,
            padding=padding,
            dilation=conv.dilation,
            groups=conv.groups,
        )
    except WorkloadError as error:
        return None, str(error)
    return made, ""


def _epilogue(site: Site) -> str:
    return "add" if site.sum is not None else "clip" if site.activation else "none"


def _plan(site: Site, library: KernelLibrary | None) -> None:
    """Make the site's plan, or say why there is none."""
    weight, bias = site.conv.weight, site.conv.bias
    norm = site.norm
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    assert library is not None and site.workload is not None
    try:
        site.plan = library.plan(
            site.workload,
            weight,
            bias,
            activation=site.activation,
            residual=site.sum is not None,
        )
    except (UnknownWorkload, NoCandidate) as error:
        site.why_not = str(error)


def _replace(graph: fx.GraphModule, site: Site) -> None:
    """Put the plan where the site's last node is, and remove its nodes."""
    source = site.nodes[0].args[0]
    args = [source]
    if site.sum is not None:
        args.append(_added(site.sum, site.nodes[site.nodes.index(site.sum) - 1]))
    name = f"planned_{site.name.replace('.', '_')}"
    graph.add_submodule(name, _PlannedConv(site, _shape(source)))  # type: ignore[arg-type]
    last = site.nodes[-1]
    with graph.graph.inserting_after(last):
        planned = graph.graph.call_module(name, tuple(args))
    planned.meta = dict(last.meta)
    last.replace_all_uses_with(planned)
    for node in reversed(site.nodes):
        graph.graph.erase_node(node)
