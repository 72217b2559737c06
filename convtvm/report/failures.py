"""Which candidates failed, and of what."""

from __future__ import annotations

from collections import Counter

from convtvm.report.picture import (
    Figure,
    Table,
    chart,
    family,
    family_scale,
    in_order,
    inline,
    plural,
)
from convtvm.report.runs import Run

_SHOWN = 160  # characters of a message

_WORDS = {
    "instantiate": "the schedule cannot be made",
    "compile": "it does not compile",
    "build_timeout": "compiling took too long",
    "wrong_answer": "the answer is wrong",
    "run_timeout": "running took too long",
    "crash": "the process died",
    "runtime": "it failed while it ran",
}


def figures(run: Run) -> list[Figure]:
    """Failures by kind, each algorithm in its colour; none where nothing failed."""
    failed = run.failures
    if not failed:
        return []
    counts = Counter((_kind(r.error), r.algorithm) for r in failed)
    kinds = Counter(kind for kind, _ in counts.elements())
    families: Counter[tuple[str, str]] = Counter()
    for (kind, algorithm), count in counts.items():
        families[kind, family(algorithm)] += count
    rows = [
        {"kind": kind, "family": name, "count": count}
        for (kind, name), count in sorted(families.items(), key=lambda item: -kinds[item[0][0]])
    ]
    spec = chart(
        "Failures by kind",
        26 * len(kinds),
        data=inline(rows),
        mark={"type": "bar", "height": 15},
        encoding={
            "y": in_order("kind"),
            "x": {"field": "count", "type": "quantitative", "title": "candidates"}
            | {"axis": {"tickMinStep": 1, "tickCount": 6}},
            "color": {"field": "family", "type": "nominal"}
            | {"scale": family_scale(name for _, name in families)},
            "tooltip": [{"field": f} for f in ("kind", "family", "count")],
        },
    )
    examples = {(_kind(r.error), r.algorithm): str(r.error.get("message", "")) for r in failed}
    table = Table(
        ["kind", "algorithm", ">candidates", "an example"],
        [
            [kind, name, f"{count:,}", examples[kind, name][:_SHOWN]]
            for (kind, name), count in sorted(counts.items(), key=lambda item: -item[1])
        ],
    )
    share = 100 * len(failed) / len(run.made)
    most, count = kinds.most_common(1)[0]
    sentence = (
        f"{plural(len(failed), 'candidate')} of {len(run.made):,} failed ({share:.1f} %); each "
        f"cost only itself. Most frequent: {most}{_meaning(most)}, {count:,} times."
    )
    return [Figure("Failures", sentence, spec, table)]


def _kind(error: object) -> str:
    return str(error.get("kind", "unknown")) if isinstance(error, dict) else "unknown"


def _meaning(kind: str) -> str:
    return f" ({_WORDS[kind]})" if kind in _WORDS else ""
