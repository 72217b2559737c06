"""The last word on the best candidates: a workload's fastest race in one exported library."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convtvm.library import build
from convtvm.library.choices import Choice
from convtvm.library.objects import kernel_symbol
from convtvm.logs.records import TuningRecord
from convtvm.measure.client import RUN_SECONDS, Zygote
from convtvm.measure.jobs import STOPPED, Limits, Outcome, RaceJob
from convtvm.measure.problems import write_problem
from convtvm.measure.workbench import Trial, trial_of
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning.progress import CALL_SECONDS, TaskProgress

CLOSE = 1.2  # times the workload's best: candidates that may turn out to be faster
_DISAPPOINTING = 1.25  # times its time while tuning, without the call: others may be faster
_EACH = 2  # of a task at once
_ROUNDS = 3
_SAMPLES = 9
_WINDOW = 0.005  # seconds
_PATIENCE = 1.0  # seconds for each in a race
_SECONDS = 0.8  # that one takes to be built and to race, on a slow machine
_LIKELY = 2  # of a workload that race first, however little time there is
_AT_ONCE = 4  # workloads in one library where time is short: its build must end before they race

Doubtful = tuple[TaskProgress, TuningRecord]


@dataclass
class Race:
    """Candidates of one workload that wait for a race, the likely winner first, and those that won
    others: times of different races do not compare, so these have to run again."""

    waiting: list[Doubtful]
    winners: list[Doubtful]

    @property
    def all(self) -> list[Doubtful]:
        return self.waiting + self.winners

    @property
    def order(self) -> tuple[bool, float]:
        """Sort key: who never raced comes first, then what takes the most time of a network."""
        weight = self.waiting[0][0].task.workload.multiplicity
        return bool(self.winners), -weight * min(record.seconds for _, record in self.all)


def doubtful(tasks: Sequence[TaskProgress]) -> list[Race]:
    """For each workload the fastest candidates whose times were not confirmed yet, with those
    confirmed ones that they have to beat; empty once every workload's best is confirmed, and no
    other could be faster than it turned out to be."""
    rivals: dict[ConvWorkload, list[TaskProgress]] = {}
    for p in tasks:
        if p.best:
            rivals.setdefault(p.task.workload, []).append(p)
    races = [race for of_one in rivals.values() if (race := _race(of_one))]
    return sorted(races, key=lambda race: race.order)


def _race(rivals: Sequence[TaskProgress]) -> Race | None:
    """The doubtful of one workload, of which every task has a best candidate; None without any."""
    limit = _limit(rivals)
    waiting = [
        (p, record)
        for p in rivals
        for rank, record in enumerate(p.unconfirmed(limit))
        if rank < _EACH or record == p.default  # never slower than untuned
    ]
    waiting.sort(key=lambda d: d[1].seconds)
    return Race(waiting, _winners(rivals)) if waiting else None


def _winners(rivals: Sequence[TaskProgress]) -> list[Doubtful]:
    """The best of each task that raced, if it is close to the best of all."""
    best = [(p, p.best) for p in rivals if p.best and p.best.confirmed]
    reach = CLOSE * min((record.seconds for _, record in best), default=0.0)
    return [(p, record) for p, record in best if record.seconds <= reach]


def _limit(rivals: Sequence[TaskProgress]) -> float:
    """Seconds, as taken while tuning, of the candidates that might be the fastest; 0 for none."""
    waiting = [r.seconds for p in rivals for r in p.unconfirmed(math.inf)]
    if not waiting:
        return 0.0
    favourite = min(waiting)
    won = _winners(rivals)
    if not won:
        return CLOSE * favourite
    winner, record = min(won, key=lambda d: d[1].seconds)
    before = min(winner.seconds_of(record, confirmed=False), record.seconds)
    # Who was faster than the winner before it raced, and who might be after its disappointment.
    limit = CLOSE * favourite if favourite < before else 0.0
    # A GPU's own clock does not count what a call takes on the host.
    call = CALL_SECONDS if winner.task.target.kind == "cpu" else 0.0
    after = (record.seconds - call) / _DISAPPOINTING
    return max(limit, after if after > before else 0.0)


def confirm(tasks: Sequence[TaskProgress], zygote: Zygote) -> Iterator[tuple[Doubtful, Trial]]:
    """Measure doubtful candidates until none is left, a few times at most.

    Where time is short, the likely winners of every workload race first, the others then with
    whoever won. The caller adds each trial to its task. Raises BuildError if the library cannot be
    made.
    """
    for _ in range(_ROUNDS):
        races = doubtful(tasks)
        if not races:
            return
        some = _affordable(races, zygote.deadline - time.monotonic())
        yield from _together([Race(r.waiting[:some], r.winners).all for r in races], zygote)
        later = [r.waiting[some:] for r in races if r.waiting[some:]]
        yield from _together([_with_winners(waiting, tasks) for waiting in later], zygote)


def _with_winners(waiting: Sequence[Doubtful], tasks: Sequence[TaskProgress]) -> list[Doubtful]:
    """Candidates of one workload with those that won it meanwhile."""
    workload = waiting[0][0].task.workload
    return [*waiting, *_winners([p for p in tasks if p.task.workload == workload])]


def _affordable(races: Sequence[Race], seconds: float) -> int:
    """How many of each workload can race in this time, the likely winners at least."""
    most = max(len(race.waiting) for race in races)
    if math.isinf(seconds):
        return most
    return min(most, max(_LIKELY, int(seconds / (_SECONDS * len(races)))))


def _together(
    races: Sequence[Sequence[Doubtful]], zygote: Zygote
) -> Iterator[tuple[Doubtful, Trial]]:
    """Run races, as many in one library as the time allows."""
    step = _AT_ONCE if math.isfinite(zygote.deadline) else len(races)
    for start in range(0, len(races), step or 1):
        seconds = (zygote.deadline - time.monotonic()) / sum(map(len, races[start:]))
        if seconds <= 0:
            return
        found = [doubt for race in races[start : start + step] for doubt in race]
        yield from _measure(found, zygote, min(_PATIENCE, seconds))


def _measure(
    found: Sequence[Doubtful], zygote: Zygote, patience: float = _PATIENCE
) -> Iterator[tuple[Doubtful, Trial]]:
    """Race the candidates of each workload, with `patience` seconds for each; where one breaks its
    race, each runs alone."""
    choices = [Choice(p.task, record) for p, record in found]
    names = {p.task.workload: "" for p, _ in found}
    content, _ = build.assemble(choices, names, zygote)
    path = zygote.fresh_path("-exported.so")
    path.write_bytes(content)
    of_one: dict[ConvWorkload, list[int]] = {}
    for index, (p, _) in enumerate(found):
        of_one.setdefault(p.task.workload, []).append(index)
    broken: list[int] = []
    try:
        for race, outcome in _run(list(of_one.values()), choices, path, zygote, patience):
            if outcome.kind not in ("", STOPPED) and len(race) > 1:
                broken += race
            else:
                yield from _trials(found, race, outcome)
        for alone, outcome in _run([[index] for index in broken], choices, path, zygote, patience):
            yield from _trials(found, alone, outcome)
    finally:
        path.unlink(missing_ok=True)


def _run(
    races: Sequence[Sequence[int]],
    choices: Sequence[Choice],
    path: Path,
    zygote: Zygote,
    patience: float,
) -> Iterator[tuple[Sequence[int], Outcome]]:
    """The outcome of each race between choices by their indices in the library."""
    if not races:
        return
    jobs = []
    for race in races:
        task = choices[race[0]].task
        tolerances = {
            kernel_symbol(choices[i].task, choices[i].decisions): choices[i].task.tolerance
            for i in race
        }
        inputs = str(write_problem(task.workload, task.layout, zygote))
        jobs.append(RaceJob(str(path), inputs, tolerances, task.target.kind))
    limits = Limits(
        threads=choices[0].task.target.threads,
        timeout=RUN_SECONDS * max(map(len, races)),
        window=_WINDOW,
        samples=_SAMPLES,
        patience=patience,
    )
    for number, outcome in zygote.call("run", jobs, limits):
        yield races[number], outcome


def _trials(
    found: Sequence[Doubtful], race: Sequence[int], outcome: Outcome
) -> Iterator[tuple[Doubtful, Trial]]:
    """What a race came to for each that took part."""
    outcomes = [outcome] * len(race) if outcome.kind else outcome.value
    for index, own in zip(race, outcomes, strict=True):
        yield found[index], trial_of(own, found[index][1].workspace_bytes)
