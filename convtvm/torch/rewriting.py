"""Putting the operator in the place of convolutions in a graph, and the graph back in order."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from convtvm.problem.workload import ENTRY_LAYOUTS, channel_block
from convtvm.torch.graph import HELD_BACK, NORM, Site
from convtvm.torch.kernels import Kernels, Need
from convtvm.torch.operator import Recipe, conv, recipe_of, register

aten = torch.ops.aten


def replace(graph: fx.Graph, site: Site, kernels: Kernels, tag: str = "") -> Recipe:
    """One call of the operator for the nodes of `site`, which has a recipe; what it computes.

    `tag` as of `register`.
    """
    assert site.recipe is not None
    x, weight, bias = site.conv.args[:3]
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
    with _fake_mode(node):
        node.meta["val"] = conv(*values)
    made = _in_order(graph, node, recipe.need) if recipe.need.is_blocked else node
    site.last.replace_all_uses_with(made)
    for old in reversed(site.nodes):
        graph.erase_node(old)
    return recipe


def _in_order(graph: fx.Graph, node: fx.Node, need: Need) -> fx.Node:
    """An operator's output in blocks of channels, [n, c / b, h, w, b], as [n, c, h, w]."""
    with graph.inserting_after(node):
        turned = _call(graph, aten.permute.default, node, [0, 1, 4, 2, 3])
    with graph.inserting_after(turned):
        return _call(graph, aten.reshape.default, turned, list(need.workload.out_shape()))


def lay_out(graph: fx.Graph) -> None:
    """Give the operators that read blocks of channels what they read."""
    packed: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is not conv or not recipe_of(node.args[3]).need.is_blocked:
            continue
        need = recipe_of(node.args[3]).need
        for index in (0, 2):
            given = node.args[index]
            if isinstance(given, fx.Node) and not (index == 0 and need.layout in ENTRY_LAYOUTS):
                if given not in packed:
                    packed[given] = _in_blocks(graph, given, channel_block(need.layout))
                node.update_arg(index, packed[given])


def _in_blocks(graph: fx.Graph, node: fx.Node, block: int) -> fx.Node:
    """An image in blocks of channels: what it was made from, if that was in blocks."""
    turned = node.all_input_nodes[0] if node.target is aten.reshape.default else node
    source = turned.all_input_nodes[0] if turned.target is aten.permute.default else node
    if source.target is conv and recipe_of(source.args[3]).need.is_blocked:
        return source
    n, channels, *image = node.meta["val"].shape
    places = [p for p in graph.nodes if p.op == "placeholder"]
    with graph.inserting_after(places[-1] if node.op == "placeholder" else node):
        split = _call(graph, aten.reshape.default, node, [n, channels // block, block, *image])
    with graph.inserting_after(split):
        return _call(graph, aten.permute.default, split, [0, 1, 3, 4, 2])


def _call(graph: fx.Graph, target: Any, node: fx.Node, sizes: list[int]) -> fx.Node:
    made = graph.call_function(target, (node, sizes))
    with _fake_mode(made):
        made.meta["val"] = target(node.meta["val"], sizes)
    return made


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
    values = [n.meta["val"] for n in inputs]

    def compute(*tensors: Any) -> Any:
        given = dict(zip(inputs, tensors, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), given.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    with _fake_mode(node):
        inner = make_fx(compute, decomposition_table=table)(*values)
    places = [n for n in inner.graph.nodes if n.op == "placeholder"]
    copied = dict(zip(places, inputs, strict=True))
    with graph.inserting_before(node):
        results = graph.graph_copy(inner.graph, copied)
    for new in copied.values():
        if new not in inputs:
            new.meta = {**node.meta, "val": new.meta.get("val")}
    if node.target is NORM:
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(results)  # type: ignore[arg-type]
    graph.erase_node(node)


def _fake_mode(node: fx.Node) -> FakeTensorMode:
    values: Sequence[Any] = [n.meta.get("val") for n in node.all_input_nodes]
    modes = (v.fake_mode for v in values if isinstance(v, torch._subclasses.FakeTensor))
    return next(modes)
