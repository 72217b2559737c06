"""What can be wrong with a tuning record besides its form. Imports TVM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from convtvm.errors import TargetError, WorkloadError
from convtvm.kernels.algorithms import Algorithm
from convtvm.kernels.task import TABLES, Task
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import resolve
from convtvm.problem.workload import BLOCKED_LAYOUTS, ENTRY_LAYOUTS, LAYOUTS, ConvWorkload


class Checker:
    """Checks records; makes every task, and so its space, once (some 20 ms)."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[Any, ...], Task | str] = {}

    def reason(self, record: TuningRecord) -> str:
        """Why `record` cannot be used, or should not be believed; empty if it is sound."""
        reason = stale(record)
        if reason:
            return reason
        if record.task_key not in self._tasks:
            self._tasks[record.task_key] = task_of(record)
        task = self._tasks[record.task_key]
        if isinstance(task, str):
            return task
        if not task.space.contains(record.decisions):
            return f"decisions {dict(record.decisions)} are not in the template's space"
        return _wrong_numbers(record, task.tolerance)


def stale(record: TuningRecord) -> str:
    """Why today's templates cannot use a record; empty if they can."""
    table = _table(record)
    algorithm = table.get(record.algorithm)
    if algorithm is None:
        return f"unknown algorithm {record.algorithm!r}, this version has {', '.join(table)}"
    today = int(algorithm.template.VERSION)
    if record.template != today:
        return f"stale: template version {record.template}, today's is {today}"
    return ""


def _table(record: TuningRecord) -> Mapping[str, Algorithm]:
    """The algorithms of the kind of device that the record was made on."""
    return TABLES["cuda" if record.target.startswith("cuda") else "cpu"]


def task_of(record: TuningRecord) -> Task | str:
    """The task of a record, or why there is none that would ever look for it."""
    try:
        w = ConvWorkload.parse(record.workload)
        target = resolve(record.target, record.threads)
    except (WorkloadError, TargetError) as error:
        return str(error)
    if w.key != record.workload:
        return f"workload {record.workload!r} is not written as its key, {w.key}"
    if target.name != record.target:
        return f"target {record.target!r} is not written as its name, {target.name!r}"
    known = (*LAYOUTS, *BLOCKED_LAYOUTS, *ENTRY_LAYOUTS)
    if record.layout not in known:
        return f"unknown layout {record.layout!r}, expected {', '.join(known)}"
    inapplicable = _table(record)[record.algorithm].inapplicable(w)
    if inapplicable:
        return f"{record.algorithm} cannot compute this workload: {inapplicable}"
    return Task(w, record.algorithm, target, record.layout)


def _wrong_numbers(record: TuningRecord, tolerance: float) -> str:
    error = record.max_error
    if error is not None and (type(error) not in (int, float) or not math.isfinite(error)):
        return f"max_error is {error!r}, expected a finite number"
    if record.run_secs and error is not None and error > tolerance:
        return f"max_error {error:.1e} is above {record.algorithm}'s limit {tolerance:.0e}"
    return ""
