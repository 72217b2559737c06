"""Search over a template's decisions: MetaSchedule strategies and an XGBoost cost model on knobs.

A candidate is the task's carrier function with one annotation per knob on its root block.
MetaSchedule samples, mutates and compares these annotated functions in microseconds; the schedule
itself is applied by the builder, in the child process that compiles it.
"""

from __future__ import annotations

import logging
import math
import random
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import xgboost
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule import _ffi_api
from tvm.s_tir.meta_schedule.arg_info import ArgInfo
from tvm.s_tir.meta_schedule.cost_model import PyCostModel
from tvm.s_tir.meta_schedule.logging import get_logging_func
from tvm.s_tir.meta_schedule.mutator import PyMutator
from tvm.s_tir.meta_schedule.postproc import PyPostproc
from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate, PySearchStrategy

from convtvm.measure import Trial, Workbench, Zygote
from convtvm.records import TuningRecord
from convtvm.task import Task, annotate_knobs, carrier_module, decisions_of
from convtvm.workload import ConvWorkload
from schedules.knobs import Space

ENUMERATE_UP_TO = 200_000  # combinations; above, MetaSchedule's evolutionary search takes over
_WARM_UP = 8  # trials before the cost model is believed
_EPSILON = 0.1  # share of a batch that is drawn at random, against a misled cost model


def candidate(space: Space, decisions: Mapping[str, int]) -> MeasureCandidate:
    sch = annotate_knobs(Schedule(carrier_module()), space, decisions)
    return MeasureCandidate(sch, ArgInfo.from_entry_func(sch.mod, remove_preproc=True))


def median_seconds(result: Any) -> float:
    """Seconds of a MetaSchedule RunnerResult, infinite for a failure."""
    return statistics.median(float(s) for s in result.run_secs) if result.run_secs else math.inf


def workload_features(w: ConvWorkload) -> list[float]:
    """What a cost model needs of the shape, so that one model serves many workloads."""
    sizes = (w.n, w.ic, w.oc, w.oh, w.ow, w.kh, w.kw, w.sh, w.sw, w.groups, w.flops)
    return [math.log2(size) for size in sizes]


class SpeedModel:
    """XGBoost on shape, knobs and derived features; predicts speed relative to the task's best.

    One model serves all tasks of an algorithm, so that what one shape taught helps the next.
    """

    def __init__(self, rounds: int = 60, seed: int = 0) -> None:
        self.rounds, self.seed = rounds, seed
        self._rows: list[list[float]] = []
        self._seconds: list[float] = []  # infinite for a failure
        self._tasks: list[tuple[Any, ...]] = []
        self._booster: Any = None

    def learn(self, task: Task, samples: Sequence[tuple[Mapping[str, int], float]]) -> None:
        """Add measured (decisions, seconds) of `task` and fit again."""
        if not samples:
            return
        for decisions, seconds in samples:
            self._rows.append(_features(task, decisions))
            self._seconds.append(seconds)
            self._tasks.append(task.key)
        self._fit()

    def _fit(self) -> None:
        seconds = np.array(self._seconds)
        if not np.isfinite(seconds).any():
            return
        fastest: dict[tuple[Any, ...], float] = {}
        for task, value in zip(self._tasks, self._seconds, strict=True):
            fastest[task] = min(value, fastest.get(task, math.inf))
        best = np.array([fastest[task] for task in self._tasks])
        speed = np.where(np.isfinite(seconds), best / seconds, 0.0)
        settings = {
            "objective": "reg:squarederror",
            "max_depth": 6,
            "eta": 0.2,
            "nthread": 1,
            "seed": self.seed,
        }
        matrix = xgboost.DMatrix(np.array(self._rows, dtype=np.float32), label=speed)
        self._booster = xgboost.train(settings, matrix, num_boost_round=self.rounds)

    def score(self, task: Task, points: Sequence[Mapping[str, int]]) -> np.ndarray:
        """Predicted relative speed of each point; the template's own estimate while little is
        known."""
        if len(self._rows) < _WARM_UP or self._booster is None:
            return np.array([1 / (1 + task.space.cost(d)) for d in points])
        rows = np.array([_features(task, d) for d in points], dtype=np.float32)
        predicted: np.ndarray = self._booster.predict(xgboost.DMatrix(rows))
        return predicted.astype("float64")


def _features(task: Task, decisions: Mapping[str, int]) -> list[float]:
    knobs = [float(decisions[name]) for name in task.space.knobs]
    return [*workload_features(task.workload), *knobs, *task.space.features(decisions).values()]


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


@derived_object
class RankedEnumeration(PySearchStrategy):  # type: ignore[misc]
    """Measures the points that the cost model ranks highest among all that were never measured."""

    def __init__(
        self, task: Task, speed: SpeedModel, known: set[tuple[int, ...]], seed: int
    ) -> None:
        super().__init__()
        self.task, self.speed, self.known = task, speed, known
        self.random = random.Random(seed)
        self.batch, self.left = 0, 0

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def pre_tuning(
        self,
        max_trials: int,
        num_trials_per_iter: int,
        design_spaces: Any,
        database: Any = None,
        cost_model: Any = None,
    ) -> None:
        self.left, self.batch = max_trials, num_trials_per_iter

    def post_tuning(self) -> None:
        pass

    def generate_measure_candidates(self) -> list[MeasureCandidate] | None:
        points = [d for d in self.task.space.points if tuple(d.values()) not in self.known]
        count = min(self.batch, self.left, len(points))
        if count == 0:
            return None
        order = np.argsort(-self.speed.score(self.task, points), kind="stable")
        guessing = self.known and len(self.known) < _WARM_UP
        share = 0.5 if guessing else _EPSILON
        explore = sum(self.random.random() < share for _ in range(count))
        chosen = [points[i] for i in order[: count - explore]]
        chosen += self.random.sample([points[i] for i in order[count - explore :]], explore)
        self.known.update(tuple(d.values()) for d in chosen)
        self.left -= count
        return [candidate(self.task.space, d) for d in chosen]

    def notify_runner_results(self, measure_candidates: list[Any], results: list[Any]) -> None:
        pass

    def clone(self) -> RankedEnumeration:
        return RankedEnumeration(
            self.task, self.speed, set(self.known), self.random.getrandbits(32)
        )


