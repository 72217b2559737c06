"""What a stopwatch does, told by the driver's calls: for a child of a helper with the emulator."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from convtvm.measure import gpu_timing
from convtvm.measure.jobs import Limits


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


@dataclass(frozen=True)
class Timing:
    """Times sleeping contestants, milliseconds by name; the answer is what `time` gives, what the
    driver was asked meanwhile with the contestants' names between, and how the curtain is made."""

    sleeps: Mapping[str, float]
    repeat: int = 4
    cold: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    device: ClassVar[str] = "cuda"

    def __call__(self) -> tuple[dict[str, tuple[list[float], bool]], list[str], int, int]:
        os.environ.update(self.environment)
        watch = gpu_timing.Stopwatch()
        watch._driver = spy = Spy(watch._driver)

        def contestant(name: str) -> Any:
            def run() -> None:
                spy.calls.append(name)
                time.sleep(self.sleeps[name] / 1e3)

            return run

        times = watch.time({name: contestant(name) for name in self.sleeps}, self.repeat, self.cold)
        return times, spy.calls, watch._bytes, watch._count


@dataclass(frozen=True)
class Clock:
    """Seconds of work that bring up the clock: at first, at once again, and after a pause."""

    pause: float
    device: ClassVar[str] = "cuda"

    def __call__(self) -> list[float]:
        started = time.monotonic()
        watch = gpu_timing.Stopwatch()
        first, spent = time.monotonic() - started, []
        for pause in (0.0, self.pause):
            time.sleep(pause)
            started = time.monotonic()
            watch.time({"": lambda: None}, 3)
            spent.append(time.monotonic() - started)
        return [first, *spent]


@dataclass(frozen=True)
class Samples:
    """As a trial is timed; the answer is the samples and how many calls they took."""

    seconds: float
    limits: Limits
    device: ClassVar[str] = "cuda"

    def __call__(self) -> tuple[list[float], bool, int]:
        calls = []

        def run() -> None:
            calls.append(0)
            time.sleep(self.seconds)

        return *gpu_timing.time_gpu(run, self.limits), len(calls)
