"""The cost model: XGBoost on shape, knobs and derived features, and what it expects of a task."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xgboost
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.cost_model import PyCostModel

from convtvm.kernels.task import TABLES, Task, decisions_of
from convtvm.problem.workload import ConvWorkload

WARM_UP = 8  # trials before the model is believed


def median_seconds(result: Any) -> float:
    """Seconds of a MetaSchedule RunnerResult, infinite for a failure."""
    return statistics.median(float(s) for s in result.run_secs) if result.run_secs else math.inf


def _matrix(rows: np.ndarray, label: np.ndarray | None = None) -> Any:
    """Of one thread: XGBoost would wake one for each core, which builders have, for a few rows."""
    return xgboost.DMatrix(rows, label=label, nthread=1)


_RELATIVE = "relative estimate"  # the last column
_SHAPE = ("n", "ic", "oc", "oh", "ow", "kh", "kw", "sh", "sw", "groups", "flops")


def workload_features(w: ConvWorkload) -> list[float]:
    """What a cost model needs of the shape, so that one model serves many workloads; the
    logarithms of `_SHAPE`."""
    return [math.log2(getattr(w, size)) for size in _SHAPE]


class SpeedModel:
    """XGBoost on shape, knobs and derived features; predicts speed relative to the task's best.

    One model serves all tasks of a template, so that what one shape or variant of an algorithm
    taught helps the next. `outlook` is that of all tasks together.
    """

    def __init__(self, rounds: int = 60, seed: int = 0) -> None:
        self.rounds, self.seed = rounds, seed
        self._rows: list[list[float]] = []
        self._seconds: list[float] = []  # infinite for a failure
        self._tasks: list[tuple[Any, ...]] = []
        self._known: dict[tuple[Any, ...], dict[tuple[int, ...], list[float]]] = {}
        self._least: dict[tuple[Any, ...], float] = {}  # by task, of its points' estimates
        self._names: set[tuple[str, ...]] = set()  # of the columns behind the shape's
        self._booster: Any = None
        self._is_fitted = True
        self.outlook = Outlook()

    def learn(self, task: Task, samples: Sequence[tuple[Mapping[str, int], float]]) -> None:
        """Add measured (decisions, seconds) of `task`."""
        for decisions, seconds in samples:
            self._rows.extend(self._features(task, [decisions]))
            self._seconds.append(seconds)
            self._tasks.append(task.key)
            self._is_fitted = False

    @property
    def learned(self) -> int:
        """How many samples it has learned from; scores change only with it."""
        return len(self._rows)

    def _fit(self) -> None:
        """Fit again if there is more to learn from than before: only when somebody asks."""
        if self._is_fitted:
            return
        self._is_fitted = True
        # A task's only trial is its fastest, whatever it is worth: nothing to learn from.
        trials = Counter(self._tasks)
        telling = [i for i, task in enumerate(self._tasks) if trials[task] > 1]
        seconds = np.array(self._seconds)[telling]
        if len(telling) < WARM_UP or not np.isfinite(seconds).any():
            return
        fastest: dict[tuple[Any, ...], float] = {}
        for task, value in zip(self._tasks, self._seconds, strict=True):
            fastest[task] = min(value, fastest.get(task, math.inf))
        best = np.array([fastest[self._tasks[i]] for i in telling])
        speed = np.zeros_like(seconds)
        np.divide(best, seconds, out=speed, where=np.isfinite(seconds))
        settings = {
            "objective": "reg:squarederror",
            "max_depth": 6,
            "eta": 0.2,
            "nthread": 1,
            "seed": self.seed,
        }
        rows = self._columns([self._tasks[i] for i in telling], [self._rows[i] for i in telling])
        matrix = _matrix(rows, speed)
        self._booster = xgboost.train(settings, matrix, num_boost_round=self.rounds)

    @property
    def is_warm(self) -> bool:
        """Whether scores are predictions."""
        self._fit()
        return self._booster is not None

    def score(self, task: Task, points: Sequence[Mapping[str, int]]) -> np.ndarray:
        """Predicted relative speed of each point; the template's own estimate while little is
        known."""
        if not self.is_warm:
            return np.array([1 / (1 + task.space.estimate(d)) for d in points])
        features = self._features(task, points)
        rows = self._columns([task.key] * len(features), features)
        predicted: np.ndarray = self._booster.predict(_matrix(rows))
        return predicted.astype("float64")

    def influence(self) -> dict[str, float]:
        """By knob and derived feature, how far it moves the predicted speed on average: the mean
        magnitude of its SHAP values over the samples, as a share of the task's best speed. Empty
        while little is known, and where the tasks have different knobs.
        """
        if not self.is_warm or len(self._names) != 1:
            return {}
        (names,) = self._names
        rows = _matrix(self._columns(self._tasks, self._rows))
        shares = np.abs(self._booster.predict(rows, pred_contribs=True)).mean(axis=0)
        found = dict(zip(names, map(float, shares[1 + len(_SHAPE) :]), strict=False))
        return {name: share for name, share in found.items() if share > 0}

    def _columns(self, tasks: Sequence[tuple[Any, ...]], rows: Sequence[list[float]]) -> np.ndarray:
        """Rows as the booster takes them: behind each the least estimate of its task over its own,
        since estimates grow with the layer and do not compare across tasks."""
        made = np.array(rows, dtype=np.float32)
        least = np.array([self._least[task] for task in tasks], dtype=np.float32)
        whole = np.where(made[:, -1] > 0, made[:, -1], 1.0)
        return np.column_stack([made, least / whole])

    def _features(self, task: Task, points: Sequence[Mapping[str, int]]) -> list[list[float]]:
        """The rows of these points, each computed once: a run asks for the same ones after every
        batch."""
        known = self._known.setdefault(task.key, {})
        variant = list(TABLES[task.target.kind]).index(task.algorithm_name)
        shape = [variant, *workload_features(task.workload)]
        found = []
        for decisions in points:
            point = tuple(decisions[name] for name in task.space.knobs)
            row = known.get(point)
            if row is None:
                space = task.space
                quantities = space.features(decisions)
                derived = [*quantities.values(), space.idling(decisions)]
                row = [*shape, *map(float, point), *derived, space.estimate(decisions)]
                self._names.add((*space.knobs, *quantities, "idling", "estimate", _RELATIVE))
                known[point] = row
                self._least[task.key] = min(row[-1], self._least.get(task.key, math.inf))
            found.append(row)
        return found


@derived_object
class KnobCostModel(PyCostModel):  # type: ignore[misc]
    """A SpeedModel as MetaSchedule's cost model of one task."""

    def __init__(self, task: Task, speed: SpeedModel) -> None:
        super().__init__()
        self.task, self.speed = task, speed

    def update(self, context: Any, candidates: list[Any], results: list[Any]) -> None:
        pairs = zip(candidates, results, strict=True)
        self.speed.learn(
            self.task, [(decisions_of(c.sch.mod), median_seconds(r)) for c, r in pairs]
        )

    def predict(self, context: Any, candidates: list[Any]) -> np.ndarray:
        return self.speed.score(self.task, [decisions_of(c.sch.mod) for c in candidates])

    def load(self, path: str) -> None:
        raise NotImplementedError("the model is rebuilt from the tuning log")

    def save(self, path: str) -> None:
        raise NotImplementedError("the tuning log is the model's only store")


