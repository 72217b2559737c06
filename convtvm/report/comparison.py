"""Layers and whole models beside other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convtvm.errors import ReportError
from convtvm.report.bench import Bench, ModelBench
from convtvm.report.labels import Labels
from convtvm.report.picture import (
    LIBRARIES,
    LIBRARY_SHAPES,
    Figure,
    Spec,
    Table,
    chart,
    error_of,
    family,
    family_scale,
    geomean,
    in_order,
    inline,
    ms,
    plural,
    ratio,
    short_target,
    time_of,
    variable,
)

_BESIDE = "Beside other libraries"
_MOST = 16  # times ours, beyond which a mark stands at the edge
_FEW = 3
_FINE = (0.85, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.3, 1.4)
_TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16)


def labels_of(bench: Bench) -> dict[str, str]:
    return dict(Labels.of(row.workload for row in bench.layers).texts)


def headline(bench: Bench) -> str:
    """The outcome of all layers in one line."""
    speedups = [row.speedup for row in bench.layers if row.speedup]
    where = f"{bench.device or short_target(bench.target)}, {plural(bench.threads, 'thread')}"
    if not speedups:
        return f"{plural(len(bench.layers), 'layer')} on {where}"
    return (
        f"{ratio(geomean(speedups))} the fastest other library of each layer "
        f"(geometric mean; least {ratio(min(speedups))}) on {where}"
    )


def layers(bench: Bench) -> list[Figure]:
    """All layers by the ratio of each library's time to ours; by their speed without peers."""
    if not any(row.speedup for row in bench.layers):
        return _alone(bench)
    label = labels_of(bench)
    rows = [
        {
            "layer": label[row.workload.key],
            "library": library,
            "ratio": seconds / row.seconds,
            "ms": seconds * 1e3,
            "ours": row.seconds * 1e3,
            "by": row.chosen,
            "best": seconds == min(row.libraries.values()),
            "one": 1,
        }
        for row in bench.layers
        for library, seconds in row.libraries.items()
        if row.seconds
    ]
    names = _libraries(bench)
    table = Table(
        ["layer", "by", ">convtvm ms", *(f">{name} ms" for name in names), ">times the best"],
        [
            [
                label[row.workload.key],
                row.chosen or "–",
                ms(row.seconds),
                *(ms(row.libraries.get(name)) for name in names),
                "–" if row.speedup is None else ratio(row.speedup),
            ]
            for row in bench.layers
        ],
    )
    sentence = (
        f"Time of each library's fastest setting over convtvm's: {headline(bench)}. Right of the "
        "line convtvm is faster; full marks are the fastest other library of the layer."
    )
    if bench.noisy:
        sentence += f" {plural(bench.noisy, 'figure')} came from a machine never at rest."
    return [Figure(_BESIDE, sentence, _ratios(rows, names), table)]


def _libraries(bench: Bench) -> list[str]:
    found = {name for row in bench.layers for name in row.libraries}
    return [n for n in LIBRARIES if n in found] + sorted(found - set(LIBRARIES))


def _library_scales(names: Sequence[str]) -> tuple[Spec, Spec]:
    colours = [variable(name if name in LIBRARIES else "peer") for name in names]
    places = [LIBRARIES.index(n) if n in LIBRARIES else 0 for n in names]
    shapes = [LIBRARY_SHAPES[place] for place in places]
    return {"domain": names, "range": colours}, {"domain": names, "range": shapes}


