"""What a log knows of similar tasks: decisions to try first, and samples for the cost model."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from convtvm.errors import ConvtvmError
from convtvm.kernels.task import Task
from convtvm.logs import records
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import is_near
from convtvm.problem.similarity import distance
from convtvm.problem.workload import ConvWorkload

_TWINS = 3  # fastest decisions of the same workload elsewhere that are tried
_SEEDS = 4  # nearest shapes whose best decisions are tried
_SHAPES = 12  # nearest shapes whose trials the model learns

Sample = tuple[Mapping[str, int], float]
_Place = tuple[str, int]  # target and number of threads
_Shapes = dict[ConvWorkload, list[TuningRecord]]


class Neighbours:
    """Records by algorithm and layout, whatever their shape, target and number of threads."""

    def __init__(self, known: Iterable[TuningRecord]) -> None:
        self._records: dict[tuple[str, str], _Shapes] = {}
        for record in known:
            self.note(record)

    def note(self, record: TuningRecord) -> None:
        """Add a record; one of a workload that cannot be read is left out."""
        try:
            workload = ConvWorkload.parse(record.workload)
        except ConvtvmError:
            return
        shapes = self._records.setdefault((record.algorithm, record.layout), {})
        shapes.setdefault(workload, []).append(record)

    def twins(self, task: Task) -> list[TuningRecord]:
        """The fastest candidates of the same workload and template, fastest first, by the place
        that is most like this one: another number of threads, else a CPU with the same vectors."""
        places: dict[_Place, list[TuningRecord]] = {}
        for record in self._shapes(task).get(task.workload, ()):
            place = (record.target, record.threads)
            own = place == (task.target.name, task.target.threads)
            current = record.template == task.template_version
            made = bool(record.run_secs) and record.threads > 0
            if made and current and not own and is_near(record.target, task.target):
                places.setdefault(place, []).append(record)
        if not places:
            return []

        def gap(place: _Place) -> tuple[bool, float, _Place]:
            target, threads = place
            return target != task.target.name, abs(math.log2(threads / task.target.threads)), place

        found = places[min(places, key=gap)]
        best = records.best(found)
        ranked = sorted(records.judged(found), key=lambda r: (r != best, r.seconds))
        return ranked[:_TWINS]

    def seeds(self, task: Task) -> list[Mapping[str, int]]:
        """Decisions to try before any search, each once: those of `twins`, then the best of the
        nearest other shapes on the same target, nearest first."""
        made = self.twins(task)
        for _, found in self._nearest(task, {task.workload})[:_SEEDS]:
            best = records.best(self._current(found, task))
            if best is not None:
                made.append(best)
        seeds: dict[tuple[tuple[str, int], ...], Mapping[str, int]] = {}
        for record in made:
            seeds.setdefault(tuple(sorted(record.decisions.items())), record.decisions)
        return list(seeds.values())

    def samples(
        self, task: Task, without: Collection[ConvWorkload]
    ) -> Iterator[tuple[Task, list[Sample]]]:
        """(task, its trials) of the nearest other shapes with the same number of threads, and the
        same knobs: those of another dtype may have others."""
        for workload, made in self._nearest(task, without)[:_SHAPES]:
            other = replace(task, workload=workload)
            if set(other.space.knobs) != set(task.space.knobs):
                continue
            trials = records.judged(records.usable(made, other))
            if trials:
                yield other, [(r.decisions, r.seconds) for r in trials]

    def _current(self, made: Iterable[TuningRecord], task: Task) -> list[TuningRecord]:
        """Those of today's template; those of the same number of threads if there are any."""
        found = [r for r in made if r.template == task.template_version]
        return [r for r in found if r.threads == task.target.threads] or found

    def _shapes(self, task: Task) -> _Shapes:
        return self._records.get((task.algorithm_name, task.layout), {})

    def _nearest(
        self, task: Task, without: Collection[ConvWorkload]
    ) -> list[tuple[ConvWorkload, list[TuningRecord]]]:
        """Other shapes with their records on the same target, nearest first."""
        found = []
        for workload, made in self._shapes(task).items():
            own = [r for r in made if r.target == task.target.name]
            if own and workload not in without:
                found.append((workload, own))
        return sorted(found, key=lambda item: distance(item[0], task.workload))
