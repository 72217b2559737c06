"""Which knobs mattered: how far each moves the speed that the tuner's cost model predicts."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from convtvm.kernels.task import Task
from convtvm.logs.records import TuningRecord
from convtvm.report.picture import Figure, Table, chart, family, in_order, inline, plural, variable
from convtvm.report.runs import Run
from convtvm.tuning.speed import SpeedModel

_LEAST = 32  # trials of a template, below which its model says more of chance than of knobs
_SHOWN = 12


def figures(run: Run) -> list[Figure]:
    """One for each template with enough trials, the one with the most first."""
    known: dict[ModuleType, list[tuple[Task, list[TuningRecord]]]] = {}
    for layer in run.layers:
        for name, task in layer.tasks.items():
            own = [r for r in layer.made if r.algorithm == name and not r.confirmed]
            sound = [r for r in own if task.space.contains(r.decisions)]
            if len(sound) > 1:
                known.setdefault(task.algorithm.template, []).append((task, sound))
    order = sorted(known.values(), key=lambda made: -sum(len(own) for _, own in made))
    found = []
    for made in order:
        count = sum(len(own) for _, own in made)
        model = SpeedModel()
        for task, own in made:
            model.learn(task, [(r.decisions, r.seconds) for r in own])
        influence = model.influence() if count >= _LEAST else {}
        if influence:
            knobs = {name for task, _ in made for name in task.space.knobs}
            found.append(_figure(made[0][0], count, influence, knobs))
    return found


def _figure(task: Task, count: int, influence: Mapping[str, float], knobs: set[str]) -> Figure:
    name = _name(task.algorithm_name)
    order = sorted(influence.items(), key=lambda item: -item[1])
    rows = [
        {"name": n, "points": 100 * value, "kind": "knob" if n in knobs else "derived"}
        for n, value in order[:_SHOWN]
    ]
    spec = chart(
        f"Influence of the knobs of {name}",
        20 * len(rows),
        data=inline(rows),
        mark={"type": "bar", "height": 12},
        encoding={
            "y": in_order("name"),
            "x": {"field": "points", "type": "quantitative", "title": "± % of the best speed"}
            | {"axis": {"tickCount": 4}},
            "color": {
                "condition": {"test": "datum.kind == 'knob'", "value": variable("accent")},
                "value": variable("peer"),
            },
            "tooltip": [
                {"field": "name"},
                {"field": "kind"},
                {"field": "points", "title": "± % of the best speed", "format": ".2f"},
            ],
        },
    )
    table = Table(
        ["feature", "kind", ">± % of the best speed"],
        [[n, "knob" if n in knobs else "derived", f"{100 * value:.2f}"] for n, value in order],
    )
    first = next((n for n, _ in order if n in knobs), "")
    sentence = (
        f"By the cost model of {plural(count, 'trial')}, how far each knob (blue) and each "
        f"quantity that the template derives from knobs (grey) moves a candidate's speed on average"
        f"{f'; of the knobs, {first} most' if first else ''}."
    )
    return Figure(name, sentence, spec, table, small=True)


def _name(algorithm: str) -> str:
    """Of a template: its family's, whose variants share it; direct convolution has three."""
    name = algorithm.removesuffix(":inplace").removesuffix(":tf32")
    return name if family(name) == "direct" else family(name)
