"""What of a graph computes in another layout than its images have, for a CPU: in blocks of
channels, [n, c / b, h, w, b], or channels-last beside linear layers, which always do.

Of convolutions only those that logs have such kernels of, for this very machine; pooling and what
else has a form in blocks, too. A tensor that changes its layout has a price, and the assignment of
least time is a minimum cut, as for whole models; of the two layouts a graph has the one that saves
more. What lies in between and works on each number alone takes its inputs as they are: Inductor
computes it in either order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from convtvm.problem.transposed import Phases
from convtvm.problem.workload import BLOCKED_LAYOUTS, ENTRY_LAYOUTS, ConvWorkload
from convtvm.torch.channelwise import Form, forms, is_image
from convtvm.torch.graph import Site
from convtvm.torch.kernels import Kernels, Need
from convtvm.torch.rewriting import keep_strides

aten = torch.ops.aten
_CONVERTED = (
    10e9  # bytes a second, read and written by Inductor's code from one layout to the other
)
_STRIDED = (aten.as_strided.default, aten.as_strided_copy.default, aten.as_strided_scatter.default)
_NEVER = float("inf")
_PLAIN, _OTHER = "plain", "other"
_LAST = "NHWC"
_Seconds = dict[ConvWorkload, tuple[float, float]]  # in NCHW, and in another layout


@dataclass(frozen=True)
class Changed:
    """The operations beside sites that compute in blocks of so many channels."""

    block: int
    forms: tuple[Form, ...]


def assign(graph: fx.Graph, sites: Sequence[Site], kernels: Kernels) -> Changed | None:
    """Give the needs of sites that gain by it another layout; linear layers write channels-last.

    None where nothing gets into blocks.
    """
    rows = [s for s in sites if s.recipe and s.recipe.need.rows]
    best = _best_problem(graph, sites, rows, kernels)
    chosen, layout = (best.chosen, best.layout) if best else ([], "")
    last = layout == _LAST
    if rows or best:
        keep_strides(graph)
    for site in rows:
        assert site.recipe is not None
        site.recipe = replace(site.recipe, wide=True)
    for site in chosen:
        assert site.recipe is not None
        need = site.recipe.need
        need = replace(need, layout=_adapted(need.workload, layout))
        site.recipe = replace(site.recipe, need=need, wide=last)
    return Changed(_block(layout), tuple(best.gaining)) if best and not last else None


def _best_problem(
    graph: fx.Graph, sites: Sequence[Site], rows: Sequence[Site], kernels: Kernels
) -> _Problem | None:
    """That of the layout which saves most; None where there is nothing to choose."""
    able = [s for s in sites if s.recipe and _is_able(s.recipe.need) and not s.recipe.flat]
    # What reads memory by strides reads the order that the graph was captured with.
    strided = any(node.target in _STRIDED for node in graph.nodes)
    if not able or strided or not kernels.is_open:
        return None
    workloads = [s.recipe.need.workload for s in able if s.recipe]
    problems = [
        _Problem(graph, able, rows, layout, seconds, kernels.threads)
        for layout, seconds in _alternatives(kernels, workloads, bool(rows))
    ]
    if len(problems) > 1:
        return max(problems, key=lambda problem: problem.saved)
    return problems[0] if problems else None


def _is_able(need: Need) -> bool:
    plain = need.device == "cpu" and need.layout == "NCHW" and not need.dynamic
    return plain and need.workload.ih * need.workload.iw > 1


def _is_split(phases: Phases | None, layout: str) -> bool:
    """Whether a block of channels would be of two phases."""
    return phases is not None and layout != _LAST and phases.of_group % _block(layout) > 0


def _adapted(w: ConvWorkload, layout: str) -> str:
    """The layout of a convolution; one of few channels reads NCHW instead of blocks."""
    return f"NCHW-{layout}" if layout != _LAST and w.ic % _block(layout) else layout


def _block(layout: str) -> int:
    return int(layout[len("NCHW") : -1])


def _alternatives(
    kernels: Kernels, workloads: Sequence[ConvWorkload], beside_rows: bool
) -> Iterator[tuple[str, _Seconds]]:
    """The layout in blocks of this CPU, then channels-last where it helps `beside_rows`, each with
    the seconds in NCHW and in it of those workloads that were measured in it."""
    from convtvm.logs import records
    from convtvm.machine.targets import resolve

    target = resolve(*kernels.target("cpu"))
    history, _ = records.load(kernels.logs)
    native = {(r.workload, r.layout) for r in history if r.target == target.name and not r.error}
    blocks = f"NCHW{target.lanes}c"
    for layout in [blocks] * (blocks in BLOCKED_LAYOUTS) + [_LAST] * beside_rows:
        wanted = [
            w
            for w in dict.fromkeys(workloads)
            if (layout == _LAST or w.oc % _block(layout) == 0)
            and (w.key, _adapted(w, layout)) in native
        ]
        plain = _best(kernels, wanted, target, "NCHW", history)
        measured: dict[ConvWorkload, float] = {}
        for kind in dict.fromkeys(_adapted(w, layout) for w in wanted):
            own = [w for w in wanted if _adapted(w, layout) == kind]
            measured |= _best(kernels, own, target, kind, [r for r in history if r.layout == kind])
        seconds = {w: (plain[w], secs) for w, secs in measured.items() if w in plain}
        if seconds or layout != _LAST:
            yield layout, seconds


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
    """A label for each site and for each operation between them: whether it has the other layout.

    `chosen` are the sites that have it, `gaining` the operations beside them, `saved` the seconds
    that this saves.
    """

    def __init__(
        self,
        graph: fx.Graph,
        able: Sequence[Site],
        rows: Sequence[Site],
        layout: str,
        seconds: _Seconds,
        threads: int,
    ) -> None:
        self.layout, self._graph, self._threads = layout, graph, threads
        self._seconds: dict[fx.Node, tuple[float, float]] = {}
        self._sites: dict[fx.Node, Site] = {}
        for site in able:
            assert site.recipe is not None
            workload = site.recipe.need.workload
            if workload in seconds and not _is_split(site.recipe.phases, layout):
                self._sites[site.last] = site
                self._seconds[site.last] = seconds[workload]
        self._inside = {n: s for s in self._sites.values() for n in s.nodes}
        self._turned: set[fx.Node] = set()
        self._forms = [] if layout == _LAST else list(forms(graph, _block(layout)))
        self._made = {n: form.last for form in self._forms for n in (form.node, form.last)}
        for form in self._forms:
            plain, blocked = form.seconds
            self._seconds[form.last] = plain / threads, blocked / threads
        if layout == _LAST:
            self._inside |= {n: s for s in rows for n in s.nodes}
            self._turned = _turned(graph)
        labelled, self._least = self._solved()
        self.chosen = [site for last, site in self._sites.items() if last in labelled]
        self.gaining = [form for form in self._forms if form.last in labelled]

    @property
    def saved(self) -> float:
        return self._solved(changes=False)[1] - self._least

    def _solved(self, changes: bool = True) -> tuple[set[Any], float]:
        """What has the other layout, and the seconds of it all; of sites none has it unless this
        `changes`."""
        from convtvm.models.cut import Labels

        labels = Labels()
        for last, (plain, other) in self._seconds.items():
            labels.price(last, plain, other if changes else _NEVER)
        labels.price(_PLAIN, 0.0, _NEVER)
        labels.price(_OTHER, _NEVER, 0.0)
        for node in self._graph.nodes:
            if is_image(node) and self._is_outside(node) and node not in self._turned:
                value = node.meta["val"]
                pixels = value.shape[2] * value.shape[3]
                price = 8 * value.numel() / _CONVERTED / self._threads if pixels > 1 else 1e-9
                readers = [self._reader(u, node) for u in node.users if not _is_weight(node, u)]
                labels.convert(node.name, self._label(node), readers, price)
        return labels.solve(), labels.price_of_all

    def _is_outside(self, node: fx.Node) -> bool:
        site = self._inside.get(node)
        return site is None or site.last is node

    def _label(self, node: fx.Node) -> Any:
        if node in self._turned or _is_turned_back(node) or self._is_of_rows(node):
            return _OTHER if self.layout == _LAST else _PLAIN
        if node in self._made:
            return self._made[node]
        return node if node in self._sites or _is_pointwise(node) else _PLAIN

    def _is_of_rows(self, node: fx.Node) -> bool:
        return node in self._inside and node not in self._sites

    def _reader(self, user: fx.Node, node: fx.Node) -> Any:
        """The label of what reads `node`."""
        site = self._inside.get(user)
        if site is None:
            return self._label(user)
        assert site.recipe is not None
        if site.recipe.need.rows:
            return _OTHER
        layout = _adapted(site.recipe.need.workload, self.layout)
        return _PLAIN if user is site.conv and layout in ENTRY_LAYOUTS else site.last


def _is_weight(node: fx.Node, user: fx.Node) -> bool:
    return user.target is aten.convolution.default and user.args[0] is not node


def _is_pointwise(node: fx.Node) -> bool:
    """Whether an operation works on each number of an image alone."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) and is_image(node)


def _turned(graph: fx.Graph) -> set[fx.Node]:
    """What works on images as [n, h, w, c], from a permutation of one up to that of a result."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function" or node.target is aten.convolution.default:
            continue
        goes_on = not _is_turned_back(node) and not found.isdisjoint(node.all_input_nodes)
        if goes_on or _permutes(node, 0, 2, 3, 1):
            found.add(node)
    return found


def _is_turned_back(node: fx.Node) -> bool:
    return _permutes(node, 0, 3, 1, 2)


def _permutes(node: fx.Node, *axes: int) -> bool:
    return node.target is aten.permute.default and tuple(node.args[1]) == axes  # type: ignore
