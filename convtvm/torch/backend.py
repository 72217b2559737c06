"""The TorchDynamo backend: `torch.compile(model, backend="convtvm", options={...})`.

Of a graph without gradients every convolution that a plan computes becomes a call of our operator;
all other operations, and graphs with gradients, go to Inductor.
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

from convtvm.errors import ConvtvmError
from convtvm.torch import graph, rewriting
from convtvm.torch.kernels import AnyPlan, Kernels, shared
from convtvm.torch.operator import Convolution
from convtvm.torch.options import Options

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
    """A convolution of the model: what computes it, or `why_not`, why it stays PyTorch's."""

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


class Backend:
    """Compiles the graphs that TorchDynamo captures; `sites` are their convolutions so far."""

    def __init__(self, options: Options, kernels: Kernels, mode: str | None = None) -> None:
        self.options, self.kernels, self.mode = options, kernels, mode
        self.sites: list[Site] = []
        self.graphs = 0
        self._lock = threading.Lock()

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs += 1
        if _trains(example_inputs):
            _say(
                "convtvm: a graph that needs gradients keeps PyTorch's convolutions; call the "
                "model under torch.no_grad() or torch.inference_mode()"
            )
            return self._rest(gm, example_inputs)
        try:
            return self._rest(gm, example_inputs, self._rewrite)
        except ConvtvmError as error:
            raise _plainly(error) from None

    def _rest(
        self, gm: fx.GraphModule, example_inputs: Sequence[Any], rewrite: Any = None
    ) -> Callable[..., Any]:
        """The graph compiled by Inductor, or run as it is, after `rewrite(gm, static indices)`."""
        if self.options.rest == "eager" or not _has_compiler(_devices(example_inputs)):
            return _run_eagerly(gm, example_inputs, rewrite)
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner
        from torch._inductor.decomposition import select_decomp_table

        patches = list_mode_options(self.mode) if self.mode else None
        if rewrite is None:
            return compile_fx(gm, example_inputs, config_patches=patches)

        made: list[Convolution] = []

        def inner(gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
            if kwargs.get("is_inference"):
                made.extend(rewrite(gm, kwargs["static_input_idxs"]))
            rewriting.take_apart(gm, select_decomp_table())
            return compile_fx_inner(gm, inputs, **kwargs)

        table = {k: v for k, v in select_decomp_table().items() if k not in graph.HELD_BACK}
        # A hit in that cache would skip the rewriting, which the operator depends on.
        with functorch_config.patch(enable_autograd_cache=False):
            compiled = compile_fx(
                gm,
                example_inputs,
                inner_compile=inner,
                config_patches=patches,
                decompositions=table,
            )
        if "cuda" in _devices(example_inputs) and _captures(patches):
            return _keeping_up(compiled, made)
        return compiled

    def _rewrite(self, gm: fx.GraphModule, static: Sequence[int]) -> list[Convolution]:
        """Put the operator into the graph and return what it does there; `static` are the indices
        of parameters and buffers."""
        places = [n for n in gm.graph.nodes if n.op == "placeholder"]
        found = list(graph.sites(gm.graph, {places[i] for i in static}))
        self.kernels.provide(s.recipe.need for s in found if s.recipe)
        convolutions = []
        for site in found:
            if site.recipe:
                if not self.kernels.fuses(site.recipe.need):
                    site.leave_activation()
                site.why_not = self.kernels.objection(site.recipe.need)
            convolution = None
            if site.recipe and not site.why_not:
                convolution = rewriting.replace(gm.graph, site, self.kernels)
                convolutions.append(convolution)
            made = Site(site.name, _parts(site), convolution, site.why_not)
            with self._lock:
                self.sites.append(made)
        gm.graph.eliminate_dead_code()
        gm.graph.lint()
        gm.recompile()
        return convolutions


def _parts(site: graph.Site) -> str:
    activation = site.activation
    parts = ["conv", "norm" if site.norm else "", "residual" if site.sum else ""]
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

    def call(*args: Any) -> Any:
        for convolution in convolutions:
            convolution.keep_up()
        return compiled(*args)

    return call


def _run_eagerly(
    gm: fx.GraphModule, example_inputs: Sequence[Any], rewrite: Any
) -> Callable[..., Any]:
    """The functional graph, run by PyTorch's own operations."""
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
