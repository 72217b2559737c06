"""What a log says about workloads that it does not hold: decisions to try, and times to expect.

Decisions come from the nearest tuned workload of the same algorithm whose decisions are valid here.
Times come from boosted trees on features of workload and algorithm, which learn the seconds of a
multiply-add from the best record of every task on the same target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from convtvm.errors import WorkloadError
from convtvm.records import TuningRecord
from convtvm.similarity import distance
from convtvm.task import TABLES, Task
from convtvm.workload import ConvWorkload

MIN_TASKS = 24  # a model of fewer tasks would be a guess
_MAX_DISTANCE = 6.0  # sizes that differ by 2**6 altogether, or another kernel and a little more

_ROUNDS = 200
_TREES = {
    "objective": "reg:squarederror",
    "max_depth": 4,
    "eta": 0.08,
    "min_child_weight": 2,
    "subsample": 0.8,
    "nthread": 1,
    "seed": 0,
}


def best_records(
    history: Iterable[TuningRecord], target: str, threads: int, layout: str, kind: str = "cpu"
) -> dict[tuple[str, str], TuningRecord]:
    """The fastest record of each (workload key, algorithm) on a target, by today's templates."""
    best: dict[tuple[str, str], TuningRecord] = {}
    for r in history:
        if (r.target, r.threads, r.layout) != (target, threads, layout) or not r.run_secs:
            continue
        algorithm = TABLES[kind].get(r.algorithm)
        if algorithm is None or r.template != algorithm.template.VERSION:
            continue
        key = (r.workload, r.algorithm)
        if key not in best or r.seconds < best[key].seconds:
            best[key] = r
    return best


def transferred(task: Task, records: Iterable[TuningRecord]) -> dict[str, int] | None:
    """The decisions of the nearest of `records` (one a workload) that are valid for `task`."""
    near = []
    for r in records:
        if (r.algorithm, r.template) == (task.algorithm_name, task.template_version):
            gap = distance(ConvWorkload.parse(r.workload), task.workload)
            if gap <= _MAX_DISTANCE:
                near.append((gap, r.workload, dict(r.decisions)))
    valid = (d for _, _, d in sorted(near, key=lambda n: n[:2]) if task.space.contains(d))
    return next(valid, None)


class TimeModel:
    """Seconds of a workload by an algorithm, learned from the best records of one target."""

    def __init__(self, best: Mapping[tuple[str, str], TuningRecord], kind: str = "cpu") -> None:
        import xgboost

        self._xgboost = xgboost
        self._table = TABLES[kind]
        self._known = sorted({name for _, name in best if name in self._table})
        rows, rates = [], []
        for (key, name), record in best.items():
            if name in self._table:
                w = ConvWorkload.parse(key)
                rows.append(self._features(w, name))
                rates.append(math.log(record.seconds / w.macs))
        data = xgboost.DMatrix(np.array(rows), label=np.array(rates))
        self._trees = xgboost.train(_TREES, data, num_boost_round=_ROUNDS)

    @classmethod
    def learn(
        cls, best: Mapping[tuple[str, str], TuningRecord], kind: str = "cpu"
    ) -> TimeModel | None:
        """The model of these records, None if they are fewer than MIN_TASKS."""
        return cls(best, kind) if len(best) >= MIN_TASKS else None

    def seconds(self, w: ConvWorkload, names: Sequence[str]) -> dict[str, float]:
        """Expected seconds by algorithm, for those of `names` that the log knows."""
        known = [name for name in names if name in self._known]
        if not known:
            return {}
        data = self._xgboost.DMatrix(np.array([self._features(w, name) for name in known]))
        rates = self._trees.predict(data)
        return {
            name: math.exp(float(rate)) * w.macs for name, rate in zip(known, rates, strict=True)
        }

    def _features(self, w: ConvWorkload, name: str) -> list[float]:
        algorithm: Any = self._table[name]
        sizes = (w.n, w.ic, w.oc, w.oh, w.ow, w.ih * w.iw, w.kh, w.kw, w.groups)
        moved = w.data_bytes + w.weight_bytes + w.out_bytes
        return [
            *(math.log2(size) for size in sizes),
            w.sh * w.sw,
            w.dh * w.dw,
            w.ph + w.pw,
            math.log2(w.macs),
            math.log2(algorithm.multiplications(w) / w.macs),
            math.log2(w.macs / moved),
            w.ic // w.groups,
            *(float(name == other) for other in self._known),
        ]


def parsable(history: Iterable[TuningRecord]) -> list[TuningRecord]:
    """Those records whose workload is one."""
    found = []
    for r in history:
        try:
            ConvWorkload.parse(r.workload)
        except WorkloadError:
            continue
        found.append(r)
    return found
