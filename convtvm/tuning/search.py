"""Search over a template's decisions: MetaSchedule strategies and an XGBoost cost model on knobs.

A candidate is the task's carrier function with one annotation per knob on its root block.
MetaSchedule samples, mutates and compares these annotated functions in microseconds; the schedule
itself is applied by the builder, in the child process that compiles it.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule import _ffi_api
from tvm.s_tir.meta_schedule.arg_info import ArgInfo
from tvm.s_tir.meta_schedule.logging import get_logging_func
from tvm.s_tir.meta_schedule.mutator import PyMutator
from tvm.s_tir.meta_schedule.postproc import PyPostproc
from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate, PySearchStrategy

from convtvm.kernels.task import Task, annotate_knobs, carrier_module, decisions_of
from convtvm.logs.records import TuningRecord
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import ENVIRONMENT, STOPPED
from convtvm.measure.workbench import Trial, Workbench
from convtvm.tuning.speed import WARM_UP, KnobCostModel, Outlook, SpeedModel, median_seconds
from schedules.knobs import Space

ENUMERATE_UP_TO = 200_000  # combinations; above, MetaSchedule's evolutionary search takes over
_ASKED = 4000  # points that the model is asked about to estimate what is left to gain
_UNKNOWN_SPEED = 0.7  # of a candidate against the task's best, before the model knows anything
_EPSILON = 0.1  # share of a batch that is drawn at random, against a misled cost model


def _is_dated(learned_then: int, own_then: int, learned: int, own: int) -> bool:
    """Whether what a model said of a task is to be asked again: after every trial of its own, and
    when the model, which other tasks teach too, knows a tenth more. Asking takes a tenth of a
    second, and a network has hundreds of tasks."""
    return own != own_then or learned > 1.1 * learned_then


def candidate(space: Space, decisions: Mapping[str, int]) -> MeasureCandidate:
    sch = annotate_knobs(Schedule(carrier_module()), space, decisions)
    return MeasureCandidate(sch, ArgInfo.from_entry_func(sch.mod, remove_preproc=True))


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
        guessing = self.known and len(self.known) < WARM_UP
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
    logger = get_logging_func(logging.getLogger("convtvm.tuning.search"))
    context = _ffi_api.TuneContext(
        carrier_module(), task.target.tvm, generator, strategy, "convtvm", 1, seed, logger
    )
    _ffi_api.TuneContextInitialize(context)
    return context


class TaskSearch:
    """The search of one task, a batch at a time: default decisions first, with those of `favourite`
    if there are any, then what was best for similar shapes, then the strategy's.

    `zygote` is where candidates are built and run; it may be given later, before the first batch.
    """

    def __init__(
        self,
        task: Task,
        speed: SpeedModel,
        zygote: Zygote | None,
        old: Sequence[TuningRecord],
        seed: int,
    ) -> None:
        self.task, self.speed, self.zygote, self.seed = task, speed, zygote, seed
        self.known = {self._point(r.decisions): r.seconds for r in old}
        self.pending: set[tuple[int, ...]] = set()  # proposed, and not measured yet
        if old:
            speed.learn(task, [(r.decisions, r.seconds) for r in old])
        self._cost_model = KnobCostModel(task, speed)
        self._outlook = Outlook(speed.outlook)
        self._random = random.Random(seed)
        self._context: Any = None
        # For what was known then: the model's scores, and the standing of the best.
        self._scores: tuple[tuple[int, int], np.ndarray, float] | None = None
        self.favourite: Mapping[str, int] | None = None
        self.given_up = ""  # why candidates were not measured
        self.trouble = ""  # what the machine lacked for some of the last batch
        self.is_exhausted = task.space.is_within(self.known)

    def _point(self, decisions: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(decisions[name] for name in self.task.space.knobs)

    @cached_property
    def bench(self) -> Workbench:
        """Builder and runner, opened when first needed."""
        return Workbench(self.task, cast(Zygote, self.zygote))

    @property
    def lacks_default(self) -> bool:
        """Whether the default decisions were never measured, nor proposed."""
        return self._is_new(self._point(self.task.space.default))

    def _is_new(self, point: tuple[int, ...]) -> bool:
        return point not in self.known and point not in self.pending

    @property
    def opening(self) -> list[Mapping[str, int]]:
        """What is measured before anything else, as far as it is not known."""
        wanted = [self.task.space.default, self.favourite or self.task.space.default]
        fresh = {self._point(d): d for d in wanted if self._is_new(self._point(d))}
        return list(fresh.values())

    def expected_gain(self, count: int, rival: float) -> float:
        """The share by which `count` more trials are expected to shorten the workload's best time,
        `rival` seconds, 0 to 1."""
        best = min(self.known.values(), default=math.inf)
        if math.isinf(best) or math.isinf(rival):
            return 1.0
        learned, own = self.speed.learned, len(self.known)
        if self._scores is None or _is_dated(*self._scores[0], learned, own):
            self._scores = (learned, own), self._ranked_scores(), self._standing()
        _, scores, standing = self._scores
        threshold = standing * best / rival
        more = self._outlook.expected_best(scores[:count], threshold)
        return more / (threshold + more)

    def _standing(self) -> float:
        """The speed of the best known decisions against the best that there may be.

        While they are the only ones, what the model learned elsewhere says how good they are.
        """
        if len(self.known) > 1 or not self.speed.is_warm:
            return 1.0
        only = dict(zip(self.task.space.knobs, next(iter(self.known)), strict=True))
        return min(1.0, float(self.speed.score(self.task, [only])[0]))

    def _ranked_scores(self) -> np.ndarray:
        """What the model says of points that were not measured, the best first."""
        points = self.task.space.points
        if len(points) > _ASKED:
            points = self._random.sample(points, _ASKED)
        points = [d for d in points if self._point(d) not in self.known]
        if self.speed.is_warm and points:
            return np.sort(self.speed.score(self.task, points))[::-1]
        return np.full(len(points), _UNKNOWN_SPEED)

    def batch(
        self, count: int, seeds: Sequence[Mapping[str, int]] = ()
    ) -> Iterator[tuple[dict[str, int], Trial]]:
        """Measure up to `count` new candidates, each yielded when finished; nothing when exhausted.

        `seeds` are decisions to try before the strategy's, those that the space accepts.
        """
        yield from self.measure(self.propose(count, seeds))

    def propose(
        self, count: int, seeds: Sequence[Mapping[str, int]] = ()
    ) -> list[MeasureCandidate]:
        """Up to `count` new candidates, which are pending until they are measured."""
        space = self.task.space
        if self.lacks_default:
            proposed = [candidate(space, d) for d in self.opening[:count]]
        else:
            shared = (space.spread(d) for d in seeds if space.contains(d))
            fitting = [d for d in shared if self._is_new(self._point(d))]
            proposed = [candidate(space, d) for d in fitting[:count]] or self._propose(count)
        fresh = {self._decided(c): c for c in proposed if self._is_new(self._decided(c))}
        self.pending |= fresh.keys()
        return list(fresh.values())

    def measure(self, fresh: list[MeasureCandidate]) -> Iterator[tuple[dict[str, int], Trial]]:
        """Measure what `propose` has returned, each yielded when finished."""
        self.trouble = ""
        try:
            yield from self._measure(fresh)
        finally:
            self.pending -= {self._decided(c) for c in fresh}

    def _propose(self, count: int) -> list[MeasureCandidate]:
        """What the strategy would measure next."""
        if self._context is None:
            self._context = make_context(self.task, self.speed, set(self.known), self.seed)
            self._context.pre_tuning(
                len(self.task.space.points),
                count,
                design_spaces=None,
                database=ms.database.MemoryDatabase(),
                cost_model=self._cost_model,
            )
        proposed = list(self._context.generate_measure_candidates() or ())[:count]
        self.is_exhausted = not proposed
        return proposed

    def _decided(self, proposed: MeasureCandidate) -> tuple[int, ...]:
        return self._point(decisions_of(proposed.sch.mod))

    def _measure(self, fresh: list[MeasureCandidate]) -> Iterator[tuple[dict[str, int], Trial]]:
        decided = [decisions_of(c.sch.mod) for c in fresh]
        scores = self.speed.score(self.task, decided) if fresh and self.speed.is_warm else ()
        done, results = [], []
        for measured, (result, trial) in zip(fresh, self.bench.measure(fresh), strict=True):
            if trial.kind == STOPPED:
                self.given_up = trial.message
                continue
            if trial.kind == ENVIRONMENT:
                self.trouble = trial.message
                continue
            decisions = decisions_of(measured.sch.mod)
            self.known[self._point(decisions)] = trial.seconds
            done.append(measured)
            results.append(result)
            yield decisions, trial
        best = min(self.known.values(), default=math.inf)
        for score, result in zip(scores, results, strict=False):
            self._outlook.learn(float(score), best / median_seconds(result))
        tried = [decisions_of(c.sch.mod) for c in done]
        pairs = zip(tried, map(median_seconds, results), strict=True)
        self.speed.learn(self.task, list(pairs))
        if self._context is not None:
            self._context.notify_runner_results(done, results)
