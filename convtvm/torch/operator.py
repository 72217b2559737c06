"""The operator `convtvm::conv` that stands in a graph for a convolution and what is fused with it;
for a linear layer too, whose `x` is an image of its rows.

    conv(x, weights, residual, recipe) -> out

`x` is [n, ic, ih, iw], or [n, ic, iw] of a 1-D convolution. `weights` are weight, bias if there is
one, and a batch normalisation's running mean, variance and, if it has them, weight and bias; or the
parameters and buffers that all those are computed from, and then the operator computes them.
`recipe` is the name that `register` gave. Weights are packed at the first call and again whenever
one of them has changed.

On a GPU a kernel runs on PyTorch's current stream, with workspaces from its allocator, and nothing
waits. A CUDA graph can be captured after a first call. Its replays use the weights as they were
packed last; a call packs changed ones into the same memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from convtvm.dispatch import Plan, SlicedPlan
from convtvm.dispatch.copies import Local
from convtvm.dispatch.gpu import ALIGNMENT, GpuPlan, is_capturing
from convtvm.errors import EnvironmentProblem
from convtvm.problem.transposed import Phases
from convtvm.torch.kernels import AnyPlan, Kernels, Need
from convtvm.torch.watching import Watched

# Weight, bias and batch normalisation.
Values = tuple[Tensor, Tensor | None, Sequence[Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How to compute a convolution; `wide` outputs are channels-last, `flat` ones are 1-D.

    `biased` says that the weights hold a bias of the convolution's own. `derive` computes them, if
    they are not given themselves; `derivation` is its text. The weights of a transposed convolution
    are its own, and the output has its `phases` in channels, not yet spread over the pixels.
    """

    need: Need
    eps: float = 0.0
    biased: bool = False
    wide: bool = False
    flat: bool = False
    derivation: str = ""
    derive: Callable[..., Values] | None = field(default=None, compare=False)
    phases: Phases | None = None

    @property
    def name(self) -> str:
        """The same in every process, since Inductor's cache of compiled graphs depends on it."""
        need = self.need
        facts = [need.workload.key, need.layout, need.device, str(need.activation)]
        facts += [str(self.eps)] if self.eps else []
        if (p := self.phases) is not None:
            facts.append(f"phases {p.kernel} {p.gaps} {p.strides} {p.first} {p.shape[1:]}")
        if self.derivation:
            facts.append(sha256(self.derivation.encode()).hexdigest()[:16])
        flags = {
            "residual": need.adds,
            "biased": self.biased,
            "dynamic": need.dynamic,
            "rows": need.rows,
            "wide": self.wide,
            "flat": self.flat,
        }
        return " ".join(facts + [name for name, is_set in flags.items() if is_set])

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the output."""
        return torch.channels_last if self.wide else torch.contiguous_format

    def values(self, weights: Sequence[Tensor]) -> Values:
        """Weight, bias and batch normalisation of an operator's `weights`, as a kernel has them."""
        if self.derive is not None:
            found = self.derive(*weights)
        else:
            bias = weights[1] if self.biased else None
            found = weights[0], bias, weights[2 if self.biased else 1 :]
        return found if self.phases is None else _in_phases(self.phases, *found)


