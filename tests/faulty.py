"""A template whose candidates crash, hang, lie and eat memory, while they are built or when they
run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from types import MappingProxyType

import tvm
from support import DEEDS
from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize

from convtvm.kernels.task import Task
from schedules.knobs import Decisions, Rules, Space

_TERABYTE = 1 << 40


def _call(name: str, *args: object) -> tirx.Stmt:
    """A call of the C library."""
    return tirx.Evaluate(tirx.call_extern("int32", name, *args))


def _zeros(func: tirx.PrimFunc) -> tirx.Stmt:
    """What clears the output, after everything else."""
    out = func.params[3]
    size = 4 * math.prod(int(extent) for extent in out.shape)
    first = tirx.address_of(tirx.BufferLoad(out, [0] * len(out.shape)))
    return _call("memset", first, 0, tirx.const(size, "int64"))


def _huge(func: tirx.PrimFunc) -> tirx.Stmt:
    """Write the ends of more memory than a candidate gets."""
    block = tirx.call_extern("handle", "malloc", tirx.const(_TERABYTE, "int64"))
    return _call("memset", block, 1, tirx.const(_TERABYTE, "int64"))


# What is done besides the convolution when the kernel runs; `lie` comes after it, the rest before.
RUN_DEEDS: dict[str, Callable[[tirx.PrimFunc], tirx.Stmt]] = {
    "segfault": lambda _: _call("raise", 11),
    "abort": lambda _: _call("abort"),
    "exit": lambda _: _call("_exit", 3),
    "hang": lambda _: _call("sleep", 1000),
    "print": lambda _: _call("puts", "garbage of a kernel"),
    "memory": _huge,
    "lie": _zeros,
}
BUILD_DEEDS = ("segfault", "nothing", "abort", "exit", "hang", "memory", "raise", "print")
# By decision: (deed while it is built, deed when it runs). The default decision is the first.
CANDIDATES = [(deed, "") for deed in BUILD_DEEDS] + [("nothing", deed) for deed in RUN_DEEDS]


class _Deeds(Rules):
    knobs = MappingProxyType({"deed": tuple(range(len(CANDIDATES)))})

    def cost(self, d: Decisions) -> float:
        return float(d["deed"])


class Faulty(Task):
    """A task with one knob, `deed`, an index into CANDIDATES; all use the same schedule."""

    @cached_property
    def space(self) -> Space:
        return Space(_Deeds())

    def instantiate(self, decisions: Decisions) -> tvm.IRModule:
        while_built, when_run = CANDIDATES[decisions["deed"]]
        DEEDS[while_built]()
        whole = Task(self.workload, self.algorithm_name, self.target, self.layout)
        func = whole.instantiate(whole.space.default)["main"]
        if when_run:
            func = _with(func, RUN_DEEDS[when_run](func), last=when_run == "lie")
        return tvm.IRModule({"main": func})


def _with(func: tirx.PrimFunc, deed: tirx.Stmt, last: bool) -> tirx.PrimFunc:
    root = func.body.block
    steps = [root.body, deed] if last else [deed, root.body]
    body = SBlock(
        root.iter_vars,
        root.reads,
        root.writes,
        root.name_hint,
        tirx.SeqStmt(steps),
        root.init,
        root.alloc_buffers,
        root.match_buffers,
        root.annotations,
    )
    return func.with_body(SBlockRealize([], True, body))
