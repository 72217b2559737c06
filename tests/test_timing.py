"""Which windows count when the machine is busy, and timing side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from convtvm.measure import timing
from convtvm.measure.jobs import Limits

# ---- one candidate -------------------------------------------------------------------------------

LIMITS = Limits(samples=3, patience=10.0)


def windows(monkeypatch: pytest.MonkeyPatch, made: list[tuple[float, bool]]) -> None:
    """Have the timing find these (seconds, undisturbed) in turn."""
    answers = iter(made)
    monkeypatch.setattr(timing, "pace", lambda threads: None)
    monkeypatch.setattr(timing, "window", lambda run, cores, threads: next(answers))


def test_disturbed_samples_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast they look, and however many there are."""
    clean = [(1e-3 * (1 + i / 10), True) for i in range(9)]
    mixed = [w for pair in zip(clean, [(1e-4, False)] * 9, strict=True) for w in pair]
    windows(monkeypatch, mixed)
    secs, undisturbed = timing.timed(lambda number: 1e-3, LIMITS)
    assert undisturbed and secs == pytest.approx([1e-3, 1.1e-3, 1.2e-3])


def test_too_few_undisturbed_samples_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    windows(monkeypatch, [(2e-3, True), (3e-3, False), (1e-3, False), (4e-3, False)])
    limits = Limits(samples=3, patience=0.0)
    assert timing.timed(lambda number: 1e-3, limits) == ([1e-3], False)


def test_no_waiting_for_the_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disturbed candidate is waited for unless all of its windows are far above the best."""
    limits = Limits(samples=3, patience=10.0, hopeless=2e-3)
    windows(monkeypatch, [(5e-3, False), (3e-3, True), (4e-3, False)])
    assert timing.timed(lambda number: 1e-3, limits) == ([3e-3], False)
    late = [(5e-3, False), (3e-3, False), (1.9e-3, False), *[(1e-3, True)] * 9]
    windows(monkeypatch, late)
    assert timing.timed(lambda number: 1e-3, limits) == ([1e-3] * 3, True)


class Cores:
    """Cores whose speed is scripted: at full speed when waited for, then these answers."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)

    def wait(self, seconds: float) -> bool:
        return self.answers.pop(0)

    def is_full(self) -> bool:
        return self.answers.pop(0)


@pytest.mark.parametrize("answers", [(False, True), (True, False, False)])
def test_slow_cores_disturb_a_window(answers: tuple[bool, ...]) -> None:
    """Before it, or after it."""
    assert timing.window(lambda: 1e-3, Cores(*answers), 2) == (1e-3, False)  # type: ignore[arg-type]


def test_waiting_for_a_core_disturbs_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait in line while runnable, at full speed before and after."""
    waited = iter([0.0, 1.0])
    monkeypatch.setattr(timing, "_waited", lambda: next(waited))
    assert timing.window(lambda: 1e-3, Cores(True, True), 2) == (1e-3, False)  # type: ignore[arg-type]


# ---- side by side --------------------------------------------------------------------------------


def timer_of(
    runs: dict[str, Callable[[], None]], counts: Callable[[str, int], bool], calls: list[str]
) -> Callable[[Callable[[], Any]], tuple[float, bool]]:
    """A timer: the n-th call of anyone takes n seconds, and counts if `counts(name, n)`."""
    names = {id(run): name for name, run in runs.items()}

    def timer(run: Callable[[], Any]) -> tuple[float, bool]:
        calls.append(names[id(run)])
        number = calls.count(calls[-1])
        return float(number), counts(calls[-1], number)

    return timer


def contestants(*names: str) -> dict[str, Callable[[], None]]:
    return {name: lambda: None for name in names}


def test_rounds_have_one_call_of_each_in_changing_order() -> None:
    runs, calls = contestants("a", "b", "c"), list[str]()
    times = timing.in_turn(runs, 4, timer_of(runs, lambda *_: True, calls))
    assert times == {name: ([1.0, 2.0, 3.0, 4.0], False) for name in "abc"}
    rounds = [tuple(calls[i : i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds) and len(set(rounds)) > 1


def test_calls_that_do_not_count_are_repeated() -> None:
    runs, calls = contestants("a", "b"), list[str]()
    times = timing.in_turn(runs, 3, timer_of(runs, lambda n, i: n == "a" or i % 2 == 0, calls))
    assert times == {"a": ([1.0, 2.0, 3.0], False), "b": ([2.0, 4.0, 6.0], False)}
    assert calls.count("a") == 3 and calls.count("b") == 6


def test_who_is_always_disturbed_is_marked() -> None:
    runs, calls = contestants("a", "b"), list[str]()
    times = timing.in_turn(runs, 3, timer_of(runs, lambda n, _: n == "a", calls))
    assert times["a"] == ([1.0, 2.0, 3.0], False)
    assert times["b"] == ([float(i) for i in range(1, 19)], True)


def test_no_round_begins_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("convtvm.measure.timing.time.monotonic", lambda: float(next(clock)))
    runs, calls = contestants("a", "b"), list[str]()
    times = timing.in_turn(runs, 9, timer_of(runs, lambda *_: True, calls), at_most=2.5)
    assert times == {"a": ([1.0, 2.0, 3.0], True), "b": ([1.0, 2.0, 3.0], True)}


@pytest.mark.parametrize(("seconds", "most"), [(2.0**-10, 16), (2.0**-5, 2)])
def test_warms_up_for_a_while_and_twice_at_least(
    seconds: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only calls move."""
    calls = list[int]()
    clock = SimpleNamespace(perf_counter=lambda: seconds * len(calls))
    monkeypatch.setattr(timing, "time", clock)
    assert timing.warm_up(lambda: calls.append(0)) == seconds
    assert len(calls) == most


# ---- what samples say ----------------------------------------------------------------------------


def test_a_timing_is_median_least_and_spread_of_the_middle_half() -> None:
    found = timing.Timing.of([4.0, 2.0, 3.0, 5.0, 1.0])
    assert (found.seconds, found.least, found.samples) == (3.0, 1.0, 5)
    assert found.spread == pytest.approx(2 / 3) and found.is_noisy
    assert timing.Timing.of([1.0]) == timing.Timing(1.0, 1.0, 0.0, 1, False)


def test_a_single_outlier_is_no_noise_and_steady_but_disturbed_is() -> None:
    assert not timing.Timing.of([1.0, 1.01, 1.02, 1.0, 9.0]).is_noisy
    assert timing.Timing.of([1.0, 1.0, 1.3, 1.3]).is_noisy
    assert timing.Timing.of([1.0] * 9, disturbed=True).is_noisy
