"""Seconds of calls on a GPU by its own clock, with the host out of the way.

Every call is queued behind a curtain, a memset that lasts longer than the call takes to enqueue,
and nothing waits for the device until the last round: it runs from one call to the next without a
break, with its clock up and, where that is wanted, with none of the call's data in the L2 cache.
Needs the driver only, and runs on the context that TVM and PyTorch share.
"""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from convtvm.errors import EnvironmentProblem, NoMemory
from convtvm.machine import gpu
from convtvm.measure.jobs import Limits
from convtvm.measure.timing import in_turn

_AWAKE = 0.5  # seconds of work that bring up the clock, which idles at a fifth of its speed
_NAP = 0.25  # seconds without work, after which it may have gone down
_CURTAIN = 250e-6  # seconds; PyTorch takes up to 100e-6 to enqueue a convolution
_MOST_CURTAINS = 16  # before one call
_MOST_BYTES = 1 << 30
_SHARE = 16  # of the free memory, one part of which the curtain may take
_IN_A_ROW = 10  # calls that share what the first of them has brought into the L2 cache
_LOOK = 3  # calls that tell how many more are worth the time
_MOST_CALLS = 20  # of a sample
_NOT_READY = 600
_NO_MEMORY = 2


def time_gpu(call: Callable[[], Any], limits: Limits) -> tuple[list[float], bool]:
    """Seconds of a call with a cold L2 cache; whether the host was never in the way.

    Each sample is the median of several calls, as many as take `limits.window`. One that is
    hopeless gets a single sample.
    """
    (first, disturbed), *_ = stopwatch().time({"": call}, _LOOK).values()
    once = statistics.median(first)
    if once > limits.hopeless:
        return [once], not disturbed
    (samples, disturbed), *_ = _samples({"": call}, once, limits).values()
    return samples, not disturbed


def race(
    runs: Mapping[str, Callable[[], Any]], limits: Limits
) -> dict[str, tuple[list[float], bool]]:
    """As `time_gpu`, of calls in turn; whether the host was in the way."""
    if not runs:
        return {}
    looks = stopwatch().time(runs, _LOOK).values()
    return _samples(runs, min(statistics.median(first) for first, _ in looks), limits)


def _samples(
    runs: Mapping[str, Callable[[], Any]], once: float, limits: Limits
) -> dict[str, tuple[list[float], bool]]:
    """Samples of each of `runs`, the fastest of which takes `once` seconds."""
    number = min(_MOST_CALLS, max(1, int(limits.window / max(once, 1e-7))))
    found = {}
    for name, (taken, disturbed) in stopwatch().time(runs, number * limits.samples).items():
        parts = [taken[i : i + number] for i in range(0, len(taken), number)]
        found[name] = [statistics.median(part) for part in parts], disturbed
    return found


