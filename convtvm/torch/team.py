"""PyTorch's own threads, for the convolutions of its graphs.

PyTorch's OpenMP waits for work by spinning, for milliseconds after each of its loops, and convtvm's
workers spin too: each on the cores that the other wants. One team of threads for both never waits
for a core.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from convtvm.dispatch.threads import Team

# at::get_num_threads(): omp_get_max_threads after torch.set_num_threads was applied to the thread.
_LIMIT = "_ZN2at15get_num_threadsEv"


@cache
def pytorchs() -> Team | None:
    """The OpenMP that PyTorch's loops run in, None if it has none that can be asked: LLVM's and
    Intel's have the functions of GCC's too."""
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        pytorch = ctypes.CDLL(str(path), os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return None
    # The order in which PyTorch's own calls were bound: what is global first, as with LD_PRELOAD.
    found = [ctypes.CDLL(None), pytorch]
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "omp_in_parallel")
    addresses = [_address(found, name) for name in (*names, _LIMIT)]
    return None if 0 in addresses else Team(*addresses)


def _address(libraries: Sequence[ctypes.CDLL], name: str) -> int:
    """Of a function in the first library that has it, 0 if none has."""
    for library in libraries:
        if function := getattr(library, name, None):
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0
