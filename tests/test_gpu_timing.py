"""The stopwatch of GPUs, on the emulated driver: what it asks of the device, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
from emulator import emulated
from emulator.stopwatch import Clock, Samples, Timing
from support import LONG

from convtvm.errors import EnvironmentProblem
from convtvm.machine import gpu
from convtvm.measure import gpu_timing
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import Limits

pytestmark = pytest.mark.emulated
L2 = 1 << 20  # the emulated GPU's


@pytest.fixture(scope="module")
def helper() -> Iterator[Zygote]:
    with emulated() as zygote:
        yield zygote


def answer(helper: Zygote, job: Any) -> Any:
    ((_, outcome),) = helper.call("run", [job], Limits(timeout=LONG))
    assert not outcome.kind, outcome
    return outcome.value


def rounds_of(calls: list[str]) -> list[str]:
    """What was asked once the contestants were warmed up and the clock was up."""
    asked = [c for c in calls if c not in ("EventCreate", "EventElapsedTime")]
    waits = [i for i, c in enumerate(asked) if c == "StreamSynchronize"]
    return asked[max(i for i in waits if i < asked.index("EventRecord")) + 1 :]


def test_calls_wait_behind_a_memset_and_nobody_waits_for_them(helper: Zygote) -> None:
    job = Timing({"a": 2.0, "b": 5.0})
    times, calls, size, count = answer(helper, job)
    assert size * count >= 2 * L2
    *asked, last = rounds_of(calls)
    assert last == "StreamSynchronize" and last not in asked
    names = asked[count + 1 :: count + 4]
    behind = ["MemsetD8Async"] * count
    steps = [[*behind, "EventRecord", name, "EventRecord", "EventQuery"] for name in names]
    assert asked == list(chain(*steps))
    turns = [tuple(names[i : i + 2]) for i in range(0, 8, 2)]
    assert all(sorted(turn) == ["a", "b"] for turn in turns) and len(set(turns)) > 1
    for name, (taken, disturbed) in times.items():
        assert taken == pytest.approx([job.works[name] / 1e3] * 4) and not disturbed


def test_warm_calls_are_several_in_a_row(helper: Zygote) -> None:
    times, calls, _, count = answer(helper, Timing({"a": 2.0}, repeat=3, cold=False))
    row = ["EventRecord", *["a"] * gpu_timing._IN_A_ROW, "EventRecord", "EventQuery"]
    once = [*["MemsetD8Async"] * count, "a", *row]
    assert rounds_of(calls) == [*once * 3, "StreamSynchronize"]
    taken, disturbed = times["a"]
    assert taken == pytest.approx([0.002] * 3) and not disturbed


def test_a_device_that_waits_for_the_host_is_seen(helper: Zygote) -> None:
    """Curtains grow, to a limit, and figures are marked where that does not help."""
    job = Timing({"a": 0.1}, environment={"EMULATOR_IDLE": "1"})
    times, calls, _, count = answer(helper, job)
    taken, disturbed = times["a"]
    assert disturbed and len(taken) > job.repeat
    most = gpu_timing._MOST_CURTAINS
    curtains = [round.count("M") for round in "".join(c[0] for c in rounds_of(calls)).split("a")]
    assert curtains[: len(taken)] == [min(most, count * 2**i) for i in range(len(taken))]


def test_the_clock_is_brought_up_once_and_after_a_pause(helper: Zygote) -> None:
    first, again, later = answer(helper, Clock(0.4))
    assert first >= gpu_timing._AWAKE
    assert 0 < again < gpu_timing._NAP / 10
    assert 0.4 <= later < gpu_timing._AWAKE  # as long as the pause was


@pytest.mark.parametrize(("hopeless", "samples"), [(math.inf, 5), (1e-4, 1)])
def test_a_trial_has_samples_unless_it_is_hopeless(
    helper: Zygote, hopeless: float, samples: int
) -> None:
    limits = Limits(window=0.0035, samples=5, hopeless=hopeless)
    taken, clean, calls = answer(helper, Samples(0.001, limits))
    assert clean and taken == pytest.approx([0.001] * samples)
    assert calls == (5 + 2 + 5 * 3 if samples > 1 else 5)


def test_the_curtain_is_smaller_where_memory_is_short(helper: Zygote) -> None:
    roomy, short = 64 << 20, 3 << 20
    for memory, most in ((roomy, roomy // 16), (short, 2 * L2)):
        job = Timing({"a": 0.1}, environment={"EMULATOR_MEMORY": str(memory)})
        _, _, size, count = answer(helper, job)
        assert size <= most and size * count >= 2 * L2
    (_, outcome), *_ = helper.call(
        "run", [Timing({}, environment={"EMULATOR_MEMORY": str(L2)})], Limits(timeout=LONG)
    )
    assert "no memory for 2,097,152 bytes on the GPU" in outcome.message


@pytest.mark.skipif(bool(gpu.devices()), reason="this machine has a GPU")
def test_no_driver_is_one_clear_error() -> None:
    with pytest.raises(EnvironmentProblem, match="no NVIDIA GPU here, or no driver for it"):
        gpu_timing.Stopwatch()
