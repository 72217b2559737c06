"""A picture: heading, one sentence, a Vega-Lite chart and the same numbers as a table; and the
colours that all pictures share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]

MOST_POINTS = 2500  # of one picture
MOST_ROWS = 400  # of one table

# Okabe and Ito's colours, which people with any colour vision tell apart, and names of CSS
# variables: a page has one set for light and one for dark.
FAMILIES = ("direct", "im2col", "mec", "strassen", "winograd")
SHAPES = {
    "direct": "circle",
    "im2col": "square",
    "mec": "triangle-up",
    "strassen": "cross",
    "winograd": "diamond",
}
LIBRARIES = ("torch", "onnxruntime", "openvino", "ncnn", "mnn")
LIBRARY_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")
LIGHT = {
    "ink": "#1b1f24",
    "muted": "#59636e",
    "grid": "#e4e7eb",
    "paper": "#ffffff",
    "direct": "#0072b2",
    "im2col": "#d98c00",
    "mec": "#00875f",
    "strassen": "#6b5bb5",
    "winograd": "#b8478a",
    "peer": "#8b95a1",
    "torch": "#c1440e",
    "onnxruntime": "#0072b2",
    "openvino": "#7b4fb5",
    "ncnn": "#00875f",
    "mnn": "#b38600",
    "accent": "#0a5ea8",
}
DARK = {
    "ink": "#e8ebef",
    "muted": "#9ba6b2",
    "grid": "#2c333b",
    "paper": "#14181d",
    "direct": "#56b4e9",
    "im2col": "#f0a92e",
    "mec": "#2dc39a",
    "strassen": "#b3a7ee",
    "winograd": "#e58fc0",
    "peer": "#8b95a1",
    "torch": "#ff8a5c",
    "onnxruntime": "#56b4e9",
    "openvino": "#b99af0",
    "ncnn": "#2dc39a",
    "mnn": "#e6c34d",
    "accent": "#6cb6ff",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Table:
    """Texts in rows; a column whose name begins with > holds numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """`sentence` says what the picture shows; a `small` one shares a row with others."""

    title: str
    sentence: str
    spec: Spec
    table: Table
    small: bool = False


def variable(name: str) -> str:
    return f"var(--{name})"


def family(algorithm: str) -> str:
    return algorithm.partition(":")[0]


def family_scale(names: Iterable[str]) -> Spec:
    """The colours of the families of these algorithms, `peer` among them."""
    used = {family(name) for name in names}
    domain = [f for f in (*FAMILIES, "peer") if f in used]
    return {"domain": domain, "range": [variable(f) for f in domain]}


def shape_scale(names: Iterable[str]) -> Spec:
    used = {family(name) for name in names}
    domain = [f for f in FAMILIES if f in used]
    return {"domain": domain, "range": [SHAPES[f] for f in domain]}


def chart(description: str, height: int, **content: Any) -> Spec:
    """A Vega-Lite chart as wide as its place."""
    return {
        "description": description,
        "width": "container",
        "height": height,
        **content,
    }


def inline(rows: Iterable[Mapping[str, Any]]) -> Spec:
    """Rows as Vega-Lite takes them, numbered by `order`; numbers get six digits, which a screen
    cannot show."""
    values = [
        {key: _short(value) for key, value in row.items()} | {"order": number}
        for number, row in enumerate(rows)
    ]
    return {"values": values}


def in_order(name: str, **more: Any) -> Spec:
    """An axis of the texts in a field, in the order of the rows.

    Not by a list of texts: Vega-Lite makes code of it, which not all texts survive.
    """
    sort = {"field": "order", "op": "min"}
    return {"field": name, "type": "nominal", "title": None, "sort": sort, **more}


def short_target(target: str) -> str:
    """Of a TVM target the processor, all of it if it names none."""
    words = target.split()
    named = [w.partition("=")[2] for w in words if w.startswith(("-mcpu=", "-arch="))]
    return named[0] if named else target


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


def thinned(rows: Sequence[Any], most: int = MOST_POINTS) -> list[Any]:
    """At most so many of the rows, evenly spread, the first among them."""
    step = max(1, math.ceil(len(rows) / most))
    return list(rows[::step])


def hover(*fields: str) -> list[Spec]:
    """A parameter `hover`: the one that the pointer is next to."""
    select = {"type": "point", "fields": list(fields), "on": "pointerover", "clear": "pointerout"}
    return [{"name": "hover", "select": select}]


def config() -> Spec:
    """What all pictures look like."""
    text = {"labelColor": variable("muted"), "titleColor": variable("muted")}
    return {
        "background": "transparent",
        "font": FONT,
        "padding": 2,
        "view": {"stroke": None},
        "axis": {
            **text,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "gridColor": variable("grid"),
            "domainColor": variable("grid"),
            "tickColor": variable("grid"),
            "labelLimit": 190,
            "titlePadding": 8,
        },
        # Pixels from an end of the axis within which a label would be cut off, centred at its tick.
        "axisX": {"labelFlush": 16},
        "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
        "legend": {
            "labelColor": variable("ink"),
            "titleColor": variable("muted"),
            "labelFontSize": 12,
            "orient": "top",
            "title": None,
            "symbolStrokeWidth": 0,
            "symbolOpacity": 1,
            "columnPadding": 14,
            "labelLimit": 130,
        },
        "text": {"color": variable("ink"), "fontSize": 12},
        "bar": {"cornerRadiusEnd": 2},
        "rule": {"color": variable("muted")},
        "title": {"color": variable("ink"), "fontSize": 15, "fontWeight": 600, "anchor": "start"},
    }


# ---- texts ---------------------------------------------------------------------------------------


def significant(value: float, digits: int = 3) -> str:
    """So many significant digits, never in scientific notation."""
    if not math.isfinite(value):
        return "–"
    before = math.floor(math.log10(abs(value))) + 1 if value else 1
    return f"{value:,.{max(0, digits - before)}f}"


def ms(seconds: float | None) -> str:
    return "–" if seconds is None or not math.isfinite(seconds) else significant(seconds * 1e3, 4)


def time_of(seconds: float) -> str:
    """With a unit that suits it."""
    if seconds < 1e-3:
        return f"{significant(seconds * 1e6)} µs"
    return f"{significant(seconds * 1e3)} ms" if seconds < 1 else f"{significant(seconds)} s"


def size_of(count: int | None) -> str:
    if count is None:
        return "–"
    for unit, bytes_ in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_:
            return f"{significant(count / bytes_)} {unit}"
    return f"{count} B"


def ratio(value: float) -> str:
    return f"{significant(value)}×"


def error_of(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def geomean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
