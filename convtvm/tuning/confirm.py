"""The last word on the best candidates: a workload's fastest race in one exported library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from convtvm.library import build
from convtvm.library.choices import Choice
from convtvm.logs.records import TuningRecord
from convtvm.measure.client import RUN_SECONDS, Zygote
from convtvm.measure.jobs import STOPPED, Limits, Outcome, RaceJob
from convtvm.measure.workbench import Trial, trial_of, write_problem
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning.progress import CALL_SECONDS, TaskProgress

CLOSE = 1.2  # times the workload's best: candidates that may turn out to be faster
_DISAPPOINTING = 1.25  # times its time while tuning, without the call: others may be faster
_EACH = 2  # of a task at once
_ROUNDS = 3
_SAMPLES = 9
_WINDOW = 0.005  # seconds
_PATIENCE = 1.0  # seconds for each in a race

Doubtful = tuple[TaskProgress, TuningRecord]


def doubtful(tasks: Sequence[TaskProgress]) -> list[Doubtful]:
    """The fastest candidates of each workload whose times were not confirmed yet, with those
    confirmed ones that they have to beat; empty once every workload's best is confirmed, and no
    other could be faster than it turned out to be."""
    rivals: dict[ConvWorkload, list[TaskProgress]] = {}
    for p in tasks:
        if p.best:
            rivals.setdefault(p.task.workload, []).append(p)
    return [found for of_one in rivals.values() for found in _contenders(of_one)]


def _contenders(rivals: Sequence[TaskProgress]) -> list[Doubtful]:
    """The doubtful of one workload, of which every task has a best candidate."""
    best = {p.task: p.best for p in rivals if p.best}
    leader = min(rivals, key=lambda p: best[p.task].seconds)
    limit = _limit(leader)
    waiting = [
        (p, record)
        for p in rivals
        for rank, record in enumerate(p.unconfirmed(limit))
        if rank < _EACH or record == p.default  # never slower than untuned
    ]
    if not waiting:
        return []
    # Times of different races do not compare, so whoever won one before has to run again.
    winners = [(p, best[p.task]) for p in rivals if best[p.task].confirmed]
    reach = CLOSE * min((record.seconds for _, record in winners), default=0.0)
    return waiting + [(p, record) for p, record in winners if record.seconds <= reach]


def _limit(leader: TaskProgress) -> float:
    """Seconds, as taken while tuning, of the candidates that might be the fastest; 0 for none."""
    assert leader.best is not None
    if not leader.best.confirmed:
        return CLOSE * leader.best.seconds
    seconds = (leader.best.seconds - CALL_SECONDS) / _DISAPPOINTING
    return seconds if leader.drift and seconds > leader.drift[0] else 0.0


def confirm(tasks: Sequence[TaskProgress], zygote: Zygote) -> Iterator[tuple[Doubtful, Trial]]:
    """Measure doubtful candidates until none is left, a few times at most.

    The caller adds each trial to its task. On a GPU there are none: trials there are timed by the
    device's own clock, which a plan does not change. Raises BuildError if the library cannot be
    made.
    """
    tasks = [p for p in tasks if p.task.target.kind == "cpu"]
    for _ in range(_ROUNDS):
        found = doubtful(tasks)
        if not found:
            return
        yield from _measure(found, zygote)


def _measure(found: Sequence[Doubtful], zygote: Zygote) -> Iterator[tuple[Doubtful, Trial]]:
    """Race the candidates of each workload; where one breaks its race, each runs alone."""
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
        for race, outcome in _run(list(of_one.values()), choices, path, zygote):
            if outcome.kind not in ("", STOPPED) and len(race) > 1:
                broken += race
            else:
                yield from _trials(found, race, outcome)
        for alone, outcome in _run([[index] for index in broken], choices, path, zygote):
            yield from _trials(found, alone, outcome)
    finally:
        path.unlink(missing_ok=True)


def _run(
    races: Sequence[Sequence[int]], choices: Sequence[Choice], path: Path, zygote: Zygote
) -> Iterator[tuple[Sequence[int], Outcome]]:
    """The outcome of each race between choices by their indices in the library."""
    if not races:
        return
    jobs = []
    for race in races:
        task = choices[race[0]].task
        functions = {build.function_name(i, choices[i].task): choices[i].task for i in race}
        tolerances = {function: task.tolerance for function, task in functions.items()}
        inputs = str(write_problem(task.workload, task.layout, zygote))
        jobs.append(RaceJob(str(path), inputs, tolerances))
    limits = Limits(
        threads=choices[0].task.target.threads,
        timeout=RUN_SECONDS * max(map(len, races)),
        window=_WINDOW,
        samples=_SAMPLES,
        patience=_PATIENCE,
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
