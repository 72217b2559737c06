"""The TorchDynamo backend: `torch.compile(model, backend="convtvm", options={...})`.

Of a graph without gradients every convolution that a plan computes becomes a call of our operator,
and so does every linear layer and transposed convolution where that is faster; all other
operations, and graphs with gradients, go to Inductor.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import fx
from torch._dynamo import register_backend
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import ShortenTraceback
from torch._functorch import config as functorch_config

from convtvm.dispatch.copies import Shared
from convtvm.errors import ConvtvmError
from convtvm.torch import graph, layouts, lowering, products, rewriting
from convtvm.torch.contest import Contest
from convtvm.torch.kernels import AnyPlan, Kernels, shared
from convtvm.torch.operator import Convolution, register
from convtvm.torch.options import Options
from convtvm.torch.remembering import Found, Memory, Rewritten, describe
from convtvm.torch.watching import Counts

_said: set[str] = set()


def convtvm(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The registered backend. `options` are those of Options, `mode` is Inductor's.

    Raises ConvtvmError for a bad option, logs that hold nothing for this machine, or kernels that
    do not compile.
    """
    try:
        checked = Options.of(options)
        backend = Backend(checked, shared(checked), mode)
    except ConvtvmError as error:
        raise _plainly(error) from None
    return backend(gm, example_inputs)


def make_known() -> None:
    """Register the backend where the entry point that says its name is not installed."""
    if "convtvm" not in entry_points(group="torch_dynamo_backends").names:
        register_backend(convtvm, "convtvm")


@dataclass
class Site:
    """A convolution or linear layer of the model: what computes it, or `why_not`, why it stays
    PyTorch's."""

    name: str
    parts: str
    convolution: Convolution | None = None
    why_not: str = ""

    @property
    def plan(self) -> AnyPlan | None:
        """The plan that ran last, None before the first call."""
        return self.convolution.latest if self.convolution else None

    def __str__(self) -> str:
        if self.convolution is None:
            return f"{self.name}: PyTorch's, {self.why_not}"
        text = self.plan.explain() if self.plan else self.convolution.recipe.need.workload
        return f"{self.name} {self.parts}: {text}"


