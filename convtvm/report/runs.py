"""What logs hold, sorted for pictures: runs of one target, threads and layout, and their layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from convtvm.errors import WorkloadError
from convtvm.kernels.algorithms import Algorithm
from convtvm.kernels.task import TABLES, Task
from convtvm.logs import records
from convtvm.logs.checking import stale, task_of
from convtvm.logs.records import Standing, TuningRecord
from convtvm.problem.workload import ConvWorkload
from convtvm.report.labels import Labels


@dataclass(frozen=True)
class Layer:
    """The records of one workload in one run, in the order of the log."""

    workload: ConvWorkload
    label: str
    multiplicity: int
    made: Sequence[TuningRecord]

    @cached_property
    def standing(self) -> Standing:
        return Standing.of(self.made)

    @cached_property
    def measured(self) -> list[TuningRecord]:
        """One record for each candidate that works, its time comparable with the others'."""
        done = (r for r in records.judged(self.made) if r.run_secs)
        return [self.standing.compared(r) for r in done]

    @cached_property
    def best(self) -> dict[str, TuningRecord]:
        """The fastest candidate by each algorithm, the fastest algorithm first."""
        found: dict[str, TuningRecord] = {}
        for record in sorted(self.measured, key=lambda r: (r.seconds, repr(r.identity))):
            found.setdefault(record.algorithm, record)
        return found

    @property
    def table(self) -> dict[str, Algorithm]:
        return TABLES["cuda" if self.made[0].target.startswith("cuda") else "cpu"]

    @cached_property
    def chosen(self) -> TuningRecord | None:
        """What a plan without limits takes: nothing that gives up accuracy unasked."""
        return next((r for name, r in self.best.items() if not self.table[name].opt_in), None)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The task of each algorithm, where today's version still has it."""
        first = {r.algorithm: r for r in self.made}
        found = {name: task_of(record) for name, record in first.items()}
        return {name: task for name, task in found.items() if isinstance(task, Task)}

    @cached_property
    def defaults(self) -> dict[str, TuningRecord]:
        """The candidate of each algorithm that an untuned library has, where it was measured.

        A task of one candidate, as logs of winners have them, tells nothing of it.
        """
        found: dict[str, TuningRecord] = {}
        for name, task in self.tasks.items():
            own = [r for r in self.measured if r.algorithm == name]
            if len({r.identity for r in self.made if r.algorithm == name}) > 1:
                default = task.space.default
                found |= {r.algorithm: r for r in own if dict(r.decisions) == default}
        return found


@dataclass(frozen=True)
class Run:
    """The layers that were tuned for one target, number of threads and layout."""

    target: str
    threads: int
    layout: str
    network: str
    layers: Sequence[Layer]
    stale: int = 0

    @cached_property
    def made(self) -> list[TuningRecord]:
        return [r for layer in self.layers for r in layer.made]

    @cached_property
    def trials(self) -> list[TuningRecord]:
        """Without the second measurements in an exported library, which are no trials."""
        return [r for r in self.made if not r.confirmed]

    @cached_property
    def failures(self) -> list[TuningRecord]:
        return [r for r in self.made if not r.run_secs]

    @property
    def devices(self) -> list[str]:
        return sorted({r.device for r in self.made})

    @property
    def on_gpu(self) -> bool:
        return self.target.startswith("cuda")

    @property
    def versions(self) -> list[str]:
        """Of each package, those that made the records."""
        found: dict[str, set[str]] = {}
        for record in self.made:
            for name, version in record.versions.items():
                found.setdefault(str(name), set()).add(str(version))
        return [f"{name} {', '.join(sorted(versions))}" for name, versions in found.items()]


def runs_of(history: Iterable[TuningRecord]) -> list[Run]:
    """The runs of a log, those with the most records first; repeated lines count once, and records
    of workloads or algorithms that today's version does not know, or of older templates, only in
    `stale`."""
    groups: dict[tuple[Any, ...], list[TuningRecord]] = {}
    for record in {r.to_line(): r for r in history}.values():
        groups.setdefault((record.target, record.threads, record.layout), []).append(record)
    found = [_run(key[0], key[1], key[2], made) for key, made in groups.items()]
    return sorted(found, key=lambda run: -len(run.made))


def _run(target: str, threads: int, layout: str, made: Sequence[TuningRecord]) -> Run:
    by_workload: dict[str, list[TuningRecord]] = {}
    left_out = 0
    workloads: dict[str, ConvWorkload] = {}
    for record in made:
        workload = _workload(record, workloads)
        if workload is None or stale(record):
            left_out += 1
        else:
            by_workload.setdefault(workload.key, []).append(record)
    labels = Labels.of(workloads[key] for key in by_workload)
    layers = [
        Layer(workloads[key], text, labels.multiplicity[key], by_workload[key])
        for key, text in labels.texts.items()
    ]
    return Run(target, threads, layout, labels.network, layers, left_out)


def _workload(record: TuningRecord, known: dict[str, ConvWorkload]) -> ConvWorkload | None:
    if record.workload not in known:
        try:
            workload = ConvWorkload.parse(record.workload)
        except WorkloadError:
            return None
        if workload.key != record.workload:
            return None
        known[record.workload] = workload
    return known[record.workload]
