"""The operator `convtvm::conv` that stands in a graph for a convolution and what is fused with it.

    conv(x, weight, bias, norm, residual, watched, recipe) -> out

`x` is [n, ic, ih, iw], or [n, ic, iw] of a 1-D convolution, `norm` a batch normalisation's running
mean, variance and, if it has them, weight and bias; `recipe` names what `register` was given.
Weights are packed at the first call and again whenever one of `watched` has changed. Those are the
parameters and buffers that weight, bias and norm are computed from, if they are not those
themselves; the operator computes them then, and `weight` is just the first of `watched`.

On a GPU a kernel runs on PyTorch's current stream, with workspaces from its allocator, and nothing
waits. A CUDA graph can be captured after a first call. Its replays use the weights as they were
packed last; a call packs changed ones into the same memory.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from convtvm.dispatch import SlicedPlan
from convtvm.dispatch.gpu import ALIGNMENT, GpuPlan, is_capturing
from convtvm.errors import EnvironmentProblem
from convtvm.torch.kernels import AnyPlan, Kernels, Need

_WHOLE_BYTES = 8192  # of a watched tensor, up to which all of it is compared at every call
_SAMPLES = 16  # numbers of a larger one that are

# Weight, bias and batch normalisation as the operator takes them.
Values = tuple[Tensor, Tensor | None, Sequence[Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How to compute a convolution; `wide` outputs are channels-last, `flat` ones are 1-D.

    `derive` computes the weights from what is watched; `derivation` is its text.
    """

    need: Need
    eps: float = 0.0
    wide: bool = False
    flat: bool = False
    derivation: str = ""
    derive: Callable[..., Values] | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The same in every process, since Inductor's cache of compiled graphs depends on it."""
        need = self.need
        facts = [need.workload.key, need.layout, need.device, str(need.activation)]
        facts += [str(self.eps)] if self.eps else []
        if self.derivation:
            facts.append(sha256(self.derivation.encode()).hexdigest()[:16])
        flags = {
            "residual": need.adds,
            "dynamic": need.dynamic,
            "wide": self.wide,
            "flat": self.flat,
        }
        return " ".join(facts + [name for name, is_set in flags.items() if is_set])


