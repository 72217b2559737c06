"""Operations that work on each channel of an image alone: how they compute in blocks of channels.

Inductor's vectors lie along the last dimension. In NCHW that is a row of pixels, which pooling with
strides reads one number at a time; in blocks, [n, c / b, h, w, b], it is always the b channels.
Pooling sees such a tensor as n c / b channels-last images of b channels.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

MAX_POOL = aten.max_pool2d_with_indices.default
_AVG_POOL, _CAT, _MEAN = aten.avg_pool2d.default, aten.cat.default, aten.mean.dim
_PAD = aten.constant_pad_nd.default

# Seconds for each number of the output, of Inductor's code on one thread (Zen 4, AVX2).
_MAX_OF_STRIDES = 12e-9
_PLAIN, _BLOCKED = 2e-9, 0.6e-9


@dataclass(frozen=True)
class Form:
    """An operation with a form in blocks: `last` is its result, and `build` computes that from
    inputs in blocks; `seconds` on one thread in NCHW and in blocks."""

    node: fx.Node
    last: fx.Node
    build: Callable[[Sequence[Any]], Any]
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def inputs(self) -> list[fx.Node]:
        """The images that it reads, as the graph is now."""
        given = self.node.args[0]
        return list(given) if isinstance(given, (list, tuple)) else [given]  # type: ignore[list-item]


def is_image(node: Any) -> bool:
    """Whether a node's value is [n, c, h, w] of known sizes."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.dim() != 4:
        return False
    return all(isinstance(size, int) for size in value.shape)


def forms(graph: fx.Graph, block: int) -> Iterator[Form]:
    """The operations of a graph that can compute in blocks of so many channels."""
    for node in graph.nodes:
        form = _form(node) if node.op == "call_function" else None
        if form and all(_fits(image, block) for image in form.inputs):
            yield form


def _fits(node: fx.Node, block: int) -> bool:
    """Whether an image is in NCHW, and its channels are blocks."""
    if not is_image(node):
        return False
    image: torch.Tensor = node.meta["val"]
    return image.is_contiguous() and image.shape[1] % block == 0


def _form(node: fx.Node) -> Form | None:
    target, rest = node.target, node.args[1:]
    if target in (MAX_POOL, _AVG_POOL):
        return _pooling(node)
    if node.kwargs:
        return None
    if target is _CAT and rest in ((1,), (-3,)):
        return Form(node, node, lambda blocks: aten.cat(list(blocks), 1))
    if target is _MEAN and sorted(d % 4 for d in rest[0] or ()) == [2, 3]:
        return Form(node, node, lambda blocks: aten.mean(blocks[0], [2, 3], *rest[1:]))
    if target is _PAD and len(rest[0]) <= 4:
        pads = [0, 0, *rest[0]]
        return Form(node, node, lambda blocks: aten.constant_pad_nd(blocks[0], pads, *rest[1:]))
    return None


def _pooling(node: fx.Node) -> Form | None:
    """None where somebody reads the indices of the largest values."""
    last, image = node, node.args[0]
    if node.target is MAX_POOL:
        users = list(node.users)
        if len(users) != 1 or users[0].target is not operator.getitem or users[0].args[1] != 0:
            return None
        last = users[0]
    if not is_image(last) or not is_image(image):
        return None
    made, given = last.meta["val"], image.meta["val"]  # type: ignore[union-attr]
    is_slow = node.target is MAX_POOL and made.shape[3] < given.shape[3]
    plain = _MAX_OF_STRIDES if is_slow else _PLAIN

    def build(blocks: Sequence[Any]) -> Any:
        n, groups, height, width, block = blocks[0].shape
        images = aten.permute(aten.reshape(blocks[0], [-1, height, width, block]), [0, 3, 1, 2])
        pooled = node.target(images, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        pooled = pooled[0] if node.target is MAX_POOL else pooled
        size = [n, groups, *pooled.shape[2:], block]
        return aten.reshape(aten.permute(pooled, [0, 2, 3, 1]), size)

    return Form(node, last, build, (made.numel() * plain, made.numel() * _BLOCKED))
