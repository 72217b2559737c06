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

from convtvm.torch.graph import HELD_BACK, NORM, Site
from convtvm.torch.kernels import Kernels
from convtvm.torch.operator import Convolution, conv, register


def replace(graph: fx.Graph, site: Site, kernels: Kernels) -> Convolution:
    """One call of the operator for the nodes of `site`, which has a recipe."""
    assert site.recipe is not None
    x, weight, bias = site.conv.args[:3]
    norm: list[Any] = []
    if site.norm is not None:
        gamma, beta, mean, variance = site.norm.args[1:5]
        norm = [mean, variance, *([gamma, beta] if gamma is not None else [])]
    recipe, watched = site.recipe, site.sources
    if set(watched) == {n for n in (weight, bias, *norm) if n is not None}:
        watched = []
    else:
        derive = _derivation(watched, (weight, bias, norm))
        recipe = dataclasses.replace(recipe, derivation=derive.code, derive=derive)
        weight, bias, norm = watched[0], None, []
    name, convolution = register(recipe, kernels)
    args = (x, weight, bias, norm, site.residual, watched, name)
    with graph.inserting_before(site.last):
        node = graph.call_function(conv, args)
    node.meta = dict(site.last.meta)
    values = fx.node.map_arg(args, lambda n: n.meta["val"])
    with _fake_mode(node):
        node.meta["val"] = conv(*values)
    site.last.replace_all_uses_with(node)
    for old in reversed(site.nodes):
        graph.erase_node(old)
    return convolution


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