class Convolution(Local):
    """What a recipe does: plans for each set of weights that it is called with."""

    _elsewhere = "the text of its site says what it is, and compiling the model there makes it anew"
    packings = 0  # of all convolutions so far

    def __init__(self, recipe: Recipe, kernels: Kernels) -> None:
        self.recipe, self.kernels = recipe, kernels
        self.latest: AnyPlan | None = None
        self._packed: dict[tuple[int, ...], _Packed] = {}
        self._last: _Packed | None = None
        self._lock = threading.Lock()

    def __call__(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """As of the operator. Writes `out` where it is given, in the output's memory format."""
        n = x.shape[0]
        if n == 0:
            return self.empty(x) if out is None else out
        if self.recipe.need.merges:
            n = 1
        packed = self._last
        if packed is None or not packed.watched.are(weights):
            packed = self._last = self._pack_if_changed(weights)
        made = packed.plans.get(n)
        if made is None:
            _check_not_capturing(x)
            need = self.recipe.need
            made = packed.plans[n] = self.kernels.plan(need, n, packed.weight, packed.bias)
        self.latest = made[0]  # of whichever thread is the last
        return self._run(*made, x, residual, out)

    def empty(self, x: Tensor) -> Tensor:
        """A tensor like the output for `x`, which may be a fake one."""
        recipe, need = self.recipe, self.recipe.need
        _, *image = need.workload.out_shape(need.layout if need.is_blocked else "NCHW")
        if need.rows:
            image[1:] = x.shape[2:]
        if recipe.flat:
            del image[1]
        made = x.new_empty((x.shape[0], *image))
        return made.contiguous(memory_format=recipe.memory_format)

    def watched(self) -> list[Tensor]:
        """The tensors whose packed values are in use."""
        return [t for packed in list(self._packed.values()) for t in packed.watched.tensors() or ()]

    def keep_up(self) -> None:
        """Pack weights that have changed since they were packed, into the same memory, before a
        CUDA graph is replayed."""
        for packed in list(self._packed.values()):
            weights = packed.watched.tensors()
            if weights is not None:
                self._pack_if_changed(weights)

    def _pack_if_changed(self, weights: Sequence[Tensor]) -> _Packed:
        key = tuple(map(id, weights))
        packed = self._packed.get(key)
        if packed is None or not packed.watched.are(weights):
            with self._lock:
                packed = self._pack(key, weights)
        return packed

    def _pack(self, key: tuple[int, ...], weights: Sequence[Tensor]) -> _Packed:
        """The weights of this moment."""

        def forget(ref: Any) -> None:
            self._last = None
            self._packed.pop(key, None)

        _check_not_capturing(weights[0])
        recipe, last = self.recipe, self._packed.get(key)
        with torch.no_grad():
            weight, bias = _fold(*recipe.values(weights), recipe.eps)
        weight = weight.reshape(recipe.need.workload.weight_shape)
        made = _Packed(Watched(weights, forget), weight, bias, {})
        if last is not None and recipe.need.device == "cuda":
            # CUDA graphs hold the addresses of what the plans have there.
            made.plans = last.plans
            for plan in _gpu_plans(made.plans):
                plan.repack(weight, bias)
        self._packed[key] = made
        Convolution.packings += 1
        return made

    def _run(
        self,
        plan: AnyPlan,
        layout: str,
        x: Tensor,
        residual: Tensor | None,
        out: Tensor | None,
    ) -> Tensor:
        recipe, last = self.recipe, layout == "NHWC"
        data = _entering(x, recipe, last)
        added = None if residual is None else _entering(residual, recipe, last)
        # Written as it is where the plan has the output's own layout.
        target = None if out is None or last != recipe.wide else _entering(out, recipe, last)
        if type(plan) is Plan and target is not None and _is_plain(data) and _is_plain(added):
            # Shapes and dtypes are the graph's, and Inductor's output overlaps nothing.
            plan.compute(data, target, () if added is None else (added,))
            return out
        if recipe.need.device == "cuda" and isinstance(plan, SlicedPlan):
            made = _in_slices(plan, data, added, target)
        else:
            made = plan(data, out=target, residual=added)
        if target is not None:
            return out
        if recipe.need.merges:
            made = made.reshape(x.shape[0], *x.shape[2:], -1)
        made = made.permute(0, 3, 1, 2) if last else made
        made = made.squeeze(2) if recipe.flat else made
        if out is not None:
            return out.copy_(made)
        return made.contiguous(memory_format=recipe.memory_format)


@dataclass
class _Packed:
    """Weights as they go into plans, and the plans of every batch size so far."""

    watched: Watched
    weight: Tensor
    bias: Tensor | None
    plans: dict[int, tuple[AnyPlan, str]]


def _check_not_capturing(tensor: Tensor) -> None:
    """Weights are packed on the host, which a CUDA graph that is being captured rules out."""
    if tensor.is_cuda and is_capturing():
        raise EnvironmentProblem(
            "a CUDA graph is being captured, and a convolution has no kernel for this batch size "
            "or these weights yet; call the model once like this before the capture"
        )


def _gpu_plans(plans: Mapping[int, tuple[AnyPlan, str]]) -> Iterator[GpuPlan]:
    """The plans, and the parts of those that run in slices, each once."""
    made = [p for p, _ in plans.values()]
    parts = [part for p in made for part in (p.parts if isinstance(p, SlicedPlan) else [p])]
    yield from (p for p in dict.fromkeys(parts) if isinstance(p, GpuPlan))


def _entering(x: Tensor, recipe: Recipe, last: bool) -> Tensor:
    """A tensor as a plan takes it: four axes, in the order of the plan's layout."""
    x = x.detach() if x.requires_grad else x
    x = x.unsqueeze(2) if recipe.flat else x
    x = x.permute(0, 2, 3, 1) if last else x
    return x.reshape(1, 1, -1, x.shape[3]) if recipe.need.merges else x


def _is_plain(tensor: Tensor | None) -> bool:
    """Whether a tensor of a graph lies as a kernel reads it."""
    return tensor is None or (tensor.is_contiguous() and not tensor.is_neg())


def _in_slices(
    plan: SlicedPlan, data: Tensor, residual: Tensor | None, out: Tensor | None
) -> Tensor:
    """A plan of slices over tensors on a GPU; its own call takes the host's."""
    sizes = [part.workload.n for part in plan.parts]
    if out is None:
        out = data.new_empty(plan.workload.out_shape(plan.parts[0].code.layout))
    added = [None] * len(sizes) if residual is None else residual.split(sizes)
    for part, rows, more, to in zip(
        plan.parts, data.split(sizes), added, out.split(sizes), strict=True
    ):
        if to.data_ptr() % ALIGNMENT:
            to.copy_(part(rows, residual=more))
        else:
            part(rows, out=to, residual=more)
    return out


def _in_phases(
    phases: Phases, weight: Tensor, bias: Tensor | None, norm: Sequence[Tensor]
) -> Values:
    """What belongs to a transposed convolution, for the convolution that computes its phases."""

    def of_channels(values: Tensor) -> Tensor:
        return torch.from_numpy(phases.of_channels(values.detach().resolve_neg().numpy()))

    own = weight.detach().resolve_neg().reshape(*weight.shape[:2], *phases.kernel)
    turned = torch.from_numpy(phases.weight(own.numpy()))
    return turned, None if bias is None else of_channels(bias), [of_channels(v) for v in norm]


def _fold(
    weight: Tensor, bias: Tensor | None, norm: Sequence[Tensor], eps: float
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias on the CPU with a batch normalisation folded into them, in float64."""
    weight, bias = weight.detach().cpu(), None if bias is None else bias.detach().cpu()
    if not norm:
        return weight, bias
    mean, variance, *affine = (t.detach().cpu().double() for t in norm)
    scale = torch.rsqrt(variance + eps)
    shift = -mean if bias is None else bias - mean
    if affine:
        scale = scale * affine[0]
    shift = shift * scale + (affine[1] if affine else 0)
    scaled = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return scaled.to(weight.dtype), shift.to(weight.dtype)


_registered: dict[str, Convolution] = {}


def register(recipe: Recipe, kernels: Kernels, tag: str = "") -> tuple[str, Convolution]:
    """The name under which the operator finds this recipe with these kernels.

    A `tag` goes with one site of a graph and with kernels that compute the same.
    """
    index, name = 0, f"{recipe.name} {tag or 0}"
    while not tag and (found := _registered.get(name)) and found.kernels is not kernels:
        index += 1
        name = f"{recipe.name} {index}"
    return name, _registered.setdefault(name, Convolution(recipe, kernels))


def recipe_of(name: str) -> Recipe:
    """The recipe that was registered under this name."""
    return _registered[name].recipe


def into(*given: Any, out: Tensor) -> None:
    """The operator past PyTorch's dispatcher: `x`, `residual` if the recipe has one, weights, name
    of the recipe; writes `out`."""
    convolution = _registered[given[-1]]
    if convolution.recipe.need.adds:
        convolution(given[0], given[2:-1], given[1], out)
    else:
        convolution(given[0], given[1:-1], None, out)


def _conv(x: Tensor, weights: Sequence[Tensor], residual: Tensor | None, recipe: str) -> Tensor:
    return _registered[recipe](x, weights, residual)


def _fake(x: Tensor, weights: Sequence[Tensor], residual: Tensor | None, recipe: str) -> Tensor:
    return _registered[recipe].empty(x)


_library = torch.library.Library("convtvm", "DEF")
_library.define(
    "conv(Tensor x, Tensor[] weights, Tensor? residual, str recipe) -> Tensor",
    # Inputs come in the strides that the graph was captured with, as they would to a convolution.
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)
_library.impl("conv", _conv, "CPU")
_library.impl("conv", _conv, "CUDA")
torch.library.register_fake("convtvm::conv", _fake, lib=_library)

conv = torch.ops.convtvm.conv.default
