"""Memory that a model reads at every call, in pages of 2 MiB where the system has them.

Weights of 100 MB in pages of 4 KiB are 25,000 walks through page tables at every call, and the
prefetchers of a core stop at each page's end.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

from convtvm.errors import NoMemory
from convtvm.problem.reference import Array, aligned_empty

LARGE_PAGE = 2 << 20  # bytes


def paged_empty(size: int) -> Array:
    """`size` bytes, aligned for every dtype; zeros, if there are enough for a large page.

    Raises NoMemory.
    """
    if size < LARGE_PAGE:
        return aligned_empty((size,), np.uint8)
    whole_pages = -(-size // LARGE_PAGE) * LARGE_PAGE
    try:
        mapped = mmap.mmap(
            -1, whole_pages + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
    except (OSError, OverflowError):
        raise NoMemory(f"no memory for {size:,} bytes of a model") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(mapped, np.uint8)
    start = -whole.ctypes.data % LARGE_PAGE
    return whole[start : start + size]
