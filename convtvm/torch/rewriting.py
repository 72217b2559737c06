"""Putting the operator in the place of convolutions in a graph, and the graph back in order."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from convtvm.problem.workload import ENTRY_LAYOUTS
from convtvm.torch.channelwise import Form
from convtvm.torch.graph import HELD_BACK, SCALE, SHIFT, Site
from convtvm.torch.kernels import Kernels
from convtvm.torch.nodes import call, fake_mode, traced
from convtvm.torch.operator import Recipe, conv, recipe_of, register
from convtvm.torch.transposed import spread

aten = torch.ops.aten
_ORDER = [0, 1, 4, 2, 3]  # of the dimensions of an image in blocks, to see its channels together


def replace(graph: fx.Graph, site: Site, kernels: Kernels, tag: str = "") -> Recipe:
    """One call of the operator for the nodes of `site`, which has a recipe; what it computes.

    `tag` as of `register`.
    """
    assert site.recipe is not None
    x = site.conv.args[0]
    with graph.inserting_before(site.last):
        weight, bias = _scaled(graph, site)
    norm: list[Any] = []
    if site.norm is not None:
        gamma, beta, mean, variance = site.norm.args[1:5]
        norm = [mean, variance, *([gamma, beta] if gamma is not None else [])]
    recipe, weights = site.recipe, [n for n in (weight, bias, *norm) if n is not None]
    if set(weights) != set(site.sources):
        weights = site.sources
        derive = _derivation(weights, (weight, bias, norm))
        recipe = dataclasses.replace(recipe, derivation=derive.code, derive=derive)
    name, _ = register(recipe, kernels, tag)
    args = (x, weights, site.residual, name)
    with graph.inserting_before(site.last):
        node = graph.call_function(conv, args)
    node.meta = dict(site.last.meta)
    values = fx.node.map_arg(args, lambda n: n.meta["val"])
    with fake_mode(node):
        node.meta["val"] = conv(*values)
    made, need, shape = node, recipe.need, recipe.need.workload.out_shape()
    if recipe.phases is not None:
        shape = recipe.phases.shape
        with graph.inserting_before(site.last):
            made = spread(graph, node, recipe)
    made = _in_order(graph, made, shape) if need.is_blocked else made
    site.last.replace_all_uses_with(made)
    for old in reversed(site.nodes):
        graph.erase_node(old)
    return recipe


def _scaled(graph: fx.Graph, site: Site) -> tuple[Any, Any]:
    """Weight and bias with the constants of each channel in them."""
    weight, bias = site.conv.args[1:3]
    for target, vector in site.vectors():
        flat = call(graph, aten.reshape.default, vector, [-1])
        if target is SCALE:
            channels = [1, -1, 1, 1] if site.is_transposed else [-1, 1, 1, 1]
            scale = call(graph, aten.reshape.default, vector, channels)
            weight = call(graph, target, weight, scale)
        if bias is not None:
            bias = call(graph, target, bias, flat)
        elif target is SHIFT:
            bias = flat
    return weight, bias


def _in_order(graph: fx.Graph, node: fx.Node, shape: Sequence[int]) -> fx.Node:
    """An image in blocks of channels, [n, c / b, h, w, b], as [n, c, h, w]."""
    with graph.inserting_after(node):
        turned = call(graph, aten.permute.default, node, _ORDER)
    with graph.inserting_after(turned):
        return call(graph, aten.reshape.default, turned, list(shape))


def lay_out(graph: fx.Graph, forms: Sequence[Form], block: int) -> None:
    """Let those operations compute in blocks of so many channels, and give the operators that read
    blocks what they read."""
    named = {form.node: form for form in forms}
    packed: dict[fx.Node, fx.Node] = {}

    def in_blocks(node: fx.Node) -> fx.Node:
        if node not in packed:
            packed[node] = _in_blocks(graph, node, block)
        return packed[node]

    for node in list(graph.nodes):
        if node in named:
            _replace_form(graph, named[node], [in_blocks(i) for i in named[node].inputs])
        elif node.target is conv and (need := recipe_of(node.args[3]).need).is_blocked:
            for index in (0, 2):
                given = node.args[index]
                if isinstance(given, fx.Node) and not (index == 0 and need.layout in ENTRY_LAYOUTS):
                    node.update_arg(index, in_blocks(given))


def _replace_form(graph: fx.Graph, form: Form, blocks: list[fx.Node]) -> None:
    """An operation computed in blocks."""
    made = traced(graph, form.node, lambda *given: form.build(given), blocks)
    shape = list(form.last.meta["val"].shape)
    if made.meta["val"].dim() == 5:
        ordered = _in_order(graph, made, shape)
    else:
        with graph.inserting_after(made):
            ordered = call(graph, aten.reshape.default, made, shape)
    form.last.replace_all_uses_with(ordered)


def _in_blocks(graph: fx.Graph, node: fx.Node, block: int) -> fx.Node:
    """An image in blocks of channels: what it was made from, if that was in blocks."""
    if (source := _blocks_of(node, block)) is not None:
        return source
    n, channels, *image = node.meta["val"].shape
    places = [p for p in graph.nodes if p.op == "placeholder"]
    with graph.inserting_after(places[-1] if node.op == "placeholder" else node):
        split = call(graph, aten.reshape.default, node, [n, channels // block, block, *image])
    with graph.inserting_after(split):
        return call(graph, aten.permute.default, split, [0, 1, 3, 4, 2])


def _blocks_of(node: fx.Node, block: int) -> fx.Node | None:
    """What `_in_order` made an image from, None if it did not."""
    turned = node.args[0] if node.target is aten.reshape.default else None
    if not isinstance(turned, fx.Node) or turned.target is not aten.permute.default:
        return None
    source, order = turned.args
    assert isinstance(source, fx.Node)
    n, channels, *image = node.meta["val"].shape
    # A model's own permutation of five axes may be of anything.
    shape = (n, channels // block, *image, block)
    return source if order == _ORDER and tuple(source.meta["val"].shape) == shape else None


def keep_strides(graph: fx.Graph) -> None:
    """Copy contiguous images that are results, or that results are views of, so that these lie as
    they do whatever layouts are chosen for what they are computed by."""
    (output,) = (n for n in graph.nodes if n.op == "output")
    copies: dict[fx.Node, fx.Node] = {}
    for node in output.all_input_nodes:
        reader = output
        while _is_view(node):
            reader, node = node, node.all_input_nodes[0]
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor) or value.dim() != 4:
            continue
        if value.is_contiguous() and not value.is_contiguous(memory_format=torch.channels_last):
            if node not in copies:
                order = {"memory_format": torch.contiguous_format}
                with graph.inserting_after(node):
                    copies[node] = call(graph, aten.clone.default, node, **order)
            reader.replace_input_with(node, copies[node])


def _is_view(node: fx.Node) -> bool:
    """Whether a node's value is the memory of its first argument."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.all_input_nodes:
        return False
    alias = node.target._schema.arguments[0].alias_info
    return alias is not None and not alias.is_write


def _derivation(sources: Sequence[fx.Node], values: Any) -> fx.GraphModule:
    """A function of the sources that computes the nodes in `values`, which depend on no others."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {n: graph.placeholder(n.name) for n in sources}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            for given in node.all_input_nodes:
                copied(given)
            copies[node] = graph.node_copy(node, copies.__getitem__)
        return copies[node]

    graph.output(fx.node.map_arg(values, copied))
    return fx.GraphModule({}, graph)


def take_apart(gm: fx.GraphModule, table: dict[Any, Callable[..., Any]]) -> None:
    """Decompose by `table` what was held back for the operator and is still there."""
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and node.target in HELD_BACK and node.target in table:
            _take_apart(gm.graph, node, table)
    gm.graph.lint()
    gm.recompile()


def _take_apart(graph: fx.Graph, node: fx.Node, table: dict[Any, Callable[..., Any]]) -> None:
    inputs = node.all_input_nodes

    def compute(*tensors: Any) -> Any:
        given = dict(zip(inputs, tensors, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), given.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    results = traced(graph, node, compute, inputs, table)
    if isinstance(node.meta["val"], (tuple, list)):
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(results)
    graph.erase_node(node)
