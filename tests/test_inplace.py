"""Kernels that pad while they load: no workspace, nothing read outside a tensor, and always there
for a workspace limit of 0."""

from __future__ import annotations

import ctypes
import mmap
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import tvm_ffi
from support import Array, Unoptimised, kernel_of, pack_weight, record_of

from convtvm.kernels import codegen, lowering
from convtvm.kernels.algorithms import ALGORITHMS, applicable
from convtvm.kernels.task import Task, tasks_of
from convtvm.kernels.workspace import STACK_BYTES
from convtvm.library.build import compile
from convtvm.library.choices import choose, keep_some
from convtvm.machine.targets import resolve
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import ConvWorkload

make = ConvWorkload.make
LAYOUTS = ("NCHW", "NHWC", "NCHW4c")
NAMES = [name for name in ALGORITHMS if name.endswith(":inplace")]
# Each with copies that are too large for the stack.
SHAPES = {
    "3x3": make(16, 24, 20, kh=3, padding=1),
    "ends of 5x5, stride 2, batch 2": make(9, 17, 19, 23, 5, stride=2, padding=(2, 1, 0, 3), n=2),
    "dilation 3, groups": make(12, 8, 21, kh=3, dilation=3, padding=3, groups=2),
    "padded 1x1": make(16, 8, 13, padding=1),
    "one output channel": make(16, 1, 20, kh=3, padding=1),
    "depthwise": make(24, 24, 30, kh=3, padding=1, groups=24),
    "depthwise, stride 2": make(20, 20, 47, kh=3, stride=2, padding=1, groups=20),
    "depthwise, unpadded 5x5": make(24, 24, 50, kh=5, groups=24),
    "depthwise, two outputs, dilation 2": make(6, 12, 60, 31, 3, dilation=2, padding=2, groups=6),
    "depthwise, row of an image": make(4, 4, 3, 900, 3, 5, padding=(1, 2), groups=4),
}
any_shape = pytest.mark.parametrize("w", SHAPES.values(), ids=SHAPES)
any_layout = pytest.mark.parametrize("layout", LAYOUTS)


def inplace(w: ConvWorkload, layout: str) -> Task:
    (name,) = [a.name for a in applicable(w) if a.name in NAMES]
    return Task(w, name, resolve("native", 1), layout)


@any_layout
@any_shape
def test_allocates_nothing(w: ConvWorkload, layout: str) -> None:
    task = inplace(w, layout)
    for decisions in [task.space.default, *random.Random(w.key).sample(task.space.points, 2)]:
        lowered = lowering.lower(task.instantiate(decisions), task.target.tvm)
        assert codegen.workspace_bytes(lowered, 2) == 0, decisions
        assert task.algorithm.workspace_bytes(w, layout, task.device, decisions) == 0


@pytest.mark.parametrize(
    ("w", "reason"),
    [
        (make(16, 8, 20, kh=3), "no window reaches into padding"),
        (make(8, 8, 9, kh=3, padding=1), f"direct has its padded copy, up to {STACK_BYTES} bytes"),
    ],
)
def test_inapplicable(w: ConvWorkload, reason: str) -> None:
    message = ALGORITHMS["direct:inplace"].inapplicable(w)
    assert message is not None and message.startswith(reason)


# ---- reading outside -----------------------------------------------------------------------------

_PAGE = mmap.PAGESIZE


def fenced(array: Array, at_end: bool) -> Array:
    """A copy between two pages that nobody may touch, next to the first or the second."""
    size = -(-array.nbytes // _PAGE) * _PAGE
    room = mmap.mmap(-1, size + 2 * _PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    start = _PAGE + (size - array.nbytes if at_end else 0)
    copy = np.frombuffer(room, array.dtype, array.size, start).reshape(array.shape)
    copy[...] = array
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for page in (address, address + _PAGE + size):
        assert protect(ctypes.c_void_p(page), _PAGE, 0) == 0
    return copy


def run_fenced(task: Task, decisions: dict[str, int], at_end: bool, opt_level: int) -> bool:
    """Whether the kernel's answer is right with every operand next to a fence."""
    data, weight, bias = random_inputs(task.workload, 5, task.layout, "integer")
    out = np.full(task.workload.out_shape(task.layout), np.nan, np.float32)
    arrays = [fenced(a, at_end) for a in (data, pack_weight(task, weight), bias, out)]
    kernel_of(task, decisions, opt_level)(*map(tvm_ffi.from_dlpack, arrays))
    reference = conv2d_reference(task.workload, data, weight, bias, task.layout)
    return np.array_equal(arrays[3], reference)


@any_layout
@any_shape
def test_reads_nothing_outside(w: ConvWorkload, layout: str) -> None:
    """In a process of its own: what does dies. LLVM optimises the default decisions, each shape's
    in one layout: it adds no loads that might fault."""
    task = inplace(w, layout)
    drawn = random.Random(w.key).choice(task.space.points)
    turn = (list(SHAPES.values()).index(w) + LAYOUTS.index(layout)) % len(LAYOUTS)
    pack_weight(task, random_inputs(w, 5)[1])  # compiled here, once for all layouts
    with ProcessPoolExecutor(1, get_context("fork")) as child:
        for decisions, at_end, level in (
            (task.space.default, True, 0 if turn else 3),
            (drawn, False, 0),
        ):
            assert child.submit(run_fenced, task, decisions, at_end, level).result(), decisions


# ---- in a library --------------------------------------------------------------------------------


WORKLOADS = [
    *(SHAPES[name] for name in ("3x3", "padded 1x1", "depthwise, stride 2")),
    make(48, 24, 13),  # pixels that do not fill the tiles of direct:pointwise, which copies them
    make(8, 8, 40, kh=3),
    make(4, 4, 5, kh=3, padding=1),
    make(2, 2, 60, kh=55, groups=2, padding=1),  # windows that outgrow the stack
]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_limit_of_nothing_has_a_candidate(layout: str) -> None:
    target = Unoptimised.native()
    library = compile(WORKLOADS, target, logs=[], layout=layout, algorithms=["direct"])
    for w in WORKLOADS:
        data, weight, bias = random_inputs(w, 5, layout, "integer")
        plan = library.plan(w, weight, bias, workspace_limit=0)
        assert plan.workspace_bytes == 0
        assert np.array_equal(plan(data), conv2d_reference(w, data, weight, bias, layout))


@pytest.mark.parametrize("keep", ["pareto", "all"])
@pytest.mark.parametrize("w", WORKLOADS, ids=str)
def test_what_was_tuned_leaves_it_in(w: ConvWorkload, keep: str) -> None:
    """However fast all others are, and whether or not it was tuned itself."""
    target = resolve("native", 2)
    for layout in ("NCHW", "NHWC"):
        tasks = tasks_of([w], target, layout)
        draw = random.Random(f"{w.key} {layout}")
        for _ in range(20):
            made = []
            for task in tasks:
                d = draw.choice([task.space.default, draw.choice(task.space.points)])
                workspace = task.algorithm.workspace_bytes(w, layout, task.device, d)
                made.append(record_of(task, draw.random(), draw.random(), workspace, d))
            known = draw.sample(made, draw.randrange(len(made) + 1))
            kept = keep_some(choose(tasks, known), keep)
            stated = (
                c.task.algorithm.workspace_bytes(w, layout, c.task.device, c.decisions)
                for c in kept
            )
            assert 0 in stated