class Outlook:
    """What one task's candidates turned out to be, against what the model had said of them.

    Until some are known, those of `others` tell how far the model is to be trusted.
    """

    _UNKNOWN, _WEIGHT = 0.4, 2  # error of a prediction before any was checked; trials it counts for
    _REMEMBERED = 32

    def __init__(self, others: Outlook | None = None) -> None:
        self._errors: list[float] = []
        self._others = others

    def learn(self, predicted: float, speed: float) -> None:
        self._errors.append(speed - predicted)
        if self._others is not None:
            self._others.learn(predicted, speed)

    @property
    def spread(self) -> float:
        """The error to expect of a prediction."""
        errors = np.array(self._errors[-self._REMEMBERED :])
        guess = self._UNKNOWN if self._others is None else self._others.spread
        weight = self._WEIGHT
        return math.sqrt((np.sum(errors**2) + weight * guess**2) / (len(errors) + weight))

    def expected_best(self, scores: np.ndarray, threshold: float) -> float:
        """By how much the fastest of candidates with these scores is expected to exceed a speed.

        Each is taken as normal around its score, corrected by the latest errors, with their spread.
        """
        if not len(scores):
            return 0.0
        errors, spread = self._errors[-self._REMEMBERED :], self.spread
        centres = scores + (np.mean(errors) if errors else 0.0)
        high = max(threshold, float(centres.max())) + 4 * spread
        grid = np.linspace(threshold, high, 65)
        z = (grid[:, None] - centres[None, :]) / (spread * math.sqrt(2))
        below = 0.5 * (1 + _erf(z))
        return float((1 - below.prod(axis=1)).mean() * (high - threshold))


_erf = np.vectorize(math.erf, otypes=[float])
