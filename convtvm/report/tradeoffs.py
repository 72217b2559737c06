"""What time costs: workspace, and accuracy by the size of Winograd's tiles."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from convtvm.logs.records import TuningRecord
from convtvm.report.picture import (
    Figure,
    Spec,
    Table,
    chart,
    error_of,
    family,
    family_scale,
    hover,
    inline,
    ms,
    plural,
    ratio,
    shape_scale,
    size_of,
    thinned,
    variable,
)
from convtvm.report.runs import Layer, Run

_SLOWEST = 3.0  # times the fastest; slower candidates are not drawn
_TICKS = [0, *(2**k for k in range(12, 36, 2))]
_BYTES = (
    "datum.value == 0 ? '0' : datum.value < 1048576 ? datum.value / 1024 + ' KiB' : "
    "datum.value < 1073741824 ? datum.value / 1048576 + ' MiB' : datum.value / 1073741824 + ' GiB'"
)


def pareto(candidates: Sequence[TuningRecord]) -> list[TuningRecord]:
    """Those that no other beats in time without more workspace, the fastest first."""
    order = sorted(candidates, key=lambda r: (r.seconds, r.workspace_bytes or 0))
    found: list[TuningRecord] = []
    for record in order:
        if not found or (record.workspace_bytes or 0) < (found[-1].workspace_bytes or 0):
            found.append(record)
    return found


def workspace(run: Run) -> list[Figure]:
    """Workspace against time with the Pareto set of each layer."""
    fronts, dots = [], []
    for layer in run.layers:
        made = [r for r in _unasked(layer) if r.workspace_bytes is not None]
        if not made:
            continue
        best = min(r.seconds for r in made)
        fronts += [(layer, record, record.seconds / best) for record in pareto(made)]
        dots += [(layer, r, r.seconds / best) for r in made if r.seconds <= _SLOWEST * best]
    if not any((r.workspace_bytes or 0) > 0 for _, r, _ in dots):
        return []
    drawn = thinned(dots)
    candidates = [_dot(*dot) for dot in drawn]
    steps = [_dot(*dot) for dot in fronts if dot[2] <= _SLOWEST]
    table = Table(
        ["layer", "algorithm", ">workspace", ">ms", ">of the fastest"],
        [
            [layer.label, r.algorithm, size_of(r.workspace_bytes), ms(r.seconds), ratio(times)]
            for layer, r, times in fronts
        ],
    )
    free = [
        min((t for at, r, t in fronts if at is layer and not r.workspace_bytes), default=None)
        for layer in {id(at): at for at, _, _ in fronts}.values()
    ]
    without = [t for t in free if t is not None]
    sentence = (
        "Each line is the Pareto set of a layer, the candidates that some limit on workspace makes "
        "the choice; dots are all other candidates up to three times as slow as the fastest"
        f"{_thinning(len(drawn), len(dots))}."
    )
    if without:
        sentence += (
            f" With no workspace at all, {plural(len(without), 'layer')} can be computed, "
            f"{ratio(statistics.median(without))} the fastest's time in the median."
        )
    return [Figure("Workspace against time", sentence, _fronts(candidates, steps), table)]


def _unasked(layer: Layer) -> list[TuningRecord]:
    return [r for r in layer.measured if not layer.table[r.algorithm].opt_in]


def _thinning(drawn: int, all_: int) -> str:
    return f" ({drawn:,} of {all_:,}, evenly spread)" if drawn < all_ else ""


def _dot(layer: Layer, record: TuningRecord, times: float) -> dict[str, Any]:
    return {
        "layer": layer.label,
        "algorithm": record.algorithm,
        "family": family(record.algorithm),
        "bytes": record.workspace_bytes or 0,
        "workspace": size_of(record.workspace_bytes),
        "ms": record.seconds * 1e3,
        "times": times,
    }


def _fronts(dots: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]]) -> Spec:
    """All candidates as faint dots, and the kept ones of each layer on its line."""
    names = [str(d["algorithm"]) for d in dots]
    places = _front_axes(max(int(d["bytes"]) for d in dots))
    marks: Spec = {
        **places,
        "color": {"field": "family", "type": "nominal", "scale": family_scale(names)},
        "shape": {"field": "family", "type": "nominal", "scale": shape_scale(names)},
        "tooltip": _TOOLTIP,
    }
    every = {
        "mark": {"type": "point", "filled": True, "size": 14, "opacity": 0.28},
        "encoding": marks,
    }
    near = {"param": "hover", "empty": False}
    line = {
        "data": inline(steps),
        "mark": {"type": "line", "interpolate": "step-after"},
        "encoding": {
            **places,
            "detail": {"field": "layer"},
            "order": {"field": "bytes"},
            "color": {"condition": {**near, "value": variable("ink")}, "value": variable("muted")},
            "opacity": {"condition": {**near, "value": 1}, "value": 0.4},
            "size": {"condition": {**near, "value": 2.5}, "value": 1},
        },
    }
    kept = {
        "data": inline(steps),
        "params": hover("layer"),
        "mark": {"type": "point", "filled": True, "size": 60},
        "encoding": marks,
    }
    return chart(
        "Workspace against time, with Pareto sets",
        320,
        data=inline(dots),
        layer=[every, line, kept],
    )


_TOOLTIP: list[Spec] = [
    {"field": "layer", "title": "layer"},
    {"field": "algorithm", "title": "by"},
    {"field": "workspace", "title": "workspace"},
    {"field": "ms", "format": ".4~g"},
    {"field": "times", "title": "× the fastest", "format": ".3~f"},
]


def _front_axes(most_bytes: int) -> Spec:
    return {
        "x": {
            "field": "bytes",
            "type": "quantitative",
            "title": "workspace",
            "scale": {"type": "symlog", "constant": 4096, "domain": [0, max(most_bytes, 65536)]},
            "axis": {
                "values": [t for t in _TICKS if t <= most_bytes],
                "labelExpr": _BYTES,
                "grid": False,
                "labelOverlap": True,
            },
        },
        "y": {
            "field": "times",
            "type": "quantitative",
            "title": "× the fastest",
            "scale": {"domain": [0.96, _SLOWEST], "clamp": True, "nice": False},
            "axis": {"tickCount": 5},
        },
    }


def errors(run: Run) -> list[Figure]:
    """Error against tile size; none where there is no Winograd."""
    rows: list[dict[str, Any]] = []
    limits: dict[str, float] = {}
    for layer in run.layers:
        for name in layer.best:
            found = [r.max_error for r in layer.measured if r.algorithm == name]
            known = [error for error in found if error]
            if known:
                tile = _tile(name)
                rows.append(
                    {"layer": layer.label, "algorithm": name, "family": family(name)}
                    | {"tile": tile, "error": max(known)}
                )
                limits[tile] = max(limits.get(tile, 0.0), layer.table[name].tolerance)
    tiles = sorted(limits, key=lambda t: (t != _NONE, t))
    if len(tiles) < 2:
        return []
    by_tile = {tile: [r["error"] for r in rows if r["tile"] == tile] for tile in tiles}
    base = statistics.median(by_tile[tiles[0]])
    table = Table(
        ["tile", ">layers", ">least", ">median", ">largest", ">of the smallest tile's", ">limit"],
        [
            [
                tile,
                f"{len({r['layer'] for r in rows if r['tile'] == tile})}",
                error_of(min(found)),
                error_of(statistics.median(found)),
                error_of(max(found)),
                ratio(statistics.median(found) / base),
                error_of(limits[tile]),
            ]
            for tile, found in by_tile.items()
        ],
    )
    last = tiles[-1]
    sentence = (
        "The largest error that candidates had, relative to the largest output, against the tile "
        f"of Winograd's transforms: {ratio(statistics.median(by_tile[last]) / base)} from "
        f"{tiles[0]} to {last} in the median. Rules mark where an answer counts as wrong."
    )
    return [Figure("Error against tile size", sentence, _errors(rows, limits, tiles), table)]


_NONE = "no transform"


def _tile(algorithm: str) -> str:
    name, _, m = algorithm.partition(":")
    return f"F({m})" if name == "winograd" else _NONE


def _errors(rows: Sequence[dict[str, Any]], limits: dict[str, float], tiles: list[str]) -> Spec:
    x: Spec = {"field": "tile", "type": "nominal", "sort": tiles, "title": None}
    x["axis"] = {"labelAngle": 0, "grid": False}
    y: Spec = {"field": "error", "type": "quantitative", "title": "relative error"}
    found = [*(r["error"] for r in rows), *limits.values()]
    decades = [math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))]
    y["scale"] = {"type": "log", "domain": [10.0**d for d in decades]}
    y["axis"] = {"values": [10.0**d for d in range(decades[0], decades[1] + 1)], "format": ".0e"}
    names = [str(r["algorithm"]) for r in rows]
    dots = {
        "mark": {"type": "point", "filled": True, "size": 46, "opacity": 0.75},
        "encoding": {
            "x": x,
            "xOffset": {"field": "spread", "type": "quantitative", "scale": {"rangeMin": 12}},
            "y": y,
            "color": {"field": "family", "type": "nominal", "scale": family_scale(names)},
            "shape": {"field": "family", "type": "nominal", "scale": shape_scale(names)},
            "tooltip": [{"field": f} for f in ("layer", "algorithm")]
            + [{"field": "error", "format": ".1e"}],
        },
    }
    rule = {
        "data": inline({"tile": t, "error": limit} for t, limit in limits.items()),
        "mark": {"type": "tick", "thickness": 2, "color": variable("muted"), "size": 46},
        "encoding": {"x": x, "y": y},
    }
    spread = [{**row, "spread": number} for number, row in enumerate(rows)]
    return chart("Error against tile size", 280, data=inline(spread), layer=[dots, rule])
