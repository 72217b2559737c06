"""How the best times fell: by trials of a layer, and by seconds of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from convtvm.logs.records import TuningRecord
from convtvm.report.picture import (
    Figure,
    Spec,
    Table,
    chart,
    geomean,
    hover,
    inline,
    ms,
    plural,
    ratio,
    significant,
    variable,
)
from convtvm.report.runs import Layer, Run

PAUSE = 300.0  # seconds without a record that are a break between runs, not tuning
_ALL = "all layers"
_SEARCH = 1.5  # trials of a task, on average, that are a search


def figures(run: Run) -> list[Figure]:
    """Best time against trials and against seconds; none in a log of winners, which hardly has
    more trials than tasks."""
    layers = [layer for layer in run.layers if _falls(_trials(layer))]
    if not layers or not is_search(run):
        return []
    found = [_by_trials(layers)]
    clock = elapsed(run.trials)
    if len(clock) > 1 and max(clock.values()) > 0:
        found.append(_by_seconds(layers, clock))
    return found


def is_search(run: Run) -> bool:
    return len(run.trials) >= _SEARCH * len({r.task_key for r in run.trials})


def elapsed(trials: Sequence[TuningRecord]) -> dict[int, float]:
    """Seconds of tuning when a record was made, by its id; breaks between runs do not count.

    Records without a time, or with one that nobody can read, have none.
    """
    stamps = sorted((t, id(r)) for r in trials if (t := _stamp(r)) is not None)
    found: dict[int, float] = {}
    spent, before = 0.0, None
    for stamp, key in stamps:
        gap = 0.0 if before is None else stamp - before
        spent += gap if gap <= PAUSE else 0.0
        before, found[key] = stamp, spent
    return found


def _stamp(record: TuningRecord) -> float | None:
    try:
        return datetime.fromisoformat(record.time).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _trials(layer: Layer) -> list[TuningRecord]:
    return [r for r in layer.made if not r.confirmed]


def _falls(trials: Sequence[TuningRecord]) -> list[tuple[int, float]]:
    """(number of the trial, best seconds so far) wherever the best fell, and at the end."""
    best, found = math.inf, []
    for number, record in enumerate(trials, start=1):
        if record.seconds < best:
            best = record.seconds
            found.append((number, best))
    if found and found[-1][0] < len(trials):
        found.append((len(trials), best))
    return found


def _by_trials(layers: Sequence[Layer]) -> Figure:
    rows, lines = [], []
    curves = {layer.label: _falls(_trials(layer)) for layer in layers}
    for layer in layers:
        fell, trials = curves[layer.label], _trials(layer)
        best = fell[-1][1]
        for number, seconds in fell:
            rows.append(_point(layer.label, number, seconds, best))
        half = next(number for number, seconds in fell if seconds <= 1.05 * best)
        first = fell[0][1]
        lines.append(
            [layer.label, f"{len(trials):,}", ms(first), ms(best), ratio(first / best), f"{half:,}"]
        )
    rows += _mean(curves)
    spec = _curves("Best time so far against trials", rows, "trials of the layer", log_x=True)
    table = Table(
        ["layer", ">trials", ">first ms", ">best ms", ">gain", ">trials to within 5 %"], lines
    )
    sentence = (
        "For each layer, how much slower its best candidate so far was than its best in the end; "
        "the thick line is the geometric mean."
    )
    return Figure("Best time against trials", sentence, spec, table)


def _mean(curves: Mapping[str, Sequence[tuple[int, float]]]) -> list[dict[str, Any]]:
    """The geometric mean of all layers' ratios, where all have a result."""
    start = max(fell[0][0] for fell in curves.values())
    numbers = sorted({n for fell in curves.values() for n, _ in fell if n > start} | {start})
    found = []
    for number in numbers:
        ratios = [
            min(seconds for n, seconds in fell if n <= number) / fell[-1][1]
            for fell in curves.values()
        ]
        found.append({"layer": _ALL, "x": number, "ratio": geomean(ratios), "ms": None})
    return found