@derived_object
class ValidKnobs(PyPostproc):  # type: ignore[misc]
    """Rejects combinations that the template does not accept or that were measured before.

    The strategy remembers what it proposed itself, not what earlier runs left in the log.
    """

    def __init__(self, space: Space, known: Collection[tuple[int, ...]]) -> None:
        super().__init__()
        self.space, self.known = space, known

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, sch: Schedule) -> bool:
        decisions = decisions_of(sch.mod)
        point = tuple(decisions[name] for name in self.space.knobs)
        return self.space.is_valid(decisions) and point not in self.known

    def clone(self) -> ValidKnobs:
        return ValidKnobs(self.space, self.known)


@derived_object
class MutateKnob(PyMutator):  # type: ignore[misc]
    """Redraws one knob; MetaSchedule's own mutators leave free categorical samples alone."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, trace: Any, _: Any = None) -> Any:
        samples = [
            i for i in trace.insts if i.kind.name == "SampleCategorical" and len(i.attrs[0]) > 1
        ]
        if not samples:
            return None
        sample = self.random.choice(samples)
        index = self.random.randrange(len(sample.attrs[0]) - 1)
        index += index >= int(trace.decisions[sample])
        return trace.with_decision(sample, index, remove_postproc=True)

    def clone(self) -> MutateKnob:
        return MutateKnob(self.random.getrandbits(32))


def make_context(task: Task, speed: SpeedModel, known: set[tuple[int, ...]], seed: int) -> Any:
    """A MetaSchedule TuneContext whose space is the task's knobs.

    The strategy enumerates spaces of up to ENUMERATE_UP_TO combinations and evolves larger ones.
    Built through the constructor that the Python class wraps: the wrapper imports every tensor
    intrinsic first, which takes 15 s.
    """
    space = task.space
    if space.size <= ENUMERATE_UP_TO:
        strategy: Any = RankedEnumeration(task, speed, known, seed)
    else:
        strategy = ms.search_strategy.EvolutionarySearch(
            population_size=128, genetic_num_iters=4, init_min_unmeasured=16, eps_greedy=_EPSILON
        )
    generator = ms.space_generator.ScheduleFn(
        lambda sch: annotate_knobs(sch, space),
        sch_rules=[],
        postprocs=[ValidKnobs(space, frozenset(known))],
        mutator_probs={MutateKnob(seed): 1.0},
    )
    logger = get_logging_func(logging.getLogger("convtvm.search"))
    context = _ffi_api.TuneContext(
        carrier_module(), task.target.tvm, generator, strategy, "convtvm", 1, seed, logger
    )
    _ffi_api.TuneContextInitialize(context)
    return context


class TaskSearch:
    """The search of one task, a batch at a time: default decisions first, then the strategy's."""

    def __init__(
        self, task: Task, speed: SpeedModel, zygote: Zygote, old: Sequence[TuningRecord], seed: int
    ) -> None:
        self.task, self.speed, self.zygote, self.seed = task, speed, zygote, seed
        self.known = {self._point(r.decisions): r.seconds for r in old}
        if old:
            speed.learn(task, [(r.decisions, r.seconds) for r in old])
        self._cost_model = KnobCostModel(task, speed)
        self._context: Any = None

    def _point(self, decisions: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(decisions[name] for name in self.task.space.knobs)

    @cached_property
    def bench(self) -> Workbench:
        """Builder and runner, opened when first needed."""
        return Workbench(self.task, self.zygote)

    @property
    def lacks_default(self) -> bool:
        """Whether the default decisions were never measured."""
        return self._point(self.task.space.default) not in self.known

    def batch(self, count: int) -> Iterator[tuple[dict[str, int], Trial]]:
        """Measure up to `count` new candidates, each yielded when finished; nothing when
        exhausted."""
        space, default = self.task.space, self.task.space.default
        if self._context is None:
            known = {*self.known, self._point(default)}
            self._context = make_context(self.task, self.speed, known, self.seed)
            self._context.pre_tuning(
                len(space.points),
                count,
                design_spaces=None,
                database=ms.database.MemoryDatabase(),
                cost_model=self._cost_model,
            )
        if self.lacks_default:
            proposed = [candidate(space, default)]
        else:
            proposed = list(self._context.generate_measure_candidates() or ())[:count]
        yield from self._measure([c for c in proposed if self._decided(c) not in self.known])

    def _decided(self, proposed: MeasureCandidate) -> tuple[int, ...]:
        return self._point(decisions_of(proposed.sch.mod))

    def _measure(self, fresh: list[MeasureCandidate]) -> Iterator[tuple[dict[str, int], Trial]]:
        results = []
        for measured, (result, trial) in zip(fresh, self.bench.measure(fresh), strict=True):
            decisions = decisions_of(measured.sch.mod)
            self.known[self._point(decisions)] = trial.seconds
            results.append(result)
            yield decisions, trial
        self._cost_model.update(self._context, fresh, results)
        self._context.notify_runner_results(fresh, results)
