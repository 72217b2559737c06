"""The only door to vl-convert: Vega's scripts for a page, and pictures as files."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from convtvm.errors import EnvironmentProblem
from convtvm.report.picture import DARK, LIGHT, Figure, Spec, config

_WIDTH = 820  # pixels of a picture in a file
_SCALE = 2.0  # pixels of a PNG for each of these


def _convert() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise EnvironmentProblem(
            f"reports and plots need the package vl-convert-python ({error}): "
            "pip install 'convtvm[report]'"
        ) from None
    return vl_convert


def check_available() -> None:
    """Raise EnvironmentProblem if the package that draws is missing."""
    _convert()


@cache
def scripts() -> str:
    """Vega, Vega-Lite and vega-embed as one script for a browser; it needs no network."""
    return str(_convert().javascript_bundle())


def svg(figure: Figure, title: str, subtitle: Sequence[str]) -> str:
    """The picture alone, which follows its reader's light or dark theme."""
    made = str(_convert().vegalite_to_svg(_standing_alone(figure, title, subtitle)))
    rules = [
        f":root{{{_variables(LIGHT)}}}",
        f"@media(prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}",
    ]
    start = made.index(">") + 1
    return f"{made[:start]}<style>{''.join(rules)}</style>{made[start:]}"


def png(figure: Figure, title: str, subtitle: Sequence[str]) -> bytes:
    """The picture alone, on white."""
    text = json.dumps(_standing_alone(figure, title, subtitle))
    for name, colour in LIGHT.items():
        text = text.replace(f"var(--{name})", colour)
    spec = json.loads(text)
    spec["background"] = LIGHT["paper"]
    return bytes(_convert().vegalite_to_png(spec, scale=_SCALE))


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def _standing_alone(figure: Figure, title: str, subtitle: Sequence[str]) -> Spec:
    spec = copy.deepcopy(figure.spec)
    heading = {
        "text": title,
        "subtitle": list(subtitle),
        "subtitleColor": "var(--muted)",
        "offset": 14,
    }
    return {
        **spec,
        "width": _WIDTH,
        "title": {**heading, "anchor": "start", "frame": "group"},
        "config": {**config(), "background": "var(--paper)", "padding": 18},
    }
