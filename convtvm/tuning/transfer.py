"""What a log knows of similar shapes: decisions to try first, and samples for the cost model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from convtvm import records
from convtvm.errors import ConvtvmError
from convtvm.records import TuningRecord
from convtvm.similarity import distance
from convtvm.task import Task
from convtvm.workload import ConvWorkload

_SEEDS = 4  # nearest shapes whose best decisions are tried
_SHAPES = 12  # nearest shapes whose trials the model learns

Sample = tuple[Mapping[str, int], float]
_Key = tuple[str, str, str]


class Neighbours:
    """Records by algorithm, target and layout, whatever their shape and number of threads."""

    def __init__(self, known: Iterable[TuningRecord]) -> None:
        self._records: dict[_Key, dict[ConvWorkload, list[TuningRecord]]] = {}
        for record in known:
            self.note(record)

    def note(self, record: TuningRecord) -> None:
        """Add a record; one of a workload that cannot be read is left out."""
        try:
            workload = ConvWorkload.parse(record.workload)
        except ConvtvmError:
            return
        shapes = self._records.setdefault((record.algorithm, record.target, record.layout), {})
        shapes.setdefault(workload, []).append(record)

    def seeds(self, task: Task) -> list[Mapping[str, int]]:
        """The best decisions of the nearest other shapes, nearest first, each once."""
        found: dict[tuple[tuple[str, int], ...], Mapping[str, int]] = {}
        for workload, made in self._nearest(task, {task.workload})[:_SEEDS]:
            best = records.best(self._current(made, task))
            if best is not None and workload != task.workload:
                found.setdefault(tuple(sorted(best.decisions.items())), best.decisions)
        return list(found.values())

    def samples(
        self, task: Task, without: Collection[ConvWorkload]
    ) -> Iterator[tuple[Task, list[Sample]]]:
        """(task, its trials) of the nearest other shapes with the same number of threads."""
        for workload, made in self._nearest(task, without)[:_SHAPES]:
            other = replace(task, workload=workload)
            trials = records.judged(records.usable(made, other))
            if trials:
                yield other, [(r.decisions, r.seconds) for r in trials]

    def _current(self, made: Iterable[TuningRecord], task: Task) -> list[TuningRecord]:
        """Those of today's template; those of the same number of threads if there are any."""
        found = [r for r in made if r.template == task.template_version]
        return [r for r in found if r.threads == task.target.threads] or found

    def _nearest(
        self, task: Task, without: Collection[ConvWorkload]
    ) -> list[tuple[ConvWorkload, list[TuningRecord]]]:
        shapes = self._records.get((task.algorithm_name, task.target.name, task.layout), {})
        others = [(w, made) for w, made in shapes.items() if w not in without]
        return sorted(others, key=lambda item: distance(item[0], task.workload))
