"""What of a graph computes in blocks of channels, [n, c / b, h, w, b], for a CPU.

Of convolutions only those that logs have such kernels of, for this very machine; pooling and what
else has a form in blocks, too. A tensor that changes its layout has a price, and the assignment of
least time is a minimum cut, as for whole models. What lies in between and works on each number
alone takes its inputs as they are: Inductor computes it in either order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from convtvm.problem.workload import BLOCKED_LAYOUTS, ENTRY_LAYOUTS, ConvWorkload
from convtvm.torch.channelwise import Form, forms, is_image
from convtvm.torch.graph import Site
from convtvm.torch.kernels import Kernels, Need

aten = torch.ops.aten
_CONVERTED = (
    10e9  # bytes a second, read and written by Inductor's code from one layout to the other
)
_NEVER = float("inf")
_PLAIN = "plain"


@dataclass(frozen=True)
class Changed:
    """The operations beside sites that compute in blocks of so many channels."""

    block: int
    forms: tuple[Form, ...]


def assign(graph: fx.Graph, sites: Sequence[Site], kernels: Kernels) -> Changed | None:
    """Give the needs of sites that gain by it another layout; None where nothing can."""
    able = [s for s in sites if s.recipe and _is_able(s.recipe.need) and not s.recipe.flat]
    if not able or not kernels.is_open:
        return None
    layout, seconds = _seconds(kernels, [s.recipe.need.workload for s in able if s.recipe])
    if not layout:
        return None
    problem = _Problem(graph, able, layout, seconds, kernels.threads)
    blocked = problem.solved()
    for site in able:
        if site.last in blocked:
            assert site.recipe is not None
            need = site.recipe.need
            need = replace(need, layout=_blocked(need.workload, layout))
            site.recipe = replace(site.recipe, need=need)
    gaining = tuple(form for form in problem.forms if form.last in blocked)
    return Changed(_block(layout), gaining)


def _is_able(need: Need) -> bool:
    plain = need.device == "cpu" and need.layout == "NCHW" and not need.dynamic
    return plain and need.workload.ih * need.workload.iw > 1


def _blocked(w: ConvWorkload, layout: str) -> str:
    """The layout in blocks of a convolution; one of few channels reads NCHW."""
    return f"NCHW-{layout}" if w.ic % _block(layout) else layout


def _block(layout: str) -> int:
    return int(layout[len("NCHW") : -1])


def _seconds(
    kernels: Kernels, workloads: Iterable[ConvWorkload]
) -> tuple[str, dict[ConvWorkload, tuple[float, float]]]:
    """The layout in blocks of this CPU, and the seconds in NCHW and in blocks of those workloads
    that were measured in it."""
    from convtvm.logs import records
    from convtvm.machine.targets import resolve

    target = resolve(*kernels.target("cpu"))
    layout = f"NCHW{target.lanes}c"
    if layout not in BLOCKED_LAYOUTS:
        return "", {}
    history, _ = records.load(kernels.logs)
    native = {(r.workload, r.layout) for r in history if r.target == target.name and not r.error}
    wanted = [
        w
        for w in dict.fromkeys(workloads)
        if w.oc % _block(layout) == 0 and (w.key, _blocked(w, layout)) in native
    ]
    plain = _best(kernels, wanted, target, "NCHW", history)
    measured: dict[ConvWorkload, float] = {}
    for kind in (layout, f"NCHW-{layout}"):
        own = [w for w in wanted if _blocked(w, layout) == kind]
        measured |= _best(kernels, own, target, kind, [r for r in history if r.layout == kind])
    return layout, {w: (plain[w], secs) for w, secs in measured.items() if w in plain}


def _best(
    kernels: Kernels, workloads: Sequence[ConvWorkload], target: Any, layout: str, history: Any
) -> dict[ConvWorkload, float]:
    """Seconds of the kernels that a library would have."""
    from convtvm.kernels.task import tasks_of
    from convtvm.library.choices import choose, keep_some
    from convtvm.models.candidates import Limits

    options = kernels.options
    error = _NEVER if options.max_error is None else options.max_error
    limits = Limits(options.workspace_limit, error)
    found = choose(tasks_of(workloads, target, layout), history)
    best = keep_some([c for c in found if limits.objection(c) is None], "best")
    secs = {
        c.task.workload: c.record.seconds if c.record is not None else c.predicted_secs
        for c in best
        if c.record is not None or layout == "NCHW"
    }
    return {w: taken for w, taken in secs.items() if taken is not None}


class _Problem:
    """A label for each site and for each operation between them: whether it is in blocks."""

    def __init__(
        self,
        graph: fx.Graph,
        sites: Sequence[Site],
        layout: str,
        seconds: dict[ConvWorkload, tuple[float, float]],
        threads: int,
    ) -> None:
        from convtvm.models.cut import Labels

        self._labels, self._graph, self._threads = Labels(), graph, threads
        self._layout = layout
        self._sites: dict[fx.Node, Site] = {}
        for site in sites:
            assert site.recipe is not None
            workload = site.recipe.need.workload
            if workload in seconds:
                self._sites[site.last] = site
                self._labels.price(site.last, *seconds[workload])
        self._inside = {n: s for s in self._sites.values() for n in s.nodes}
        self.forms = list(forms(graph, _block(layout)))
        for form in self.forms:
            plain, blocked = form.seconds
            self._labels.price(form.last, plain / threads, blocked / threads)
        self._made = {n: form.last for form in self.forms for n in (form.node, form.last)}

    def solved(self) -> set[Any]:
        """The results, of sites and of other operations, that are in blocks."""
        self._labels.price(_PLAIN, 0.0, _NEVER)
        for node in self._graph.nodes:
            if is_image(node) and self._is_outside(node):
                value = node.meta["val"]
                pixels = value.shape[2] * value.shape[3]
                price = 8 * value.numel() / _CONVERTED / self._threads if pixels > 1 else 1e-9
                readers = [self._reader(u, node) for u in node.users if not _is_weight(node, u)]
                self._labels.convert(node.name, self._label(node), readers, price)
        return self._labels.solve()

    def _is_outside(self, node: fx.Node) -> bool:
        site = self._inside.get(node)
        return site is None or site.last is node

    def _label(self, node: fx.Node) -> Any:
        if node in self._made:
            return self._made[node]
        return node if node in self._sites or _is_pointwise(node) else _PLAIN

    def _reader(self, user: fx.Node, node: fx.Node) -> Any:
        """The label of what reads `node`."""
        site = self._inside.get(user)
        if site is None:
            return self._label(user)
        assert site.recipe is not None
        layout = _blocked(site.recipe.need.workload, self._layout)
        return _PLAIN if user is site.conv and layout in ENTRY_LAYOUTS else site.last


def _is_weight(node: fx.Node, user: fx.Node) -> bool:
    return user.target is aten.convolution.default and user.args[0] is not node


def _is_pointwise(node: fx.Node) -> bool:
    """Whether an operation works on each number of an image alone."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) and is_image(node)
