"""New nodes of a graph, with their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import _subclasses, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx


def call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node that calls an operation, with its value."""
    made = graph.call_function(target, args, kwargs)
    with fake_mode(made):
        made.meta["val"] = target(*fx.node.map_arg(args, lambda n: n.meta["val"]), **kwargs)
    return made


def traced(
    graph: fx.Graph,
    place: fx.Node,
    function: Callable[..., Any],
    inputs: Sequence[fx.Node],
    table: dict[Any, Callable[..., Any]] | None = None,
) -> Any:
    """The nodes of a function of `inputs`, decomposed by `table` and put before `place`: its
    result."""
    with fake_mode(place):
        inner = make_fx(function, decomposition_table=table)(*(n.meta["val"] for n in inputs))
    places = [n for n in inner.graph.nodes if n.op == "placeholder"]
    copied = dict(zip(places, inputs, strict=True))
    with graph.inserting_before(place):
        results = graph.graph_copy(inner.graph, copied)
    for new in copied.values():
        if new not in inputs:
            new.meta = {**place.meta, "val": new.meta.get("val")}
    return results


def fake_mode(node: fx.Node) -> FakeTensorMode:
    """That of the values of its inputs."""
    values: Sequence[Any] = [n.meta.get("val") for n in node.all_input_nodes]
    modes = (v.fake_mode for v in values if isinstance(v, _subclasses.FakeTensor))
    return next(modes)