class Watched:
    """Tensors whose changes matter, as they were; PyTorch counts the changes that it makes itself.

    What changes a tensor behind that count, through `.data` or NumPy, is seen on the CPU: in all
    numbers of small tensors, in some numbers of large ones. On a GPU it is not: to look there would
    be to wait for it.
    """

    def __init__(self, tensors: Sequence[Tensor], forget: Any) -> None:
        samples = [_sample(t) for t in tensors]
        self._seen: list[tuple[Any, ...]] = [
            (
                weakref.ref(tensor, forget),
                tensor.data_ptr(),
                # Tensors made in inference mode have no count.
                None if tensor.is_inference() else tensor._version,
                sample,
                None if sample is None else sample.tobytes(),
            )
            for tensor, sample in zip(tensors, samples, strict=True)
        ]

    def tensors(self) -> list[Tensor] | None:
        """The tensors, None if one is gone."""
        found = [tensor for ref, *_ in self._seen if (tensor := ref()) is not None]
        return found if len(found) == len(self._seen) else None

    def are(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, unchanged."""
        # Every call of every convolution comes here: a loop takes half the time of all().
        for tensor, (ref, place, count, sample, numbers) in zip(tensors, self._seen, strict=True):
            if ref() is not tensor or tensor.data_ptr() != place:
                return False
            if count is not None and tensor._version != count:
                return False
            if sample is not None and sample.tobytes() != numbers:
                return False
        return True


def _sample(tensor: Tensor) -> Any:
    """A numpy view of some of the numbers of a tensor on the CPU, of all if they are few."""
    if not tensor.is_cpu or tensor.numel() == 0:
        return None
    whole = tensor.detach()
    if whole.dtype is torch.bfloat16:  # which NumPy lacks
        whole = whole.view(torch.int16)
    if whole.numel() * whole.element_size() > _WHOLE_BYTES and whole.is_contiguous():
        whole = whole.view(-1)[:: whole.numel() // _SAMPLES]
    elif whole.numel() * whole.element_size() > _WHOLE_BYTES:
        whole = whole[0]
    return whole.numpy()


class Convolution:
    """What a recipe does: plans for each set of weights that it is called with."""

    def __init__(self, recipe: Recipe, kernels: Kernels) -> None:
        self.recipe, self.kernels = recipe, kernels
        self.latest: AnyPlan | None = None
        self._packed: dict[tuple[int, ...], _Packed] = {}
        self._lock = threading.Lock()

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm: Sequence[Tensor],
        residual: Tensor | None,
        watched: Sequence[Tensor],
    ) -> Tensor:
        recipe = self.recipe
        n = x.shape[0]
        if n == 0:
            return _fake(x, weight, bias, norm, residual, watched, recipe.name)
        if not watched:
            watched = [weight, *norm] if bias is None else [weight, bias, *norm]
        key = tuple(map(id, watched))
        packed = self._packed.get(key)
        if packed is None or not packed.watched.are(watched):
            with self._lock:
                packed = self._pack(key, watched, (weight, bias, norm))
        made = packed.plans.get(n)
        if made is None:
            _check_not_capturing(x)
            made = packed.plans[n] = self.kernels.plan(recipe.need, n, packed.weight, packed.bias)
        self.latest, layout = made
        return self._run(self.latest, layout, x, residual)

    def keep_up(self) -> None:
        """Pack weights that have changed since they were packed, into the same memory, before a
        CUDA graph is replayed."""
        for key, packed in list(self._packed.items()):
            watched = packed.watched.tensors()
            if watched is not None and not packed.watched.are(watched):
                with self._lock:
                    self._pack(key, watched, None)

    def _pack(
        self, key: tuple[int, ...], watched: Sequence[Tensor], values: Values | None
    ) -> _Packed:
        """Weights of this moment: `values`, or what the recipe derives from those watched."""

        def forget(ref: Any) -> None:
            self._packed.pop(key, None)

        _check_not_capturing(watched[0])
        derive, last = self.recipe.derive, self._packed.get(key)
        with torch.no_grad():
            if derive is not None:
                values = derive(*watched)
            elif values is None:
                first = 2 if last and last.has_bias else 1
                values = watched[0], watched[1] if first == 2 else None, watched[first:]
            weight, bias = _fold(*values, self.recipe.eps)
        weight = weight.reshape(self.recipe.need.workload.weight_shape)
        made = _Packed(Watched(watched, forget), values[1] is not None, weight, bias, {})
        if last is not None and self.recipe.need.device == "cuda":
            # CUDA graphs hold the addresses of what the plans have there.
            made.plans = last.plans
            for plan in _gpu_plans(made.plans):
                plan.repack(weight, bias)
        self._packed[key] = made
        return made

    def _run(self, plan: AnyPlan, layout: str, x: Tensor, residual: Tensor | None) -> Tensor:
        recipe, last = self.recipe, layout == "NHWC"
        data = _entering(x, recipe.flat, last)
        added = None if residual is None else _entering(residual, recipe.flat, last)
        on_gpu = recipe.need.device == "cuda"
        sliced = on_gpu and isinstance(plan, SlicedPlan)
        out = _in_slices(plan, data, added) if sliced else plan(data, residual=added)
        if last:
            out = out.permute(0, 3, 1, 2)
        wanted = torch.channels_last if recipe.wide else torch.contiguous_format
        out = out.contiguous(memory_format=wanted)
        return out.squeeze(2) if recipe.flat else out


@dataclass
class _Packed:
    """Weights as they go into plans, and the plans of every batch size so far."""

    watched: Watched
    has_bias: bool  # of the convolution's own
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


def _entering(x: Tensor, flat: bool, last: bool) -> Tensor:
    """A tensor as a plan takes it: four axes, in the order of the plan's layout."""
    x = x.detach() if x.requires_grad else x
    x = x.unsqueeze(2) if flat else x
    return x.permute(0, 2, 3, 1) if last else x


def _in_slices(plan: AnyPlan, data: Tensor, residual: Tensor | None) -> Tensor:
    """A plan of slices over tensors on a GPU; its own call takes the host's."""
    assert isinstance(plan, SlicedPlan)
    sizes = [part.workload.n for part in plan.parts]
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


def register(recipe: Recipe, kernels: Kernels) -> tuple[str, Convolution]:
    """The name under which the operator finds this recipe with these kernels."""
    index = 0
    while (found := _registered.get(f"{recipe.name} {index}")) and found.kernels is not kernels:
        index += 1
    name = f"{recipe.name} {index}"
    return name, _registered.setdefault(name, Convolution(recipe, kernels))


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Sequence[Tensor],
    residual: Tensor | None,
    watched: Sequence[Tensor],
    recipe: str,
) -> Tensor:
    return _registered[recipe](x, weight, bias, norm, residual, watched)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Sequence[Tensor],
    residual: Tensor | None,
    watched: Sequence[Tensor],
    recipe: str,
) -> Tensor:
    made = _registered[recipe].recipe
    w = made.need.workload
    shape = (x.shape[0], w.oc, w.ow) if made.flat else (x.shape[0], w.oc, w.oh, w.ow)
    wanted = torch.channels_last if made.wide else torch.contiguous_format
    return x.new_empty(shape).contiguous(memory_format=wanted)


_library = torch.library.Library("convtvm", "DEF")
_library.define(
    "conv(Tensor x, Tensor weight, Tensor? bias, Tensor[] norm, Tensor? residual, "
    "Tensor[] watched, str recipe) -> Tensor",
    # Inputs come in the strides that the graph was captured with, as they would to a convolution.
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)
_library.impl("conv", _conv, "CPU")
_library.impl("conv", _conv, "CUDA")
torch.library.register_fake("convtvm::conv", _fake, lib=_library)

conv = torch.ops.convtvm.conv.default
