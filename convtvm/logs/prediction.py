"""What a log says about tasks that it does not hold: decisions to take, and times to expect.

Decisions come from the nearest record of the same algorithm that is valid here: of the same
workload if there is one, tuned for a near target or another number of threads, else of the most
similar workload. Times come from the record itself if it is of the same workload, else from a model
of all records.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convtvm.errors import WorkloadError
from convtvm.kernels.algorithms import Algorithm
from convtvm.kernels.task import TABLES, Task
from convtvm.logs import records
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import CompileTarget, is_near
from convtvm.problem.similarity import distance
from convtvm.problem.workload import ConvWorkload

MIN_TASKS = 24  # a model of fewer tasks would be a guess
_SUMMING = 6  # operations in the time of an addition of Strassen's, which goes through memory
_TILE = 16  # channels that the smallest tile of a product on a GPU has
_WAITING = 8  # operations in the time that an element of a weight takes from memory
_MAX_DISTANCE = 6.0  # sizes that differ by 2**6 altogether, or another kernel and a little more

# Of the Gaussian process; no evaluation changes much within 1.5 times of each.
_LENGTH = 8.0  # over which workloads resemble each other, in doublings of sizes
_SPREAD = 0.5  # of the logarithm of a rate, for all algorithms, a family's own and an algorithm's
_DTYPE = 4.0  # doublings that elements of half the size are apart
_NOISE = 0.3  # of the logarithm of a best time: few trials, other shapes of caches

Sample = tuple[ConvWorkload, str, float]  # workload, algorithm, seconds
_Task = tuple[ConvWorkload, str]


@dataclass(frozen=True)
class Hint:
    """What is known of a task without records: whose decisions to take, as they suit its threads,
    and seconds to expect."""

    source: TuningRecord | None = None
    decisions: Mapping[str, int] | None = None
    seconds: float | None = None


class Hints:
    """What the records of a target and of near ones, in one layout, say of further tasks."""

    def __init__(
        self, history: Iterable[TuningRecord], target: CompileTarget, layout: str = "NCHW"
    ) -> None:
        self._target = target
        self._known: dict[str, list[tuple[ConvWorkload, TuningRecord]]] = defaultdict(list)
        near = [r for r in history if r.layout == layout and is_near(r.target, target)]
        for workload, record in best_records(near, target.kind):
            self._known[record.algorithm].append((workload, record))
        self._model = self._learn(layout)

    def of(self, task: Task, failed: Collection[Mapping[str, int]] = ()) -> Hint:
        """The hint for a task; decisions that `failed` on it are not taken."""
        (source, decisions), name = self._source(task, failed), task.algorithm_name
        if source and decisions and source.workload == task.workload.key:
            return Hint(source, decisions, self._expected(source) * task.space.idling(decisions))
        known = self._model.seconds(task.workload, [name]) if self._model else {}
        return Hint(source, decisions, known.get(name))

    def _source(
        self, task: Task, failed: Collection[Mapping[str, int]]
    ) -> tuple[TuningRecord | None, Mapping[str, int] | None]:
        """The nearest workload's record, of several the one of the nearest threads and target; and
        its decisions as they suit the task."""

        def rank(known: tuple[ConvWorkload, TuningRecord]) -> tuple[float | str, ...]:
            workload, r = known
            threads = abs(math.log2(r.threads / self._target.threads))
            other = r.target != self._target.name
            return distance(workload, task.workload), threads, other, r.workload, r.target

        for workload, record in sorted(self._known[task.algorithm_name], key=rank):
            if distance(workload, task.workload) > _MAX_DISTANCE:
                break
            decisions = _suited(record.decisions, task, workload)
            if task.space.contains(decisions) and decisions not in failed:
                return record, decisions
        return None, None

    def _expected(self, record: TuningRecord) -> float:
        """Seconds on as many threads as the target has, if all of them are equally busy."""
        return record.seconds * record.threads / self._target.threads

    def _learn(self, layout: str) -> TimeModel | None:
        """A model of the target itself, else of near ones, else of other numbers of threads."""
        every = [(w, r) for known in self._known.values() for w, r in known if not r.disturbed]
        own = [(w, r) for w, r in every if r.threads == self._target.threads]
        exact = [(w, r) for w, r in own if r.target == self._target.name]
        for chosen in (exact, own, every):
            if len(chosen) >= MIN_TASKS:
                samples = [(w, r.algorithm, self._expected(r)) for w, r in chosen]
                return TimeModel(samples, self._target, layout)
        return None


def _suited(decisions: Mapping[str, int], task: Task, made_for: ConvWorkload) -> dict[str, int]:
    """Decisions made for another batch or number of threads, as they suit the task's."""
    space = task.space
    if made_for.n != task.workload.n and "images" in set(decisions) & set(space.knobs):
        decisions = space.best_of("images", decisions)
    return space.spread(decisions) if space.contains(decisions) else dict(decisions)


def best_records(
    history: Iterable[TuningRecord], kind: str = "cpu"
) -> list[tuple[ConvWorkload, TuningRecord]]:
    """The best record of every task by today's templates, its time comparable with those of its
    rivals, with its workload."""
    made: dict[tuple[object, ...], list[TuningRecord]] = defaultdict(list)
    for r in history:
        algorithm = TABLES[kind].get(r.algorithm)
        if algorithm is not None and r.template == algorithm.template.VERSION:
            made[r.task_key].append(r)
    standings = records.standings(r for tried in made.values() for r in tried)
    found = []
    for tried in made.values():
        standing = standings[tried[0].rivalry]
        best = records.best(tried, standing)
        try:
            if best is not None:
                found.append((ConvWorkload.parse(best.workload), standing.compared(best)))
        except WorkloadError:
            continue
    return found


