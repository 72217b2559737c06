"""How fast the cores are just now, by a short run of known work.

A virtual machine's core shares its execution units with strangers: its speed halves for
milliseconds, and no counter of the guest shows it. What is known to take 10 µs tells.
"""

from __future__ import annotations

import math
import mmap
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tvm
from tvm import te
from tvm.s_tir import Schedule

from convtvm.dispatch import runtime
from convtvm.kernels import codegen, lowering
from convtvm.machine.targets import CompileTarget, resolve

DEPTH = 256  # terms of a sum
_PRODUCTS = 16  # of the known work: some 10 µs
_SLACK = 1.1  # times the best that still counts as full speed
_LOOK = 0.05  # seconds to look for it first: full speed may come and go within milliseconds
_MOST_THREADS = 256

# The best time by number of threads, shared with the processes that are forked from this one.
_best = mmap.mmap(-1, 8 * _MOST_THREADS)


@dataclass(frozen=True)
class Products:
    """Known work: what does it, the floating-point operations of a call, and the code, which has
    to stay loaded."""

    image: runtime.Image
    run: Callable[[], Any]
    flops: float


def products(target: CompileTarget, repeats: int) -> Products:
    """Every thread multiplies, `repeats` times, two matrices that stay in L1, all in registers.

    Compiled, linked and loaded as kernels are, and run by the same workers.
    """
    # As many accumulators as fit with their operands: 6 x 2 of 16 registers, 14 x 2 of 32.
    rows, vectors = (14, 2) if target.registers >= 32 else (6, 2)
    columns = vectors * target.lanes
    shape = (target.threads, repeats, rows, columns)
    a = te.placeholder((DEPTH, rows), name="a")
    b = te.placeholder((DEPTH, columns), name="b")
    k = te.reduce_axis((0, DEPTH), name="k")
    product = te.compute(
        shape, lambda t, r, i, j: te.sum(a[k, i] * b[k, j], axis=k), name="product"
    )
    sch = Schedule(te.create_prim_func([a, b, product]))
    block = sch.get_sblock("product")
    thread, _, i, j, kk = sch.get_loops(block)
    jo, ji = sch.split(j, [vectors, target.lanes])
    sch.reorder(kk, i, jo, ji)
    sch.parallel(thread)
    sch.vectorize(ji)
    sch.unroll(i)
    sch.unroll(jo)
    init = sch.get_loops(sch.decompose_reduction(block, kk))
    sch.vectorize(init[-1])
    sch.unroll(init[-2])
    sch.unroll(init[-3])
    compiled = codegen.compile_lowered(lowering.lower(sch.mod, target.tvm), target.tvm)
    with TemporaryDirectory() as folder:
        code = Path(folder, "products.o"), Path(folder, "products.so")
        codegen.write_object(compiled, code[0])
        codegen.link_objects([code[0]], code[1], target)
        image = runtime.Image(code[1].read_bytes(), target.threads)
    args = [tvm.runtime.tensor(np.ones((DEPTH, n), np.float32)) for n in (rows, columns)]
    args.append(tvm.runtime.empty(shape, "float32"))
    flops = 2.0 * target.threads * repeats * rows * columns * DEPTH
    return Products(image, partial(image["main"], *args), flops)


class Pace:
    """Tells full speed from less; full is the best seen by this process and its relatives."""

    def __init__(self, work: Callable[[], None], threads: int = 1) -> None:
        self._work, self._at = work, 8 * (min(threads, _MOST_THREADS) - 1)
        enough = time.perf_counter() + _LOOK
        while time.perf_counter() < enough:
            self.is_full()

    @property
    def best(self) -> float:
        """Seconds of the work at its fastest, infinite before the first run."""
        return float(struct.unpack_from("d", _best, self._at)[0]) or math.inf

    def is_full(self) -> bool:
        """Run the work once: whether the cores are as fast as they have been."""
        started = time.perf_counter()
        self._work()
        seconds = time.perf_counter() - started
        best = self.best
        if seconds < best:
            struct.pack_into("d", _best, self._at, seconds)
        return seconds <= _SLACK * best

    def wait(self, seconds: float) -> bool:
        """Run the work until the cores are at full speed; False if they are not in that time."""
        deadline = time.perf_counter() + seconds
        while not self.is_full():
            if time.perf_counter() >= deadline:
                return False
        return True


@cache
def pace(threads: int) -> Pace:
    """The pace of `threads` cores, found by the first call in a process."""
    return Pace(known_work(threads).run, threads)


@cache
def known_work(threads: int) -> Products:
    """The work on `threads` cores of this machine; compiles, but runs nothing by itself."""
    return products(resolve("native", threads), _PRODUCTS)
