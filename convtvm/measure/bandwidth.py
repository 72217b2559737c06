"""The machine's memory bandwidth, measured: two long arrays added into a third (STREAM's Add)."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_BYTES = 1 << 27  # of each array: beyond any cache, with a third of a gigabyte in all


def measure_bandwidth(threads: int, samples: int = 5) -> float:
    """Bytes a second that so many threads move between memory and their cores; the fastest of
    `samples` timings. What a store reads first does not count, as STREAM has it."""
    a, b, c = (np.full(_BYTES // 4, value, np.float32) for value in (1.0, 2.0, 0.0))
    cuts = np.linspace(0, a.size, threads + 1, dtype=int)
    parts = [slice(*ends) for ends in itertools.pairwise(cuts)]

    def add(part: slice) -> None:
        np.add(a[part], b[part], out=c[part])  # lets go of the interpreter meanwhile

    with ThreadPoolExecutor(threads) as pool:

        def sample() -> float:
            started = time.perf_counter()
            list(pool.map(add, parts))
            return time.perf_counter() - started

        sample()
        return 3 * _BYTES / min(sample() for _ in range(samples))
