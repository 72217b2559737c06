"""The loop over steps whose copies run ahead of their use: one body for all steps, one barrier.

TVM's pipeline of s stages has s - 1 steps before the loop, which only copy, and s - 1 behind it,
which only compute, each written out; and a step waits twice for the other threads of its block,
before its copy overwrites what they have read and before it reads what they have copied. Here the
loop goes on to the last step, past which copies are left out, but not their (empty) groups, so that
a number tells which have arrived; and a step begins with its only barrier:

    for k in range(n):
        wait until all but the last s - 2 groups of copies have arrived; barrier
        if k < n - (s - 1): copy step k + s - 1          # where step k - 1 was
        compute step k

Whoever passes the barrier has computed step k - 1, so that its place may be overwritten. Copies
through registers (convtvm.kernels.cuda.gathers) fetch before step k is computed, and store after.
"""

from __future__ import annotations

import itertools
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.tirx import AttrStmt, BufferStore, For, ForKind, IfThenElse, IntImm, SeqStmt

from convtvm.kernels.cuda.copies import COPY
from convtvm.kernels.cuda.gathers import Gather
from convtvm.kernels.lowering.loops import sequence_of

# TVM's attributes: copies of one group, and what needs that groups have arrived.
_COMMIT = "async_commit_queue_scope"
_WAIT = "async_wait_queue_scope"
_IN_FLIGHT = "async_wait_inflight_count"
_STAGE_WRITE = "double_buffer_write"  # to TVM: no thread reads this place before the next barrier
_BEHIND = "convtvm.behind"  # ours: of what belongs behind the rest of a step


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.FoldPipeline")
def fold(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func`, its pipelines as one loop each. Comes before anything is simplified under the ranges
    of the loops."""

    def on_sequence(seq: SeqStmt) -> Any:
        stmts = list(seq.seq)
        for at, (loop, drain) in enumerate(itertools.pairwise(stmts)):
            folded = _folded(loop, drain)
            if folded is not None:
                return sequence_of([*stmts[:at], folded, *stmts[at + 2 :]])
        return seq

    return tvm_ffi.structural_map(func, [(SeqStmt, on_sequence)], order="post")


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.StoreBehind")
def store_behind(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func`, where what a folded loop stores from registers comes last in a step. TVM would have
    threads wait there for those that still read another stage, so this is done behind its back."""

    def on_sequence(seq: SeqStmt) -> Any:
        last = [stmt.body for stmt in seq.seq if _is(stmt, _BEHIND)]
        first = [stmt for stmt in seq.seq if not _is(stmt, _BEHIND)]
        return sequence_of([*first, *last]) if last else seq

    return tvm_ffi.structural_map(func, [(SeqStmt, on_sequence)], order="post")


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.MarkStages")
def mark_stages(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    """`func`, where the copies of a folded loop say that they write where nobody reads."""

    def on_copy(attr: AttrStmt) -> AttrStmt:
        if attr.attr_key != COPY:
            return attr
        stores: list[BufferStore] = []
        tvm_ffi.structural_walk(attr.body, (BufferStore, stores.append), order="pre")
        (tile, *_) = (s.buffer for s in stores if str(s.buffer.scope()).startswith("shared"))
        return AttrStmt(tile, _STAGE_WRITE, tirx.const(1, "int32"), attr)

    def on_step(attr: AttrStmt) -> AttrStmt:
        if attr.attr_key != _WAIT:
            return attr
        return tvm_ffi.structural_map(attr, [(AttrStmt, on_copy)], order="post")

    return tvm_ffi.structural_map(func, [(AttrStmt, on_step)], order="post")


def _folded(loop: Any, drain: Any) -> For | None:
    """The loop that goes through the steps of a pipeline's loop and of its drain; None for other
    statements."""
    if not isinstance(loop, For) or not isinstance(loop.body, SeqStmt) or len(loop.body.seq) != 2:
        return None
    copies, step = map(_unguarded, loop.body.seq)
    if not (_is(copies, _COMMIT) and _is(step, _WAIT) and _is(step.body, _IN_FLIGHT)):
        return None
    unrolled = isinstance(drain, For) and drain.kind == ForKind.UNROLLED
    rest, count = (drain.body, int(drain.extent)) if unrolled else (drain, 1)
    if not (_is(_unguarded(rest), _WAIT) and isinstance(loop.extent, IntImm)):
        return None
    copied = int(loop.extent)  # steps whose loop still copies
    started, gathers = _started(copies.body)

    def ahead(stmt: Any) -> IfThenElse:
        return IfThenElse(loop.loop_var < copied, stmt, None)

    copying = AttrStmt(copies.node, _COMMIT, copies.value, ahead(started))
    registers = [gather.registers for gather in gathers]
    one = tirx.const(1, "int32")
    stores = [AttrStmt(step.node, _BEHIND, one, ahead(gather.store)) for gather in gathers]
    both = sequence_of([*registers, copying, *stores, step.body.body])
    in_flight = AttrStmt(step.body.node, _IN_FLIGHT, tirx.const(count - 1, "int32"), both)
    body = AttrStmt(step.node, _WAIT, step.value, in_flight)
    return For(
        loop.loop_var,
        loop.min,
        tirx.const(copied + count, "int32"),
        loop.kind,
        body,
        loop.thread_binding,
        loop.annotations,
    )


def _started(copies: Any) -> tuple[Any, list[Gather]]:
    """Copies, of which those through registers only fetch, and the parts of these."""
    gathers: list[Gather] = []

    def on_copy(attr: AttrStmt) -> Any:
        gather = Gather.within(attr) if attr.attr_key == COPY else None
        if gather is None:
            return attr
        gathers.append(gather)
        return gather.fetch.body

    return tvm_ffi.structural_map(copies, [(AttrStmt, on_copy)], order="post"), gathers


def _unguarded(stmt: Any) -> Any:
    """`stmt` without the test whether its step exists, which TVM's ranges see to."""
    return stmt.then_case if isinstance(stmt, IfThenElse) and stmt.else_case is None else stmt


def _is(stmt: Any, key: str) -> bool:
    return isinstance(stmt, AttrStmt) and stmt.attr_key == key
