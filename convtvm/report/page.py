"""One self-contained page: what runs in it is what its policy names by checksum, and nothing of it
comes from a network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources

from convtvm.errors import encodable
from convtvm.report import rendering
from convtvm.report.picture import DARK, LIGHT, MOST_ROWS, Figure, Table, config


@dataclass(frozen=True)
class Tile:
    """One number that sums something up, and what it is."""

    value: str
    about: str


@dataclass(frozen=True)
class Group:
    """Figures under one heading; `small` ones that follow each other share rows."""

    title: str
    figures: Sequence[Figure]
    sentence: str = ""


@dataclass(frozen=True)
class Section:
    """A run, a library, a comparison or a model: facts, numbers that sum it up, and pictures."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    tiles: Sequence[Tile] = ()
    groups: Sequence[Group] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def page(title: str, subtitle: str, sections: Sequence[Section], footer: str) -> str:
    """The HTML of a report. All texts are escaped."""
    script = f"{rendering.scripts()}\n{_asset('page.js')}"
    digest = base64.b64encode(hashlib.sha256(script.encode("utf8")).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    numbered = [(f"s{number}", section) for number, section in enumerate(sections, start=1)]
    head = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title><style>{_colours()}{_asset('page.css')}</style></head>",
    ]
    body = [
        f"<body><header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>{_contents(numbered)}",
        "<noscript><p>The pictures need JavaScript; the tables do not.</p></noscript></header>",
        "<main>",
        *(_section(name, section) for name, section in numbered),
        f"</main><footer>{escape(footer)}</footer>",
        _data("config", config()),
        f'<script type="module">{script}</script></body></html>\n',
    ]
    return encodable("".join(head + body))


def _asset(name: str) -> str:
    return resources.files("convtvm.report").joinpath("assets", name).read_text("utf8")


def _colours() -> str:
    def rule(colours: dict[str, str]) -> str:
        return ":root{" + "".join(f"--{name}:{value};" for name, value in colours.items()) + "}"

    # On paper always the light ones.
    return f"{rule(LIGHT)}@media screen and (prefers-color-scheme:dark){{{rule(DARK)}}}"


def _contents(sections: Iterable[tuple[str, Section]]) -> str:
    links = [f'<a href="#{name}">{escape(section.title)}</a>' for name, section in sections]
    return f"<nav>{''.join(links)}</nav>" if len(links) > 1 else ""


def _section(name: str, section: Section) -> str:
    parts = [f'<section id="{name}"><h2>{escape(section.title)}</h2>']
    if section.facts:
        pairs = (f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in section.facts)
        parts.append(f'<dl class="facts">{"".join(pairs)}</dl>')
    if section.tiles:
        tiles = (
            f"<li><strong>{escape(tile.value)}</strong><span>{escape(tile.about)}</span></li>"
            for tile in section.tiles
        )
        parts.append(f'<ul class="tiles">{"".join(tiles)}</ul>')
    parts += [f'<p class="note">{escape(note)}</p>' for note in section.notes]
    for number, group in enumerate(section.groups, start=1):
        parts.append(_group(f"{name}g{number}", group))
    return "".join([*parts, "</section>"])


def _group(name: str, group: Group) -> str:
    parts = []
    if group.title:
        sentence = f"<p>{escape(group.sentence)}</p>" if group.sentence else ""
        parts.append(f'<div class="group"><h3>{escape(group.title)}</h3>{sentence}</div>')
    parts.append('<div class="figures">')
    for number, figure in enumerate(group.figures, start=1):
        parts.append(_figure(f"{name}f{number}", figure, "h4" if group.title else "h3"))
    return "".join([*parts, "</div>"])


def _figure(name: str, figure: Figure, heading: str) -> str:
    small = ' class="small"' if figure.small else ""
    return (
        f'<figure id="{name}"{small} aria-labelledby="{name}h">'
        f'<figcaption><{heading} id="{name}h">{escape(figure.title)}</{heading}>'
        f"<p>{escape(figure.sentence)}</p></figcaption>"
        f'<div class="chart" data-chart="{name}d"></div>{_data(f"{name}d", figure.spec)}'
        f"{_table(figure.title, figure.table)}</figure>"
    )


def _data(name: str, content: object) -> str:
    """JSON inside HTML: `<` would end or open an element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _table(title: str, table: Table) -> str:
    right = [column.startswith(">") for column in table.columns]

    def cells(kind: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{kind}{' class=n' if is_number else ''}>{escape(text)}</{kind}>"
            for text, is_number in zip(texts, right, strict=True)
        )

    head = cells("th", [column.removeprefix(">") for column in table.columns])
    rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows[:MOST_ROWS])
    left = len(table.rows) - MOST_ROWS
    more = f"<p>The first {MOST_ROWS}; {left:,} more are in the log.</p>" if left > 0 else ""
    return (
        f"<details><summary>The numbers</summary>{more}"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}, numbers">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
