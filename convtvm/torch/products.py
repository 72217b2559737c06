"""Linear layers of a graph as 1x1 convolutions of images, and back.

After AOTAutograd a linear layer is a product of rows, `addmm` or `mm`, between views; its rows are
the pixels of an image whose channels are innermost. As a convolution it has what convolutions have:
what follows goes with it, and it takes part in the choice of layouts. What follows works on
[..., channels] as the layer did, so it moves to the image: permutations go after it, and vanish
where the next one undoes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from convtvm.torch.graph import ACTIVATIONS, SCALE, SHIFT, only_user, sources
from convtvm.torch.nodes import call

aten = torch.ops.aten

_PRODUCTS = (aten.addmm.default, aten.mm.default)
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_LAST, _SECOND = [0, 2, 3, 1], [0, 3, 1, 2]  # where a permutation takes the channels of an image
# Fewer rows take as long as the weight takes from memory, whoever multiplies.
_FEWEST_ROWS = 8


@dataclass(frozen=True)
class Product:
    """Of what a convolution was made: `matrix` is [k, n]."""

    matrix: fx.Node


def as_convolutions(graph: fx.Graph, static: set[fx.Node]) -> dict[fx.Node, Product | str]:
    """Make convolutions of the products with constant matrices, on a CPU.

    Returns the convolutions, and the products that stay with why they do. `static` as of `sites`.
    """
    found = _Conversion(graph, static)
    for node in [n for n in graph.nodes if n.target in _PRODUCTS]:
        found.visit(node)
    return found.made


def restore(graph: fx.Graph, conv: fx.Node, product: Product) -> None:
    """Put the product that a convolution was made of in its place."""
    image, _, bias = conv.args[:3]
    assert isinstance(image, fx.Node)
    _, channels, *size = conv.meta["val"].shape
    with graph.inserting_before(conv):
        last = call(graph, aten.permute.default, image, _LAST)
        rows = call(graph, aten.reshape.default, last, [-1, image.meta["val"].shape[1]])
        if bias is None:
            made = call(graph, aten.mm.default, rows, product.matrix)
        else:
            made = call(graph, aten.addmm.default, bias, rows, product.matrix)
        made.meta = {**conv.meta, "val": made.meta["val"]}
        pixels = call(graph, aten.reshape.default, made, [-1, *size, channels])
        back = call(graph, aten.permute.default, pixels, _SECOND)
    conv.replace_all_uses_with(back)
    graph.erase_node(conv)


class _Conversion:
    """`made` is the result; `images` has the image behind each tensor of [..., channels] that is
    only a view of one."""

    def __init__(self, graph: fx.Graph, static: set[fx.Node]) -> None:
        self.graph, self.static = graph, static
        self.made: dict[fx.Node, Product | str] = {}
        self.images: dict[fx.Node, fx.Node] = {}

    def visit(self, node: fx.Node) -> None:
        """Convert a product, or note why not; one of other things than rows and a constant matrix
        is no linear layer."""
        rows, matrix = node.args[-2:]
        assert isinstance(rows, fx.Node) and isinstance(matrix, fx.Node)
        is_constant = sources([matrix], self.static) is not None
        if not is_constant or sources([rows], self.static) is not None:
            return
        if rows.meta["val"].device.type != "cpu":
            return
        bias = node.args[0] if node.target is aten.addmm.default else None
        origin = rows if rows in self.images else _origin(rows)
        self.made[node] = reason = self._objection(node, origin, matrix, bias)
        if not reason:
            del self.made[node]
            self._convert(node, origin, matrix, bias)

    def _objection(self, node: fx.Node, origin: fx.Node, matrix: fx.Node, bias: Any) -> str:
        value, shape = origin.meta["val"], origin.meta["val"].shape
        channels = matrix.meta["val"].shape[1]
        if value.dtype is not torch.float32:
            return f"its input is {value.dtype}"
        if node.kwargs:
            return "it is scaled by alpha or beta"
        if bias is not None and sources([bias], self.static) is None:
            return "its bias changes with every call: it is no parameter, nor computed from some"
        if bias is not None and tuple(bias.meta["val"].shape) != (channels,):
            return f"its bias is {list(bias.meta['val'].shape)}, expected [{channels}]"
        if any(not isinstance(size, int) for size in (shape if len(shape) == 2 else shape[1:])):
            return "its number of rows is dynamic, and no batch of images"
        rows = math.prod(size for size in shape[:-1] if isinstance(size, int))
        if rows < _FEWEST_ROWS or 0 in matrix.meta["val"].shape:
            return f"it has {rows} rows: PyTorch reads the weight as fast"
        return ""

    def _convert(self, node: fx.Node, origin: fx.Node, matrix: fx.Node, bias: Any) -> None:
        graph, given = self.graph, node.all_input_nodes
        k, channels = matrix.meta["val"].shape
        shape = (*origin.meta["val"].shape[:-1], channels)
        with graph.inserting_before(node):
            image = self._image(origin)
            turned = call(graph, aten.permute.default, matrix, [1, 0])
            kernel = call(graph, aten.reshape.default, turned, [channels, k, 1, 1])
            args = (image, kernel, bias, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
            conv = call(graph, aten.convolution.default, *args)
            value = conv.meta["val"].contiguous(memory_format=torch.channels_last)
            conv.meta = {**node.meta, "val": value}
            conv._rename("linear")
            pixels = self._pixels(conv, shape)
            for user in list(node.users):
                if user.target in _VIEWS and _is_alike(user, pixels):
                    user.replace_all_uses_with(pixels)
                    graph.erase_node(user)
            if node.users:
                flat = pixels
                if len(shape) > 2:
                    flat = call(graph, aten.reshape.default, pixels, [-1, channels])
                node.replace_all_uses_with(flat)
        graph.erase_node(node)
        self._sweep(given)
        self.made[conv] = Product(matrix)
        self._sink(conv, pixels)

    def _image(self, node: fx.Node) -> fx.Node:
        """A tensor of [..., channels] as an image."""
        if node in self.images:
            return self.images[node]
        shape = node.meta["val"].shape
        if len(shape) == 3:
            node = call(self.graph, aten.unsqueeze.default, node, 1)
        elif len(shape) != 4:
            lead = [1, 1] if len(shape) == 2 else [-1, math.prod(shape[1:-2])]
            node = call(self.graph, aten.reshape.default, node, [*lead, *shape[-2:]])
        return call(self.graph, aten.permute.default, node, _SECOND)

    def _pixels(self, image: fx.Node, shape: Sequence[Any]) -> fx.Node:
        """An image as the tensor of this shape, [..., channels]."""
        made = call(self.graph, aten.permute.default, image, _LAST)
        if len(shape) == 3:
            made = call(self.graph, aten.squeeze.dim, made, 1)
        elif len(shape) != 4:
            made = call(self.graph, aten.reshape.default, made, [-1, *shape[1:]])
        self.images[made] = image
        return made

    def _sink(self, image: fx.Node, pixels: fx.Node) -> None:
        """Move what follows, as long as it works on each number alone, to the image."""
        while (user := only_user(pixels)) is not None:
            if user.target is aten.permute.default and list(user.args[1]) == _SECOND:
                user.replace_all_uses_with(image)
                self._sweep([user])
                return
            with self.graph.inserting_before(user):
                operands = self._operands(user, image, pixels)
                if operands is None:
                    return
                image = call(self.graph, user.target, *operands, **user.kwargs)
                image.meta = {**user.meta, "val": image.meta["val"]}
                made = self._pixels(image, pixels.meta["val"].shape)
            user.replace_all_uses_with(made)
            self._sweep([user])
            pixels = made

    def _operands(self, user: fx.Node, image: fx.Node, pixels: fx.Node) -> list[Any] | None:
        """What `user` of the pixels takes where it works on the image; None if it cannot."""
        if user.target in ACTIVATIONS:
            return [image, *user.args[1:]] if user.all_input_nodes == [pixels] else None
        if user.target not in (SCALE, SHIFT) or user.kwargs:
            return None
        others = [a for a in user.args if a is not pixels]
        if len(others) != 1 or not isinstance(others[0], fx.Node):
            return None
        other, here, there = others[0], pixels.meta["val"], others[0].meta["val"]
        if there.dtype != here.dtype or there.device != here.device:
            return None
        if _is_vector(there, here.shape[-1]):
            moved = call(self.graph, aten.reshape.default, other, [here.shape[-1], 1, 1])
        elif there.shape == here.shape:
            moved = self._image(other)
        else:
            return None
        return [image if a is pixels else moved for a in user.args]

    def _sweep(self, nodes: Sequence[fx.Node]) -> None:
        """Erase those that nothing uses, and what they alone used."""
        for node in nodes:
            unused = not node.users and not node._erased
            if unused and node.op == "call_function" and not node.is_impure():
                given = node.all_input_nodes
                self.graph.erase_node(node)
                self._sweep(given)


def _origin(rows: fx.Node) -> fx.Node:
    """What rows [m, k] are a view of, if that has the same last axis."""
    if rows.target not in _VIEWS:
        return rows
    given = rows.args[0]
    assert isinstance(given, fx.Node)
    shape, channels = given.meta["val"].shape, rows.meta["val"].shape[-1]
    # A size that is dynamic is never compared, which would make it constant.
    same = len(shape) > 2 and isinstance(shape[-1], int) and shape[-1] == channels
    return given if same else rows


def _is_alike(node: fx.Node, pixels: fx.Node) -> bool:
    """Whether a view of a product is of this shape; the first sizes follow from the others."""
    here, there = node.meta["val"].shape, pixels.meta["val"].shape
    return len(here) == len(there) and tuple(here[1:]) == tuple(there[1:])


def _is_vector(value: Any, channels: int) -> bool:
    """Whether a tensor has one number for each channel, its last axis."""
    shape = tuple(value.shape)
    return len(shape) > 0 and shape == (*[1] * (len(shape) - 1), channels)
