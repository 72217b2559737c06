"""Times of other machines as the one at hand would have them, by what was measured on both."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from convtvm.logs.records import TuningRecord

_FEWEST = 3  # tasks that both have, for a factor that says something

_Key = tuple[str, str, int, str]


def as_here(history: Iterable[TuningRecord], target: str) -> list[TuningRecord]:
    """The records, those of other targets by the factor that their machine's best times differ from
    those of `target`: the median over the tasks that both have, 1 where these are too few."""
    made = list(history)
    best: dict[str, dict[_Key, float]] = defaultdict(dict)
    for record in made:
        of_one, key = best[record.target], _key(record)
        of_one[key] = min(of_one.get(key, record.seconds), record.seconds)
    factors = {other: _factor(best[target], best[other]) for other in best}
    return [_scaled(record, factors[record.target]) for record in made]


def _key(record: TuningRecord) -> _Key:
    return record.workload, record.algorithm, record.threads, record.layout


def _factor(here: dict[_Key, float], there: dict[_Key, float]) -> float:
    ratios = [seconds / there[key] for key, seconds in here.items() if key in there]
    known = [ratio for ratio in ratios if 0 < ratio < float("inf")]
    return statistics.median(known) if len(known) >= _FEWEST else 1.0


def _scaled(record: TuningRecord, factor: float) -> TuningRecord:
    if factor == 1 or not record.run_secs:
        return record
    return replace(record, run_secs=[factor * secs for secs in record.run_secs])