class Backend(Shared):
    """Compiles the graphs that TorchDynamo captures; `sites` are their convolutions so far.

    A copy, as in that of a compiled model, is the same one; a pickle begins without sites.
    """

    def __init__(self, options: Options, kernels: Kernels, mode: str | None = None) -> None:
        self.options, self.kernels, self.mode = options, kernels, mode
        self.sites: list[Site] = []
        self.graphs = 0
        # Inductor makes conversions a part of other loops; PyTorch copies.
        self.changes_layouts = options.rest != "eager"
        self.compares = True  # linear and transposed layers with PyTorch's own
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        switches = {"changes_layouts": self.changes_layouts, "compares": self.compares}
        return Backend, (self.options, self.kernels, self.mode), switches

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs += 1
        devices = _devices(example_inputs)
        is_eager = self.options.rest == "eager" or not _has_compiler(devices)
        if _trains(example_inputs):
            _say(
                "convtvm: a graph that needs gradients keeps PyTorch's convolutions; call the "
                "model under torch.no_grad() or torch.inference_mode()"
            )
            return _run_eagerly(gm, example_inputs) if is_eager else self._plain(gm, example_inputs)
        try:
            if is_eager:
                return _run_eagerly(gm, example_inputs, self._rewrite_and_report)
            return self._planned(gm, example_inputs, devices)
        except ConvtvmError as error:
            raise _plainly(error) from None

    @property
    def _patches(self) -> dict[str, Any] | None:
        from torch._inductor import list_mode_options

        return list_mode_options(self.mode) if self.mode else None

    def _plain(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """The graph as it is, compiled by Inductor."""
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(gm, example_inputs, config_patches=self._patches)

    def _planned(
        self, gm: fx.GraphModule, example_inputs: Sequence[Any], devices: frozenset[str]
    ) -> Callable[..., Any]:
        """The graph with the operator in it, compiled by Inductor or found where an earlier process
        left it."""
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner
        from torch._inductor.decomposition import select_decomp_table

        lowering.make_known()
        memory = Memory(describe(gm, example_inputs, self.mode), self.kernels, devices)
        known = memory.known or Rewritten()
        self.kernels.provide(known.needs)
        made: list[Rewritten] = []

        def inner(gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
            if kwargs.get("is_inference"):
                tag = memory.tag and f"{memory.tag} {len(made)}"
                made.append(self._rewrite(gm, kwargs["static_input_idxs"], tag))
            rewriting.take_apart(gm, select_decomp_table())
            if "get_decomp_fn" in kwargs:  # a part of the cache's key, which no table can be
                kwargs["get_decomp_fn"] = select_decomp_table
            return compile_fx_inner(gm, inputs, **kwargs)

        table = {k: v for k, v in select_decomp_table().items() if k not in graph.HELD_BACK}
        patches = self._patches
        with memory.caches():
            compiled = compile_fx(
                gm,
                example_inputs,
                inner_compile=inner,
                config_patches=patches,
                decompositions=table,
            )
        result = sum(made, Rewritten()) if made else known
        memory.keep(result)
        convolutions = self._report(result)
        if "cuda" in devices and _captures(patches):
            return _keeping_up(compiled, convolutions)
        return compiled

    def _rewrite_and_report(self, gm: fx.GraphModule, static: Sequence[int]) -> None:
        self._report(self._rewrite(gm, static))

    def _rewrite(self, gm: fx.GraphModule, static: Sequence[int], tag: str = "") -> Rewritten:
        """Put the operator into the graph; `static` are the indices of parameters and buffers.

        With a `tag` every convolution has a name of its own.
        """
        places = [n for n in gm.graph.nodes if n.op == "placeholder"]
        fixed = {places[i] for i in static}
        linear = products.as_convolutions(gm.graph, fixed)
        sites = list(graph.sites(gm.graph, fixed, linear))
        changed = layouts.assign(gm.graph, sites, self.kernels) if self.changes_layouts else None
        needs = tuple(s.recipe.need for s in sites if s.recipe)
        self.kernels.provide(needs)
        found, contest = [], Contest(self.kernels)
        for number, site in enumerate(sites):
            if site.recipe:
                if not self.kernels.fuses(site.recipe.need):
                    site.leave_activation()
                site.why_not = self.kernels.objection(site.recipe.need)
            contested = self.compares and (site.is_linear or site.is_transposed)
            if site.recipe and not site.why_not and contested:
                site.why_not = contest.objection(site)
            recipe, own_tag, parts = None, tag and f"{tag} {number}", _parts(site)
            if site.recipe and not site.why_not:
                recipe = rewriting.replace(gm.graph, site, self.kernels, own_tag)
            elif isinstance(product := linear.get(site.conv), products.Product):
                products.restore(gm.graph, site.conv, product)
            found.append(Found(site.name, parts, recipe, own_tag, site.why_not))
        if changed:
            rewriting.lay_out(gm.graph, changed.forms, changed.block)
        gm.graph.eliminate_dead_code()
        gm.graph.lint()
        gm.recompile()
        return Rewritten(needs, tuple(found))

    def _report(self, made: Rewritten) -> list[Convolution]:
        """Add to the sites, and return what the operator does at them."""
        convolutions = []
        for found in made.found:
            convolution = None
            if found.recipe:
                _, convolution = register(found.recipe, self.kernels, found.tag)
                convolutions.append(convolution)
            with self._lock:
                self.sites.append(Site(found.name, found.parts, convolution, found.why_not))
        return convolutions


def _parts(site: graph.Site) -> str:
    activation, scales = site.activation, [v for op, v in site.vectors() if op is graph.SCALE]
    kind = "linear" if site.is_linear else "transposed" if site.is_transposed else "conv"
    parts = [kind, "norm" if site.norm else ""]
    parts += ["scale" if scales else "", "residual" if site.sum else ""]
    parts.append(activation if isinstance(activation, str) else "bounds" if activation else "")
    return "+".join(filter(None, parts))


def _trains(inputs: Sequence[Any]) -> bool:
    needs = any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)
    return needs and torch.is_grad_enabled()


def _captures(patches: Mapping[str, Any] | None) -> bool:
    """Whether Inductor captures CUDA graphs."""
    from torch._inductor import config

    return bool((patches or {}).get("triton.cudagraphs", config.triton.cudagraphs))


def _keeping_up(
    compiled: Callable[..., Any], convolutions: Sequence[Convolution]
) -> Callable[..., Any]:
    """Calls of a graph whose replays, unlike the operator itself, do not see changed weights."""
    counts, packings = Counts([]), -1

    def call(*args: Any) -> Any:
        nonlocal counts, packings
        if packings != Convolution.packings or not counts.are_same():
            for convolution in convolutions:
                convolution.keep_up()
            packings = Convolution.packings
            counts = Counts(t for convolution in convolutions for t in convolution.watched())
        return compiled(*args)

    return call


def _run_eagerly(
    gm: fx.GraphModule, example_inputs: Sequence[Any], rewrite: Any = None
) -> Callable[..., Any]:
    """The functional graph, run by PyTorch's own operations, after `rewrite(gm, static)`."""
    from torch._functorch.aot_autograd import make_boxed_func

    def plain(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        return make_boxed_func(gm.forward)

    def rewritten(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        context = torch._guards.TracingContext.get()
        assert context.fw_metadata is not None
        rewrite(gm, context.fw_metadata.static_input_indices)
        return make_boxed_func(gm.forward)

    inference = plain if rewrite is None else rewritten
    with functorch_config.patch(enable_autograd_cache=False):
        return aot_autograd(fw_compiler=plain, inference_compiler=inference)(gm, example_inputs)


def _devices(inputs: Sequence[Any]) -> frozenset[str]:
    return frozenset(x.device.type for x in inputs if isinstance(x, torch.Tensor))


@cache
def _has_compiler(devices: frozenset[str]) -> bool:
    """Whether Inductor can compile for the CPU, if there is anything on it."""
    if "cpu" not in devices:
        return True
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, OSError) as error:
        reason = (str(error).splitlines() or ["none found"])[0]
        _say(
            f"convtvm: Inductor has no C++ compiler, so all but the convolutions is eager: {reason}"
        )
        return False
    return True


def _say(text: str) -> None:
    """Warn of it, once a process."""
    if text not in _said:
        _said.add(text)
        warnings.warn(text, stacklevel=2)


def _plainly(error: ConvtvmError) -> Exception:
    """The error in a form that TorchDynamo hands on as it is, without a traceback of its own."""
    kind: Any = type(error)
    made = _plain_kind(kind)(*error.args, first_useful_frame=None)
    assert isinstance(made, Exception)
    return made


@cache
def _plain_kind(kind: Any) -> Any:
    return type(kind.__name__, (kind, ShortenTraceback), {"__module__": kind.__module__})
