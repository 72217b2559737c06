"""Whether tensors have changed since they were last looked at."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

_WHOLE_BYTES = 8192  # of a tensor, up to which all of it is compared at every look
_SAMPLES = 16  # numbers of a larger one that are
_BITS = {1: torch.uint8, 2: torch.int16}  # of an element of so many bytes


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
    if whole.is_neg():  # the numbers in memory do, which NumPy can tell
        whole = torch._neg_view(whole)
    if (bits := _BITS.get(whole.element_size())) is not None:  # NumPy lacks some of these dtypes
        whole = whole.view(bits)
    if whole.numel() * whole.element_size() > _WHOLE_BYTES and whole.is_contiguous():
        whole = whole.view(-1)[:: whole.numel() // _SAMPLES]
    elif whole.numel() * whole.element_size() > _WHOLE_BYTES:
        whole = whole[0]
    return whole.numpy()


class Counts:
    """Tensors on a GPU as they were, all looked at at once: the addresses, and PyTorch's counts of
    changes."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        distinct = {id(tensor): tensor for tensor in tensors}.values()
        self._refs = [weakref.ref(t) for t in distinct]
        self._places = [t.data_ptr() for t in distinct]
        self._counted = [weakref.ref(t) for t in distinct if not t.is_inference()]
        self._counts = [t._version for t in distinct if not t.is_inference()]

    def are_same(self) -> bool:
        """Whether all tensors are there and unchanged."""
        # Before every replay of a CUDA graph, hundreds of them: lists take a third of a loop.
        try:
            counts = [ref()._version for ref in self._counted]  # type: ignore[union-attr]
            places = [ref().data_ptr() for ref in self._refs]  # type: ignore[union-attr]
        except AttributeError:  # one is gone
            return False
        return counts == self._counts and places == self._places
