"""What algorithms state that they multiply and add, against the lowered kernels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import tvm
import tvm_ffi
from tvm import tirx

from convtvm.kernels import lowering
from convtvm.kernels.algorithms import ALGORITHMS
from convtvm.kernels.lowering.loops import iterations, put, uses
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.problem.workload import LAYOUTS, ConvWorkload

make = ConvWorkload.make


def arithmetic(
    stmt: Any, loops: tuple[tirx.For, ...] = (), tests: tuple[Any, ...] = ()
) -> Counter[str]:
    """Floating-point multiplications and additions that a lowered statement executes, inside
    `loops` and where `tests` hold."""
    if isinstance(stmt, tirx.SeqStmt):
        return sum((arithmetic(child, loops, tests) for child in stmt.seq), Counter())
    if isinstance(stmt, tirx.For):
        return arithmetic(stmt.body, (*loops, stmt), tests)
    if isinstance(stmt, tirx.AttrStmt):
        return arithmetic(stmt.body, loops, tests)
    if isinstance(stmt, (tirx.BufferStore, tirx.Bind)):
        found = operations(stmt.value)
        times = iterations_where(loops, tests) if found else 0
        return Counter({k: v * times for k, v in found.items()})
    if isinstance(stmt, tirx.IfThenElse):
        otherwise = Counter()
        if stmt.else_case is not None:
            otherwise = arithmetic(stmt.else_case, loops, (*tests, tirx.Not(stmt.condition)))
        return arithmetic(stmt.then_case, loops, (*tests, stmt.condition)) + otherwise
    return Counter()


def iterations_where(loops: tuple[tirx.For, ...], tests: tuple[Any, ...]) -> int:
    """How many iterations of nested loops pass all tests."""
    tested = [o for o in loops if any(uses(test, o.loop_var) for test in tests)]
    free = math.prod(int(o.extent) for o in loops if o not in tested)
    passed = (
        all(bool(put(test, at)) for test in tests) if tests else True for at in iterations(tested)
    )
    return free * sum(passed)


def operations(node: Any) -> Counter[str]:
    """Those written in `node`, each lane of a vector one."""
    found: Counter[str] = Counter()

    def note(name: str) -> Callable[[Any], None]:
        def on_node(node: Any) -> None:
            dtype = tvm.DataType(str(node.ty.dtype))
            if str(dtype).startswith("float"):
                found[name] += dtype.lanes

        return on_node

    kinds = {tirx.Mul: "multiplications", tirx.Add: "additions", tirx.Sub: "additions"}
    for kind, name in kinds.items():
        tvm_ffi.structural_walk(node, (kind, note(name)), order="pre")
    return found


def executed(task: Task, decisions: dict[str, int]) -> Counter[str]:
    lowered = lowering.lower(task.instantiate(decisions), task.target.tvm)
    (function,) = (lowered[name] for name in lowered.get_global_vars())
    return arithmetic(function.body)


def whole_tiles(task: Task) -> dict[str, int]:
    """Decisions under which no tile computes more than it must."""
    points = task.space.points
    return next(d for d in points if task.space.features(d).get("useless") == 1)


SHAPES = {
    "3x3": make(16, 32, 24, 24, 3, padding=1),
    "3x3, batch 2": make(32, 16, 14, 26, 3, n=2),
    "5x5, stride 2": make(16, 16, 27, 27, 5, stride=2),
    "groups": make(64, 32, 12, kh=3, padding=1, groups=2),
    "pointwise": make(32, 48, 12),
    "depthwise": make(16, 16, 34, 34, 3, groups=16),
}


@pytest.mark.parametrize("w", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_are_multiplied_and_added_once(w: ConvWorkload, layout: str) -> None:
    names = [n for n, a in ALGORITHMS.items() if a.family != "winograd" and not a.inapplicable(w)]
    for name in names:
        task = Task(w, name, resolve("avx2", 1), layout)
        decisions = whole_tiles(task)
        count = executed(task, decisions)
        assert count["multiplications"] == task.algorithm.multiplications(w), name
        assert name.endswith(":inplace") or task.algorithm.multiplications(w) == w.macs
        # The sum of the products of `tile_ic` blocks of channels is added to the sum of all.
        blocks = w.ic // w.groups // min(16, w.ic // w.groups)
        one_sum = name.startswith(("direct:depthwise", "direct:pointwise"))
        partial_sums = 0 if one_sum else blocks // decisions.get("tile_ic", 1)
        outputs = w.n * w.oc * w.oh * w.ow
        assert count["additions"] == task.algorithm.additions(w) + partial_sums * outputs, name


@pytest.mark.parametrize("m", range(2, 7))
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (3, 1), (2, 2)])
def test_winograd(m: int, kernel: tuple[int, int]) -> None:
    """With its transforms, on whole tiles and whole vectors of channels."""
    assert_counted(m, kernel, (1, 1))


@pytest.mark.parametrize(
    ("m", "kernel", "stride"),
    [(2, (3, 3), (2, 2)), (4, (3, 3), (2, 2)), (3, (3, 1), (2, 1)), (2, (7, 3), (2, 1))],
)
def test_strided_winograd(m: int, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
    assert_counted(m, kernel, stride)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("sizes", [((3, 3), (1, 1), 4), ((3, 1), (1, 1), 6), ((3, 3), (2, 2), 3)])
def test_dilated_winograd(m: int, sizes: tuple[tuple[int, int], tuple[int, int], int]) -> None:
    """Phases that differ in size: the larger ones end with a tile, the outputs are those of all."""
    kernel, stride, dilation = sizes
    reach = ((k - 1) * dilation + 1 for k in kernel)
    outputs = (m * dilation + 1 if k > 1 else 4 for k in kernel)
    extents = [(o - 1) * s + r for o, s, r in zip(outputs, stride, reach, strict=True)]
    check_counts(m, make(16, 8, *extents, *kernel, stride=stride, dilation=dilation))


@pytest.mark.parametrize(
    ("pixels", "outputs"), [((2, 2), (2, 2)), ((1, 2), (1, 2)), ((2, 9), (2, 9))]
)
@pytest.mark.parametrize("dilation", [1, 3])
def test_winograd_of_few_pixels(
    pixels: tuple[int, int], outputs: tuple[int, int], dilation: int
) -> None:
    """Three taps meet one or two pixels: F(2) takes three products of two, two of one, not four."""
    w = make(16, 8, *(dilation * p for p in pixels), 3, dilation=dilation, padding=dilation)
    assert (w.oh, w.ow) == tuple(dilation * o for o in outputs)
    tiles, per_axis = dilation**2 * -(-pixels[1] // 2), {1: 2, 2: 3, 9: 4}
    products = math.prod(per_axis[p] for p in pixels)
    assert ALGORITHMS["winograd:2"].multiplications(w) == tiles * products * 16 * 8
    if pixels == (2, 2):
        check_counts(2, w)


@pytest.mark.parametrize(("m", "stride", "dilation"), [(4, 1, 1), (4, 1, 2), (2, 2, 1), (3, 2, 3)])
def test_winograd_of_one_tile(m: int, stride: int, dilation: int) -> None:
    """A tile that covers its image reads and transforms no padding."""
    size = m * stride * (dilation if stride == 1 else 1)
    w = make(16, 8, size, kh=3, stride=stride, dilation=dilation, padding=dilation)
    check_counts(m, w)


def assert_counted(m: int, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
    high, wide = ((2 * m - 1) * s + k for s, k in zip(stride, kernel, strict=True))
    check_counts(m, make(16, 8, high, wide, *kernel, n=2, stride=stride))


def check_counts(m: int, w: ConvWorkload) -> None:
    for layout in LAYOUTS:
        task = Task(w, f"winograd:{m}", resolve("avx2", 1), layout)
        count = executed(task, whole_tiles(task))
        assert count["additions"] == task.algorithm.additions(w)
        products = task.algorithm.multiplications(w)
        transforms = count["multiplications"] - products
        assert 0 <= transforms < count["additions"] - products


def test_the_example_of_the_article() -> None:
    """F(4x4, 3x3) on a 16x16 input of 128 channels, one output channel."""
    w = make(128, 1, 16, kh=3)
    assert ALGORITHMS["direct"].multiplications(w) == 225_792
    assert ALGORITHMS["winograd:4"].multiplications(w) == 73_728
    assert 225_792 / 73_728 == 3.0625
    assert ALGORITHMS["direct"].additions(w) == 225_792 + 14 * 14