def _ratios(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Spec:
    places: Spec = {"y": in_order("layer", axis={"grid": True, "labelLimit": 180})}
    places["x"] = _ratio_axis([row["ratio"] for row in rows])
    side = {"test": "datum.ratio >= 1", "value": variable("accent")}
    gain = {
        "transform": [{"filter": "datum.best"}],
        "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.5, "strokeCap": "butt"},
        "encoding": {
            **places,
            "x2": {"field": "one"},
            "color": {"condition": side, "value": variable("torch")},
        },
    }
    colours, shapes = _library_scales(names)
    dots = {
        "mark": {"type": "point", "filled": True, "size": 70},
        "encoding": {
            **places,
            "color": {"field": "library", "type": "nominal", "scale": colours},
            "shape": {"field": "library", "type": "nominal", "scale": shapes},
            "opacity": {"condition": {"test": "datum.best", "value": 1}, "value": 0.45},
            "tooltip": _TOOLTIP,
        },
    }
    line = {
        "data": inline([{"ratio": 1}]),
        "mark": {"type": "rule", "strokeWidth": 1.5, "color": variable("ink")},
        "encoding": {"x": places["x"]},
    }
    return chart(
        "Time of other libraries over convtvm's",
        22 * len({row["layer"] for row in rows}),
        data=inline(rows),
        layer=[gain, line, dots],
    )


_TOOLTIP: list[Spec] = [
    {"field": "layer"},
    {"field": "library"},
    {"field": "ms", "title": "its ms", "format": ".4~g"},
    {"field": "ours", "title": "convtvm's ms", "format": ".4~g"},
    {"field": "by", "title": "by"},
    {"field": "ratio", "title": "ratio", "format": ".2f"},
]


def _ratio_axis(ratios: Sequence[float]) -> Spec:
    """As far as the ratios reach; Vega piles up the ticks beyond a clamped scale at its end."""
    low, high = 0.96 * min(0.9, *ratios), min(1.05 * max(1.0, *ratios), _MOST)
    ticks = [value for value in _TICKS if low <= value <= high]
    if len(ticks) < _FEW:
        ticks = [value for value in _FINE if low <= value <= high]
    return {
        "field": "ratio",
        "type": "quantitative",
        "title": "× convtvm's time",
        "scale": {"type": "log", "domain": [low, high], "nice": False, "clamp": True},
        "axis": {"values": ticks, "format": "~g", "grid": False},
    }


def _alone(bench: Bench) -> list[Figure]:
    """The speed of each layer by the algorithm that was chosen."""
    label = labels_of(bench)
    done = [(row, row.seconds) for row in bench.layers if row.seconds]
    if not done:
        return []
    rows = [
        {
            "layer": label[row.workload.key],
            "rate": row.workload.flops / seconds / 1e9,
            "family": family(row.chosen),
            "text": f"{row.chosen}, {ms(seconds)} ms",
        }
        for row, seconds in done
    ]
    y = in_order("layer")
    x: Spec = {"field": "rate", "type": "quantitative", "title": "GFLOP/s of the convolution"}
    x["axis"] = {"tickCount": 8}
    x["scale"] = {"domain": [0, 1.4 * max(float(str(r["rate"])) for r in rows)], "nice": False}
    colour = {
        "field": "family",
        "type": "nominal",
        "scale": family_scale(r.chosen for r, _ in done),
    }
    bars = {"mark": {"type": "bar", "height": 13}, "encoding": {"y": y, "x": x, "color": colour}}
    text: Spec = {"mark": {"type": "text", "align": "left", "dx": 5, "fontSize": 11}}
    text["encoding"] = {"y": y, "x": x, "text": {"field": "text"}}
    spec = chart("Speed of each layer", 22 * len(rows), data=inline(rows), layer=[bars, text])
    table = Table(
        ["layer", "by", ">ms", ">GFLOP/s"],
        [
            [label[r.workload.key], r.chosen, ms(s), f"{r.workload.flops / s / 1e9:,.1f}"]
            for r, s in done
        ],
    )
    sentence = "FLOPs of the convolution in a second, by the algorithm that a plan takes."
    return [Figure("Speed of each layer", sentence, spec, table)]


def picture(found: Bench | ModelBench) -> tuple[Figure, str, str]:
    """The one picture of a comparison, for a file of its own, with heading and line below it.
    Raises ReportError where nothing was measured."""
    where = f"{found.device or short_target(found.target)}, {plural(found.threads, 'thread')}"
    if isinstance(found, ModelBench):
        return model(found)[0], f"{found.model}, ms a call", where
    figures = layers(found)
    if not figures:
        raise ReportError("there is nothing to draw: no layer was measured")
    if figures[0].title == _BESIDE:
        return figures[0], "convtvm beside other libraries, layer by layer", headline(found)
    return figures[0], "convtvm, layer by layer", where


def model(bench: ModelBench) -> list[Figure]:
    """A whole model's time beside each library's."""
    times = [("convtvm", bench.ours), *bench.peers.items()]
    times.sort(key=lambda item: item[1].seconds)
    rows = [
        {"name": name, "ms": t.seconds * 1e3, "text": ms(t.seconds), "ours": t is bench.ours}
        for name, t in times
    ]
    y = in_order("name")
    x: Spec = {"field": "ms", "type": "quantitative", "title": "ms a call"}
    x["axis"] = {"tickCount": 8}
    x["scale"] = {"domain": [0, 1.4 * max(t.seconds for _, t in times) * 1e3], "nice": False}
    colour = {
        "condition": {"test": "datum.ours", "value": variable("accent")},
        "value": variable("peer"),
    }
    bars = {"mark": {"type": "bar", "height": 15}, "encoding": {"y": y, "x": x, "color": colour}}
    text: Spec = {"mark": {"type": "text", "align": "left", "dx": 5}}
    text["encoding"] = {"y": y, "x": x, "text": {"field": "text"}}
    spec = chart("Time of a whole model", 24 * len(rows), data=inline(rows), layer=[bars, text])
    table = Table(
        ["by", ">ms", ">of convtvm's", ">error"],
        [
            [name, ms(t.seconds), ratio(t.seconds / bench.ours.seconds), error_of(t.max_error)]
            for name, t in times
        ],
    )
    sentence = f"{bench.model}: a call takes {time_of(bench.ours.seconds)}"
    if bench.peers:
        name = min(bench.peers, key=lambda n: bench.peers[n].seconds)
        best = bench.peers[name].seconds / bench.ours.seconds
        sentence += f", {ratio(best)} as fast as {name}, the fastest other library"
    return [Figure("The whole model", f"{sentence}; median of calls in turn.", spec, table)]