class Stopwatch:
    """Times calls that enqueue work on one stream of the current device, given by its address.

    Holds a memset's buffer: 1 GiB, or less where little is free. Raises EnvironmentProblem without
    a driver, NoMemory without room for twice the L2 cache.
    """

    def __init__(self, stream: int = 0) -> None:
        self._driver = driver()
        self._stream = ctypes.c_void_p(stream)
        self._free: list[ctypes.c_void_p] = []  # events
        self._busy = -math.inf  # up to when the device had work, by the monotonic clock
        self._l2 = gpu.devices()[0].l2_bytes or 32 << 20
        self._buffer, self._size = self._allocate()
        self._bytes, self._count = self._size, 1
        self._bring_up()
        self._measure_curtain()

    def time(
        self, runs: Mapping[str, Callable[[], Any]], repeat: int, cold: bool = True
    ) -> dict[str, tuple[list[float], bool]]:
        """Seconds of `repeat` calls of each contestant, in turn; whether the host was in the way of
        so many that those had to be used too.

        Without `cold`, a figure is the mean of a few calls in a row after one of the same.
        """
        for run in runs.values():  # what is compiled, loaded or allocated at the first calls
            run()
            run()
        self.wait()
        self._bring_up()
        ahead: dict[int, int] = defaultdict(lambda: self._count)  # curtains before a call
        taken: list[tuple[ctypes.c_void_p, ctypes.c_void_p]] = []
        calls = 1 if cold else _IN_A_ROW

        def queue(run: Callable[[], Any]) -> tuple[int, bool]:
            start, end = self._event(), self._event()
            for _ in range(ahead[id(run)]):
                self._memset()
            if not cold:
                run()
            self._do("cuEventRecord", start, self._stream)
            for _ in range(calls):
                run()
            self._do("cuEventRecord", end, self._stream)
            taken.append((start, end))
            # The device may not have come to the call before all of it was queued.
            late = self._driver.cuEventQuery(start) != _NOT_READY
            if late:
                ahead[id(run)] = min(_MOST_CURTAINS, 2 * ahead[id(run)])
            return len(taken) - 1, not late

        numbers = in_turn(runs, repeat, queue)
        self.wait()
        self._busy = time.monotonic()
        seconds = [self._between(*events) / calls for events in taken]
        for events in taken:
            self._free += events
        return {key: ([seconds[i] for i in mine], late) for key, (mine, late) in numbers.items()}

    def wait(self) -> None:
        """Until the device has done what the stream holds."""
        self._do("cuStreamSynchronize", self._stream)

    def _bring_up(self) -> None:
        """Keep the device busy until its clock is up, if it may be down."""
        idle = time.monotonic() - self._busy
        end = time.monotonic() + (min(idle, _AWAKE) if idle > _NAP else 0.0)
        while time.monotonic() < end:
            self._memset()
            self.wait()
        self._busy = time.monotonic()

    def _measure_curtain(self) -> None:
        """How many bytes, and how often, take as long as a curtain has to last; no fewer than wipe
        the L2 cache."""
        pairs = []
        for _ in range(_LOOK):
            start, end = self._event(), self._event()
            self._do("cuEventRecord", start, self._stream)
            self._memset()
            self._do("cuEventRecord", end, self._stream)
            pairs.append((start, end))
        self.wait()
        speed = self._size / max(1e-7, min(self._between(*pair) for pair in pairs))
        self._free += [event for pair in pairs for event in pair]
        needed = max(_CURTAIN * speed, 2.0 * self._l2)
        self._count = min(_MOST_CURTAINS, math.ceil(needed / self._size))
        self._bytes = min(self._size, math.ceil(needed / self._count))

    def _allocate(self) -> tuple[ctypes.c_void_p, int]:
        left, total, buffer = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p()
        self._do("cuMemGetInfo_v2", ctypes.byref(left), ctypes.byref(total))
        size = max(2 * self._l2, min(_MOST_BYTES, left.value // _SHARE))
        while status := self._driver.cuMemAlloc_v2(ctypes.byref(buffer), ctypes.c_size_t(size)):
            if status != _NO_MEMORY:
                self._check("cuMemAlloc", status)
            if size == 2 * self._l2:
                raise NoMemory(f"no memory for {size:,} bytes on the GPU, {left.value:,} are free")
            size = max(2 * self._l2, size // 2)
        return buffer, size

    def _memset(self) -> None:
        byte = ctypes.c_ubyte(0)
        self._do("cuMemsetD8Async", self._buffer, byte, ctypes.c_size_t(self._bytes), self._stream)

    def _event(self) -> ctypes.c_void_p:
        if self._free:
            return self._free.pop()
        event = ctypes.c_void_p()
        self._do("cuEventCreate", ctypes.byref(event), 0)
        return event

    def _between(self, start: ctypes.c_void_p, end: ctypes.c_void_p) -> float:
        milliseconds = ctypes.c_float()
        self._do("cuEventElapsedTime", ctypes.byref(milliseconds), start, end)
        return milliseconds.value / 1e3

    def _do(self, function: str, *arguments: Any) -> None:
        self._check(function, getattr(self._driver, function)(*arguments))

    def _check(self, function: str, status: int) -> None:
        if status:
            name = ctypes.c_char_p()
            self._driver.cuGetErrorName(status, ctypes.byref(name))
            raise RuntimeError(f"{function}: {(name.value or b'').decode()} ({status})")


@cache
def stopwatch(stream: int = 0) -> Stopwatch:
    """The stopwatch of a stream, kept for the process, and with it the clock that is up."""
    return Stopwatch(stream)


@cache
def driver() -> ctypes.CDLL:
    """The CUDA driver, with a context on the first device in the calling thread.

    Raises EnvironmentProblem if there is none.
    """
    if not gpu.devices():
        raise EnvironmentProblem("no NVIDIA GPU here, or no driver for it (libcuda.so.1)")
    library = ctypes.CDLL("libcuda.so.1")
    context = ctypes.c_void_p()
    library.cuCtxGetCurrent(ctypes.byref(context))
    if not context.value:  # the one that the run time, TVM and PyTorch use
        status = library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        status = status or library.cuCtxSetCurrent(context)
        if status:
            raise EnvironmentProblem(f"no context on the GPU: the driver says {status}")
    return library
