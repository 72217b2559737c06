"""A model's operators by time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convtvm.dispatch import load_model
from convtvm.kernels.algorithms import ALGORITHMS
from convtvm.machine.cpu import device_name
from convtvm.report.bench import Operator, Profile
from convtvm.report.picture import (
    MOST_ROWS,
    Figure,
    Spec,
    Table,
    chart,
    family,
    family_scale,
    in_order,
    inline,
    ms,
    plural,
    time_of,
)

_SHOWN = 30
_REPEAT = 20
_LONGEST = 17  # characters of a name, so that a phone has room for the bars


def profile(path: str | Path) -> Profile:
    """The operators of the model library at `path`, timed here on random inputs. Raises
    LibraryError if it cannot run here."""
    model = load_model(path)
    steps = model.profile(model.random_inputs(), repeat=_REPEAT)
    operators = [Operator(step.label, step.about, step.seconds) for step in steps]
    return Profile(Path(path).name, model.target, model.threads, operators, device=device_name())


def figures(found: Profile) -> list[Figure]:
    """The operators that take most, by algorithm in colour."""
    order = sorted(found.operators, key=lambda o: -o.seconds)
    total = sum(o.seconds for o in order)
    if not total:
        return []
    rows = [
        {
            "place": f"{number}. {_named(o.label)}",
            "label": o.label,
            "ms": o.seconds * 1e3,
            "share": o.seconds / total,
            "by": _algorithm(o) or "no convolution",
            "kind": family(_algorithm(o)) or "peer",
            "text": f"{100 * o.seconds / total:.1f} %",
            "about": o.about,
        }
        for number, o in enumerate(order[:_SHOWN], start=1)
    ]
    so_far, lines = 0.0, []
    for o in order[:MOST_ROWS]:
        so_far += o.seconds
        share, sum_ = 100 * o.seconds / total, 100 * so_far / total
        lines.append([o.label, o.about or "–", ms(o.seconds), f"{share:.1f}", f"{sum_:.1f}"])
    convolutions = [o for o in order if _algorithm(o)]
    share = 100 * sum(o.seconds for o in convolutions) / total
    shown = f"the {_SHOWN} longest of {len(order)}" if len(order) > _SHOWN else f"all {len(order)}"
    sentence = (
        f"{found.model} on {plural(found.threads, 'thread')}: {shown} operators, "
        f"{time_of(total)} in all, of which convolutions take {share:.0f} %."
    )
    table = Table(["operator", "computes", ">ms", ">%", ">% so far"], lines)
    return [Figure("Operators by time", sentence, _bars(rows), table)]


def _named(label: str) -> str:
    """The kind and the name of an operator without its shape and attributes; of a long name the
    end, since names of one network begin alike."""
    text = " ".join(label.split()[:2])
    return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"


def _algorithm(operator: Operator) -> str:
    """The algorithm that the words about an operator name; empty if they name none."""
    words = operator.about.replace(",", " ").split()
    return next((word for word in words if word in ALGORITHMS), "")


def _bars(rows: Sequence[dict[str, object]]) -> Spec:
    y = in_order("place", axis={"labelLimit": 190})
    x: Spec = {"field": "ms", "type": "quantitative", "title": "ms", "axis": {"tickCount": 8}}
    x["scale"] = {"domain": [0, 1.4 * max(float(str(r["ms"])) for r in rows)], "nice": False}
    colour: Spec = {"field": "kind", "type": "nominal", "legend": {"labelExpr": _PEER}}
    colour |= {"scale": family_scale(str(r["kind"]) for r in rows)}
    bars = {
        "mark": {"type": "bar", "height": 13},
        "encoding": {
            "y": y,
            "x": x,
            "color": colour,
            "tooltip": [
                {"field": "label", "title": "operator"},
                {"field": "by", "title": "by"},
                {"field": "about", "title": "computes"},
                {"field": "ms", "format": ".4~g"},
                {"field": "share", "format": ".1%"},
            ],
        },
    }
    text: Spec = {"mark": {"type": "text", "align": "left", "dx": 5, "fontSize": 11}}
    text["encoding"] = {"y": y, "x": x, "text": {"field": "text"}}
    return chart("Operators by time", 20 * len(rows), data=inline(rows), layer=[bars, text])


_PEER = "datum.label == 'peer' ? 'others' : datum.label"
