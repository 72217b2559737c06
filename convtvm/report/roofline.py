"""Every candidate under the machine's roof: its peak, its bandwidth, Winograd's own ceilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from convtvm.errors import ConvtvmError
from convtvm.logs.records import TuningRecord
from convtvm.machine.cpu import device_name
from convtvm.measure.bandwidth import measure_bandwidth
from convtvm.measure.peak import measure_peak
from convtvm.problem.workload import ConvWorkload
from convtvm.report.bench import Bench
from convtvm.report.picture import (
    Figure,
    Spec,
    Table,
    chart,
    family,
    family_scale,
    inline,
    ms,
    shape_scale,
    significant,
    thinned,
    variable,
)
from convtvm.report.runs import Layer, Run

_APART = 1.12  # times as high, so that what is written at two lines does not overlap


@dataclass(frozen=True)
class Roof:
    """FLOP/s and bytes a second; None for what is not known. `origin` says where from."""

    peak: float | None = None
    bandwidth: float | None = None
    origin: str = ""
    is_peak: bool = True


def roof_of(run: Run, benches: Sequence[Bench]) -> Roof:
    """The roof of the machine of a run: measured now if this is the machine, else the peak of a
    benchmark of the same target and threads, else unknown."""
    task = next((t for layer in run.layers for t in layer.tasks.values()), None)
    bench = next(
        (b for b in benches if b.peak and (b.target, b.threads) == (run.target, run.threads)), None
    )
    if task is not None and not run.on_gpu and run.devices == [device_name()]:
        try:
            peak = measure_peak(task.target)
        except (ConvtvmError, OSError):  # it can be named here and not built, or run
            peak = 0.0
        if peak:
            return Roof(peak, measure_bandwidth(run.threads), "measured for this report")
    if bench is not None:
        return Roof(bench.peak, None, "measured by the benchmark")
    return Roof()


def intensity(w: ConvWorkload) -> float:
    """FLOPs of the direct algorithm for each byte that any algorithm has to move: data and weight
    read once, output written once."""
    return w.flops / (w.data_bytes + w.weight_bytes + w.out_bytes)


def products(layer: Layer, algorithm: str) -> int:
    return layer.table[algorithm].multiplications(layer.workload)


def figures(run: Run, roof: Roof) -> list[Figure]:
    """All candidates by what they compute in a second, those of one layer above each other."""
    measured = [(layer, record) for layer in run.layers for record in layer.measured]
    if not measured:
        return []
    fastest = max(_own_rate(layer, r) for layer, r in measured)
    if roof.peak and roof.peak < fastest:
        origin = (
            f"{roof.origin}, which found a peak of {roof.peak / 1e9:,.0f} as something else ran: "
            "the line is the most that any candidate multiplied"
        )
        roof = replace(roof, peak=fastest, origin=origin, is_peak=False)
    firsts = [(layer, r) for layer in run.layers for r in layer.best.values()]
    best = {id(r) for _, r in firsts}
    others = thinned([pair for pair in measured if id(pair[1]) not in best])
    peak = roof.peak or fastest
    dots = [_dot(pair[0], pair[1], peak, id(pair[1]) in best) for pair in [*others, *firsts]]
    reach = _reach(run)
    spec = _spec(dots, roof, peak, reach)
    table = Table(
        ["layer", "algorithm", ">ms", ">GFLOP/s", ">FLOP/byte", ">% of its ceiling"],
        [
            [
                layer.label,
                r.algorithm,
                ms(r.seconds),
                f"{layer.workload.flops / r.seconds / 1e9:,.1f}",
                significant(intensity(layer.workload)),
                f"{100 * _own_rate(layer, r) / peak:.0f}",
            ]
            for layer, r in firsts
        ],
    )
    drawn = "" if len(dots) == len(measured) else f" ({len(dots):,} of {len(measured):,})"
    sentence = (
        f"Every candidate{drawn}: the convolution's FLOPs a second against its FLOPs for each byte "
        f"of data, weight and output. {_about(roof, fastest, run)} Winograd multiplies less, so "
        "each tile size has its own, higher ceiling (dashed)."
    )
    return [Figure("Roofline", sentence, spec, table)]


def _about(roof: Roof, fastest: float, run: Run) -> str:
    if roof.peak is None:
        where = "a GPU" if run.on_gpu else "another machine"
        return (
            f"The log is of {where}, whose peak nobody measured here: the line is the most that "
            f"any candidate multiplied, {fastest / 1e9:,.0f} GFLOP/s."
        )
    text = f"Peak {'at least ' * (not roof.is_peak)}{roof.peak / 1e9:,.0f} GFLOP/s"
    if roof.bandwidth:
        text += f", bandwidth {roof.bandwidth / 1e9:,.1f} GB/s"
    return f"{text}, {roof.origin}."


def _own_rate(layer: Layer, record: TuningRecord) -> float:
    """FLOP/s of the products that the algorithm computes itself."""
    return 2 * products(layer, record.algorithm) / record.seconds


def _reach(run: Run) -> dict[str, float]:
    """By Winograd algorithm, how many products of the convolution one of its own stands for, in the
    layer where that is most."""
    found: dict[str, float] = {}
    for layer in run.layers:
        for name in layer.best:
            if family(name) == "winograd":
                times = layer.workload.macs / products(layer, name)
                found[name] = max(times, found.get(name, 1.0))
    return dict(sorted(found.items()))


def _dot(layer: Layer, record: TuningRecord, peak: float, is_best: bool) -> dict[str, Any]:
    w = layer.workload
    return {
        "layer": layer.label,
        "algorithm": record.algorithm,
        "family": family(record.algorithm),
        "x": intensity(w),
        "y": w.flops / record.seconds / 1e9,
        "ms": record.seconds * 1e3,
        "share": _own_rate(layer, record) / peak,
        "best": is_best,
    }


def _ceilings(reach: Mapping[str, float]) -> list[tuple[str, float]]:
    """What to write at each ceiling; those of nearly one height share a line."""
    found: list[tuple[list[str], float]] = []
    for name, times in sorted(reach.items(), key=lambda item: item[1]):
        tile = f"F({name.partition(':')[2]})"
        if found and times < _APART * found[-1][1]:
            found[-1] = ([*found[-1][0], tile], times)
        else:
            found.append(([tile], times))
    return [(f"{', '.join(sorted(tiles))} {times:.1f}×", times) for tiles, times in found]


def _lines(
    roof: Roof, peak: float, reach: Mapping[str, float], low: float, high: float
) -> list[dict[str, Any]]:
    """The roof and the ceilings above it, each as its two or three corners."""
    rows: list[dict[str, Any]] = []
    name = "peak" if roof.peak and roof.is_peak else "most multiplied"
    highest = max([1.0, *reach.values()])
    for text, times in ((name, 1.0), *_ceilings(reach)):
        level = peak * times
        ridge = level / roof.bandwidth if roof.bandwidth else low
        corners = [(max(ridge, low), level), (high, level)]
        if roof.bandwidth and ridge > low and times in (1.0, highest):
            corners.insert(0, (low, roof.bandwidth * low))
        rows += [
            {"line": text, "x": x, "y": y / 1e9, "own": times > 1.0, "end": i == len(corners) - 1}
            for i, (x, y) in enumerate(corners)
        ]
    return rows


def _spec(dots: Sequence[dict[str, Any]], roof: Roof, peak: float, reach: dict[str, float]) -> Spec:
    xs = [float(d["x"]) for d in dots]
    lines = _lines(roof, peak, reach, 0.8 * min(xs), 1.7 * max(xs))
    axes = _axes(dots, lines)
    dashed = {"condition": {"test": "datum.own", "value": [4, 4]}, "value": [1, 0]}
    line = {
        "data": inline(lines),
        "mark": {"type": "line", "interpolate": "linear", "clip": True},
        "encoding": {
            **axes,
            "detail": {"field": "line"},
            "strokeDash": dashed,
            "color": {"condition": {"test": "datum.own", "value": variable("winograd")}}
            | {"value": variable("ink")},
            "size": {"condition": {"test": "datum.own", "value": 1}, "value": 2},
        },
    }
    ends = {
        "data": inline(r for r in lines if r["end"]),
        "mark": {"type": "text", "align": "right", "dx": -2, "dy": -6, "fontSize": 11},
        "encoding": {**axes, "text": {"field": "line"}},
    }
    return chart("Roofline", 360, layer=[line, _points(dots, axes), ends])


def _axes(dots: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]]) -> Spec:
    domain = [min(float(r["x"]) for r in lines), max(float(r["x"]) for r in lines)]
    x: Spec = {
        "field": "x",
        "type": "quantitative",
        "title": "FLOP for each byte",
        "scale": {"type": "log", "domain": domain, "nice": False},
        "axis": {"grid": False, "tickCount": 6, "format": "~g"},
    }
    floor = min(float(d["y"]) for d in dots)
    ceiling = max([*(float(d["y"]) for d in dots), *(float(r["y"]) for r in lines)])
    y: Spec = {
        "field": "y",
        "type": "quantitative",
        "title": "GFLOP/s of the convolution",
        "scale": {"type": "log", "nice": False, "clamp": True}
        | {"domain": [max(floor * 0.8, ceiling / 300), ceiling * 1.15]},
        "axis": {"tickCount": 5, "format": "~s"},
    }
    return {"x": x, "y": y}


def _points(dots: Sequence[dict[str, Any]], axes: Spec) -> Spec:
    names = [str(d["algorithm"]) for d in dots]
    return {
        "data": inline(dots),
        "mark": {"type": "point", "filled": True},
        "encoding": {
            **axes,
            "color": {"field": "family", "type": "nominal", "scale": family_scale(names)},
            "shape": {"field": "family", "type": "nominal", "scale": shape_scale(names)},
            "size": {"condition": {"test": "datum.best", "value": 75}, "value": 18},
            "opacity": {"condition": {"test": "datum.best", "value": 0.95}, "value": 0.3},
            "tooltip": [
                {"field": "layer"},
                {"field": "algorithm", "title": "by"},
                {"field": "ms", "format": ".4~g"},
                {"field": "y", "title": "GFLOP/s", "format": ",.1f"},
                {"field": "share", "title": "of its ceiling", "format": ".0%"},
            ],
        },
    }