def _by_seconds(layers: Sequence[Layer], clock: Mapping[int, float]) -> Figure:
    rows: list[dict[str, Any]] = []
    events: list[tuple[float, str, float]] = []
    for layer in layers:
        timed = [r for r in _trials(layer) if id(r) in clock]
        fell = _falls(sorted(timed, key=lambda r: clock[id(r)]))
        order = sorted(clock[id(r)] for r in timed)
        if not fell:
            continue
        for number, seconds in fell:
            rows.append(_point(layer.label, order[number - 1], seconds, fell[-1][1]))
            events.append((order[number - 1], layer.label, seconds))
    times = {layer.label: layer.multiplicity for layer in layers}
    total = _total(sorted(events), times)
    rows += [{"layer": _ALL, "x": x, "ratio": s / total[-1][1], "ms": s * 1e3} for x, s in total]
    spec = _curves("Best time so far against seconds of tuning", rows, "seconds of tuning")
    sentence = (
        f"The same by the clock; the thick line is the sum over the layers, which fell to "
        f"{ms(total[-1][1])} ms in {plural(round(max(clock.values())), 'second')} "
        f"(breaks of more than {PAUSE / 60:.0f} minutes between runs left out)."
    )
    marks = _milestones(total)
    table = Table([">seconds", ">sum of the best, ms", ">of the final sum"], marks)
    return Figure("Best time against seconds", sentence, spec, table)


def _total(
    events: Sequence[tuple[float, str, float]], times: Mapping[str, int]
) -> list[tuple[float, float]]:
    """(second, sum of all layers' best times, each as often as its network has it)."""
    best: dict[str, float] = {}
    missing = {label for _, label, _ in events}
    found = []
    for x, label, seconds in events:
        best[label] = seconds
        missing.discard(label)
        if not missing:
            found.append((x, sum(times[name] * value for name, value in best.items())))
    return found


def _milestones(total: Sequence[tuple[float, float]]) -> list[list[str]]:
    """When the sum first came within so many per cent of where it ended."""
    end = total[-1][1]
    found = []
    for above in (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0):
        second, seconds = next(p for p in total if p[1] <= (1 + above) * end)
        row = [significant(second), ms(seconds), ratio(seconds / end)]
        if row not in found:
            found.append(row)
    return found


def _point(label: str, x: float, seconds: float, best: float) -> dict[str, Any]:
    return {"layer": label, "x": x, "ratio": seconds / best, "ms": seconds * 1e3}


def _curves(
    description: str, rows: Sequence[Mapping[str, Any]], title: str, log_x: bool = False
) -> Spec:
    scale = {"type": "log", "nice": False} if log_x else {"nice": False}
    values = sorted(float(row["ratio"]) for row in rows)
    top = max(1.5, min(values[-1], 8.0))
    x: Spec = {"field": "x", "type": "quantitative", "title": title, "scale": scale}
    x["axis"] = {"grid": False, "tickCount": 6, "format": "~s" if log_x else ",~f"}
    y: Spec = {
        "field": "ratio",
        "type": "quantitative",
        "title": "× the final best",
        "scale": {"type": "log", "domain": [1, top], "clamp": True},
        "axis": {"tickCount": 5, "format": "~g"},
    }
    is_all = f"datum.layer == '{_ALL}'"
    near = {"param": "hover", "empty": False}
    line = {
        "mark": {"type": "line", "interpolate": "step-after", "strokeJoin": "round"},
        "encoding": {
            "x": x,
            "y": y,
            "detail": {"field": "layer"},
            "color": {
                "condition": [
                    {**near, "value": variable("im2col")},
                    {"test": is_all, "value": variable("accent")},
                ],
                "value": variable("muted"),
            },
            "size": {"condition": {"test": is_all, "value": 3}, "value": 1.2},
            "opacity": {
                "condition": [{**near, "value": 1}, {"test": is_all, "value": 1}],
                "value": 0.45,
            },
        },
    }
    points = {
        "params": hover("layer"),
        "mark": {"type": "point", "filled": True, "size": 50, "opacity": 0.001},
        "encoding": {
            "x": x,
            "y": y,
            "tooltip": [
                {"field": "layer", "title": "layer"},
                {"field": "x", "title": title, "format": ",.4~g"},
                {"field": "ms", "title": "best so far, ms", "format": ".4~g"},
                {"field": "ratio", "title": "× the final best", "format": ".3~f"},
            ],
        },
    }
    return chart(description, 280, data=inline(rows), layer=[line, points])