class TimeModel:
    """Seconds of a workload by an algorithm: a Gaussian process (kriging) on what was measured.

    It learns the logarithm of the seconds that a vector operation takes. How far two tasks inform
    each other falls with the distance of their workloads, and is greatest within an algorithm, less
    within a family and least between families. So an algorithm that was never measured is expected
    to do as well as its family.
    """

    def __init__(
        self, samples: Sequence[Sample], target: CompileTarget, layout: str = "NCHW"
    ) -> None:
        self._table, self._target, self._layout = TABLES[target.kind], target, layout
        self._tasks = [(w, name) for w, name, _ in samples]
        self._families = {name.partition(":")[0] for _, name in self._tasks}
        rates = np.log([secs / self._operations(w, name) for w, name, secs in samples])
        self._mean = float(rates.mean())
        likeness = self._likeness(self._tasks) + _NOISE**2 * np.eye(len(samples))
        self._weights = np.linalg.solve(likeness, rates - self._mean)

    def seconds(self, w: ConvWorkload, names: Sequence[str]) -> dict[str, float]:
        """Expected seconds by algorithm, for those of `names` whose family was measured."""
        known = [name for name in names if name.partition(":")[0] in self._families]
        if not known:
            return {}
        rates = self._mean + self._likeness([(w, name) for name in known]) @ self._weights
        operations = [self._operations(w, name) for name in known]
        return dict(zip(known, map(float, np.exp(rates) * operations), strict=True))

    def _likeness(self, tasks: Sequence[_Task]) -> NDArray[np.float64]:
        """The covariance of each of `tasks` with each task learned (Matérn, 3/2)."""
        here, there = (np.array([_position(w) for w, _ in ts]) for ts in (tasks, self._tasks))
        squares = (here**2).sum(1)[:, None] + (there**2).sum(1) - 2 * here @ there.T
        gap = np.sqrt(3 * np.maximum(squares, 0)) / _LENGTH
        names, learned = (np.array([name for _, name in ts]) for ts in (tasks, self._tasks))
        families, others = (np.array([n.partition(":")[0] for n in ns]) for ns in (names, learned))
        shared = 1 + (families[:, None] == others) + 1 * (names[:, None] == learned)
        return _SPREAD**2 * shared * (1 + gap) * np.exp(-gap)

    def _operations(self, w: ConvWorkload, name: str) -> float:
        return operations(w, self._table[name], self._target, self._layout)


def operations(w: ConvWorkload, algorithm: Algorithm, target: CompileTarget, layout: str) -> float:
    """What `target` computes, useful or not: a product for each weight and output, and additions
    of transforms. A CPU computes whole vectors, transforms along the input channels; tiles of
    products on a GPU have several channels of a group."""
    lanes = target.lanes if target.kind == "cpu" else _TILE

    def waste(extent: int) -> float:
        """Lanes of whole vectors over an extent, for each useful one."""
        return -(-extent // lanes) * lanes / extent

    products = algorithm.multiplications(w)
    transforms = algorithm.additions(w) - products
    depthwise = algorithm.name.startswith("direct:depthwise")
    if target.kind != "cpu":
        return products * (1 if depthwise else waste(w.oc // w.groups)) + transforms
    extent = w.oc // w.groups
    if depthwise:
        extent = w.ow if layout == "NCHW" else w.oc
    elif algorithm.name == "direct:pointwise":
        extent = w.oh * w.ow
    return products * waste(extent) + transforms * waste(w.ic)


def untuned_cost(task: Task) -> float:
    """Something to rank the algorithms of a workload by, of which nothing was measured anywhere.

    Its operations; on a CPU, one more for each output whose vector has to be turned before it can
    be stored, those for which the packed weight is waited for, which is read but once, and those
    that Strassen's sums take.
    """
    w, algorithm = task.workload, task.algorithm
    if task.target.kind != "cpu":
        return operations(w, algorithm, task.target, task.layout)
    along_rows = algorithm.name == "direct:pointwise"
    along_rows |= algorithm.name.startswith("direct:depthwise") and task.layout == "NCHW"
    turned = w.n * w.oc * w.oh * w.ow if along_rows != (task.layout == "NCHW") else 0
    waiting = _WAITING * algorithm.weight_elements(w)
    summing = 0
    if algorithm.family == "strassen":
        sums = algorithm.additions(w) - algorithm.multiplications(w) - w.n * w.oc * w.oh * w.ow
        summing = _SUMMING * sums
    return operations(w, algorithm, task.target, task.layout) + turned + waiting + summing


def _position(w: ConvWorkload) -> list[float]:
    """Where a workload lies among others, in doublings."""
    sizes = (w.n, w.ic // w.groups, w.oc // w.groups, w.groups, w.oh, w.ow)
    shape = [math.log2(s) for s in (*sizes, w.kh * w.kw, w.sh * w.sw, w.dh * w.dw)]
    return [*shape, _DTYPE * math.log2(w.element_bytes)]
