"""`handle = optimize(model, example)`: the backend in its explicit form, checked before it is used.

The model object stays the same: calls of it run what TorchDynamo captured, until
`handle.restore()`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from convtvm.dispatch import KernelLibrary, load
from convtvm.errors import ConvtvmError
from convtvm.torch.backend import Backend, Site
from convtvm.torch.kernels import Kernels
from convtvm.torch.options import Options

_LEAST_LIMIT = 1e-3  # of a difference relative to the largest output; rounding stays far below
_ERRORS = 10  # times a kernel's own error that the outputs of a whole model may differ by
_numbers = count()


class Optimized:
    """What `optimize` did; a context manager that restores the model at its end."""

    def __init__(self, model: nn.Module, backend: Backend) -> None:
        self.model, self._backend = model, backend

    @property
    def sites(self) -> Sequence[Site]:
        """The convolutions of every graph so far, with what computes each or why nothing does."""
        return self._backend.sites

    @property
    def libraries(self) -> Sequence[KernelLibrary]:
        """One for each graph and memory format that needed kernels."""
        return self._backend.kernels.libraries

    @property
    def library(self) -> KernelLibrary | None:
        """The first of `libraries`, None if there was nothing to compile."""
        return next(iter(self.libraries), None)

    def install(self) -> None:
        """Let calls of the model run what was captured; `optimize` has done so."""
        # nn.Module keeps copies and pickles free of this attribute.
        self.model._compiled_call_impl = torch.compile(_calling(self.model), backend=self._backend)

    def restore(self) -> None:
        """Let calls of the model run its own code again."""
        self.model.__dict__.pop("_compiled_call_impl", None)

    def __enter__(self) -> Optimized:
        return self

    def __exit__(self, *problem: object) -> None:
        self.restore()


def optimize(
    model: nn.Module,
    example: Any,
    library: KernelLibrary | str | Path | None = None,
    threads: int | None = None,
    logs: Sequence[str | Path] | None = None,
    **options: Any,
) -> Optimized:
    """Let `model` compute its convolutions by plans in calls like `model(example)`, gradients off.

    `example` is a tensor, a tuple of arguments or a dict of keyword arguments. Without a `library`
    one is compiled from `logs` (see `convtvm.compile`), for `threads` or as many as PyTorch uses;
    `options` are further ones of the backend. Later calls compile no more kernels: what the
    libraries lack stays PyTorch's.

    The example is computed both ways first. Raises ConvtvmError if the results differ by more than
    the kernels' errors explain, and for a model in training mode or compiled already; the model is
    then as it was.
    """
    if not isinstance(model, nn.Module):
        raise ConvtvmError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    if model.training:
        raise ConvtvmError("the model is in training mode, expected inference; call model.eval()")
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise ConvtvmError("the model is optimized or compiled already; restore it first")
    if isinstance(library, (str, Path)):
        library = load(library, threads)
    checked = Options.of({"logs": logs, "threads": threads, **options})
    kernels = Kernels(checked, library)
    handle = Optimized(model, Backend(checked, kernels))
    try:
        _install_and_compare(handle, example)
    except BaseException:
        handle.restore()
        raise
    kernels.close()
    return handle


def _install_and_compare(handle: Optimized, example: Any) -> None:
    model = handle.model
    args, kwargs = _arguments(example)

    def call() -> Any:
        copies = pytree.tree_map_only(torch.Tensor, _copy, (args, kwargs))
        return model(*copies[0], **copies[1])

    with torch.no_grad(), torch.random.fork_rng(), _buffers_kept(model):
        expected = call()
    handle.install()
    with torch.no_grad(), torch.random.fork_rng(), _buffers_kept(model):
        found = call()
    difference = _difference(found, expected)
    errors = [s.plan.max_error or 0.0 for s in handle.sites if s.plan is not None]
    limit = max([_LEAST_LIMIT, *(_ERRORS * e for e in errors)])
    if difference <= limit:
        return
    handle.restore()
    with torch.no_grad(), torch.random.fork_rng(), _buffers_kept(model):
        torch.manual_seed(1)
        again = call()
    if _difference(again, expected) > limit:
        warnings.warn(
            "convtvm: the model gives another result at every call, so its optimized results "
            "could not be compared with its own",
            stacklevel=3,
        )
        handle.install()
        return
    raise ConvtvmError(
        f"the optimized model's result differs from its own by {difference:.1e} of the largest "
        f"output, expected at most {limit:.1e}; the model is left as it was"
    )


def _calling(model: nn.Module) -> Callable[..., Any]:
    """A function that calls the model's hooks and `forward`, for TorchDynamo to capture as one.

    Its code is its own: what TorchDynamo knows of sizes that change, and its limit on compiling
    anew, are of a code object.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)

    code = call.__code__.replace(co_name=f"call_{next(_numbers)}")
    return FunctionType(code, call.__globals__, closure=call.__closure__)


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo what calls do to buffers: running means of a norm in training mode, counters."""
    kept = [(b, b.detach().clone()) for b in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _difference(found: Any, expected: Any) -> float:
    """The largest difference of two results' numbers, relative to the largest of each tensor;
    infinite if they are not of one form, or one is not a number where the other is."""
    left, right = pytree.tree_flatten(found), pytree.tree_flatten(expected)
    if left[1] != right[1]:
        return float("inf")
    return max(map(_distance, left[0], right[0]), default=0.0)


def _distance(found: Any, expected: Any) -> float:
    if not isinstance(expected, torch.Tensor) or not isinstance(found, torch.Tensor):
        return 0.0 if type(found) is type(expected) else float("inf")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    one, other = (t.detach().to(torch.complex128).cpu() for t in (found, expected))
    if not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    finite = other.isfinite()
    if not finite.any():
        return 0.0
    scale = float(other[finite].abs().max())
    return float((one - other)[finite].abs().max()) / (scale or 1.0)
