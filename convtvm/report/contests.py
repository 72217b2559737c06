"""Who computes a layer, and how fast: algorithms of a log, a library or a benchmark, and other
libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convtvm.dispatch.manifest import Manifest
from convtvm.problem.workload import ConvWorkload
from convtvm.report.bench import LayerBench
from convtvm.report.labels import Labels, sizes
from convtvm.report.picture import (
    Figure,
    Spec,
    Table,
    chart,
    error_of,
    family,
    family_scale,
    in_order,
    inline,
    ms,
    ratio,
    significant,
    size_of,
    time_of,
    variable,
)
from convtvm.report.runs import Layer

_STEP = 22  # pixels of a bar
_SHORT = 2e-4  # seconds; layers below are shown in microseconds
_BEYOND = 1.1  # times the longest bar that a tick may be away
_LONGEST = 6  # times the shortest bar; longer ones are cut off
_MARKS = {"chosen": " ✓", "opt-in": " opt-in", "predicted": " ≈"}


@dataclass(frozen=True)
class Contender:
    """One way to compute a layer. `note` says what is special about it; `default` are the seconds
    of the same algorithm untuned."""

    name: str
    seconds: float
    workspace_bytes: int | None = None
    max_error: float | None = None
    default: float | None = None
    is_peer: bool = False
    note: str = ""


def of_layer(layer: Layer, bench: LayerBench | None = None) -> list[Contender]:
    """Those of a log; with a benchmark, as it measured them, side by side with its peers."""
    if bench is not None:
        return of_bench(bench)
    defaults = {name: r.seconds for name, r in layer.defaults.items()}
    return [
        Contender(
            name,
            r.seconds,
            r.workspace_bytes,
            r.max_error,
            defaults.get(name),
            note="chosen" if r is layer.chosen else "opt-in" if layer.table[name].opt_in else "",
        )
        for name, r in layer.best.items()
    ]


def of_bench(bench: LayerBench) -> list[Contender]:
    """Those of a benchmark. Times of a log are of another hour and do not compare with them."""
    ours = [
        Contender(
            name,
            m.seconds,
            m.workspace_bytes,
            m.max_error,
            note="chosen" if name == bench.chosen else "",
        )
        for name, m in bench.algorithms.items()
    ]
    peers = [
        Contender(name, m.seconds, max_error=m.max_error, is_peer=True)
        for name, m in bench.peers.items()
    ]
    return sorted(ours + peers, key=lambda c: c.seconds)


def of_manifest(manifest: Manifest) -> dict[str, tuple[ConvWorkload, list[Contender]]]:
    """Those of a library by workload: times that its log knew, else those that it expects."""
    workloads = {
        key: ConvWorkload.parse(f'{key}n"{name}"' if name else key)
        for key, name in manifest.workloads.items()
    }
    found: dict[str, tuple[ConvWorkload, list[Contender]]] = {}
    for key in Labels.of(workloads.values()).texts:
        kernels = [k for k in manifest.kernels if k.workload == key]
        timed = [(k.run_secs or k.predicted_secs, k) for k in kernels]
        known = [(seconds, k) for seconds, k in timed if seconds]
        measured = [k for _, k in known if k.run_secs and not k.is_opt_in]
        first = min(measured, key=lambda k: k.run_secs or 0.0, default=None)
        contenders = [
            Contender(
                k.algorithm,
                seconds,
                k.workspace_bytes,
                k.max_error,
                note="chosen" if k is first else "predicted" if k.run_secs is None else "",
            )
            for seconds, k in known
        ]
        found[key] = (workloads[key], sorted(contenders, key=lambda c: c.seconds))
    return found


def figure(label: str, w: ConvWorkload, contenders: Sequence[Contender]) -> Figure:
    """A bar for each contender of a layer, and a tick for each untuned default."""
    times = [c.seconds for c in contenders]
    limit = min(max(times), _LONGEST * min(times))
    unit, scale = ("µs", 1e6) if max(times) < _SHORT else ("ms", 1e3)
    rows = [_row(c, limit, scale) for c in contenders]
    spec = _bars(f"Time of each way to compute {label}", rows, limit * scale, unit)
    table = Table(
        ["algorithm", ">ms", ">GFLOP/s", ">untuned ms", ">workspace", ">error", "note"],
        [
            [
                c.name,
                ms(c.seconds),
                f"{w.flops / c.seconds / 1e9:,.1f}",
                ms(c.default),
                size_of(c.workspace_bytes),
                error_of(c.max_error),
                "another library" if c.is_peer else c.note,
            ]
            for c in contenders
        ],
    )
    about = "" if label == sizes(w) else f"{sizes(w)}: "
    return Figure(label, f"{about}{_verdict(contenders)}", spec, table, small=True)


def _row(c: Contender, limit: float, scale: float) -> dict[str, object]:
    """A contender as the chart takes it; bars end at `limit` seconds."""
    tick = c.default if c.default is not None and c.default <= _BEYOND * limit else 0.0
    mark = f"{_MARKS.get(c.note, '')}{' →' if c.seconds > limit else ''}"
    return {
        "name": c.name,
        "kind": "peer" if c.is_peer else family(c.name),
        "time": c.seconds * scale,
        "shown": min(c.seconds, limit) * scale,
        "default": None if c.default is None else c.default * scale,
        "text": f"{significant(c.seconds * scale, 4)}{mark}",
        # Where the text goes: behind the bar and the tick, whichever ends last.
        "end": max(min(c.seconds, limit), tick) * scale,
        "chosen": c.note == "chosen",
        "workspace": size_of(c.workspace_bytes),
        "error": error_of(c.max_error),
    }


def _bars(description: str, rows: Sequence[Mapping[str, object]], limit: float, unit: str) -> Spec:
    y = in_order("name")
    x: Spec = {
        "field": "shown",
        "type": "quantitative",
        "title": unit,
        "axis": {"tickCount": 4, "grid": True},
        "scale": {"domain": [0, 1.5 * limit], "nice": False},
    }
    tooltip: list[Spec] = [
        {"field": "name", "title": "by"},
        {"field": "time", "title": unit, "format": ".4~g"},
        {"field": "default", "title": f"untuned, {unit}", "format": ".4~g"},
        {"field": "workspace", "title": "workspace"},
        {"field": "error", "title": "error"},
    ]
    colour = {
        "field": "kind",
        "type": "nominal",
        "scale": family_scale(str(row["kind"]) for row in rows),
        "legend": None,
    }
    bar = {
        "mark": {"type": "bar", "height": 13},
        "encoding": {
            "y": y,
            "x": x,
            "color": colour,
            "opacity": {"condition": {"test": "datum.chosen", "value": 1}, "value": 0.62},
            "tooltip": tooltip,
        },
    }
    near = f"datum.default != null && datum.default <= {_BEYOND * limit:.6g}"
    tick = {
        "transform": [{"filter": near}],
        "mark": {"type": "tick", "thickness": 2, "size": 16, "color": variable("ink")},
        "encoding": {"y": y, "x": {**x, "field": "default"}},
    }
    label = {
        "mark": {"type": "text", "align": "left", "dx": 5, "fontSize": 11},
        "encoding": {"y": y, "x": {**x, "field": "end"}, "text": {"field": "text"}},
    }
    return chart(description, _STEP * len(rows), data=inline(rows), layer=[bar, tick, label])


def _verdict(contenders: Sequence[Contender]) -> str:
    """The outcome in one sentence."""
    ours = [c for c in contenders if not c.is_peer]
    peers = [c for c in contenders if c.is_peer]
    chosen = next((c for c in ours if c.note == "chosen"), None)
    if chosen is None:
        return "Nothing of this was measured." if not ours else "Nothing here is chosen unasked."
    parts = [f"{chosen.name} takes {time_of(chosen.seconds)}"]
    if chosen.default is not None:
        parts.append(f"{ratio(chosen.default / chosen.seconds)} as fast as untuned")
    rivals = [c for c in ours if c.note != "opt-in" and family(c.name) != family(chosen.name)]
    if rivals:
        rival = min(rivals, key=lambda c: c.seconds)
        parts.append(f"{ratio(rival.seconds / chosen.seconds)} as fast as {rival.name}")
    if peers:
        peer = min(peers, key=lambda c: c.seconds)
        parts.append(f"{ratio(peer.seconds / chosen.seconds)} as fast as {peer.name}")
    return ", ".join(parts) + "."
