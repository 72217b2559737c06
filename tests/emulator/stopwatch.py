"""What a stopwatch does, told by the driver's calls: for a child of a helper with the emulator.

Its clocks, the device's and the host's, are one that only work on the device moves.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

from convtvm.measure import gpu_timing
from convtvm.measure.jobs import Limits

_MEMSET = "1e10"  # bytes a second


class Spy:
    """The driver, and the names of its functions in the order of their calls."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.driver, name)

        def called(*arguments: Any) -> int:
            self.calls.append(name.removeprefix("cu").removesuffix("_v2"))
            return int(function(*arguments))

        return called


def _work(seconds: float) -> None:
    """Let the device work for so long."""
    gpu_timing.driver().emulator_work(ctypes.c_double(seconds))


def _worked() -> float:
    now = gpu_timing.driver().emulator_now
    now.restype = ctypes.c_double
    return float(now())


def _clocked(environment: Mapping[str, str] | None = None) -> None:
    os.environ.update({"EMULATOR_CLOCK": _MEMSET, **(environment or {})})
    gpu_timing.time = SimpleNamespace(monotonic=_worked)  # type: ignore[assignment]


@dataclass(frozen=True)
class Timing:
    """Times contestants that work so long, milliseconds by name; the answer is what `time` gives,
    what the driver was asked meanwhile with the contestants' names between, and how the curtain is
    made."""

    works: Mapping[str, float]
    repeat: int = 4
    cold: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    device: ClassVar[str] = "cuda"

    def __call__(self) -> tuple[dict[str, tuple[list[float], bool]], list[str], int, int]:
        _clocked(self.environment)
        watch = gpu_timing.Stopwatch()
        watch._driver = spy = Spy(watch._driver)

        def contestant(name: str) -> Any:
            def run() -> None:
                spy.calls.append(name)
                _work(self.works[name] / 1e3)

            return run

        times = watch.time({name: contestant(name) for name in self.works}, self.repeat, self.cold)
        return times, spy.calls, watch._bytes, watch._count


@dataclass(frozen=True)
class Clock:
    """Seconds of work that bring up the clock: at first, at once again, and after a pause."""

    pause: float
    device: ClassVar[str] = "cuda"

    def __call__(self) -> list[float]:
        _clocked()
        started = _worked()
        watch = gpu_timing.Stopwatch()
        first, spent = _worked() - started, []
        for pause in (0.0, self.pause):
            _work(pause)  # of others: this watch's clock may have gone down meanwhile
            started = _worked()
            watch.time({"": lambda: None}, 3)
            spent.append(_worked() - started)
        return [first, *spent]


@dataclass(frozen=True)
class Samples:
    """As a trial is timed; the answer is the samples and how many calls they took."""

    seconds: float
    limits: Limits
    device: ClassVar[str] = "cuda"

    def __call__(self) -> tuple[list[float], bool, int]:
        _clocked()
        calls = []

        def run() -> None:
            calls.append(0)
            _work(self.seconds)

        return *gpu_timing.time_gpu(run, self.limits), len(calls)
