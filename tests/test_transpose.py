"""Transposes in registers: which loops get them; every pixel arrives, whatever is cut off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support import run_task
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.sym import Analyzer
from tvm.tirx import For, ForKind

from convtvm.kernels import lowering
from convtvm.kernels.lowering.loops import holds_before, step_of
from convtvm.kernels.task import Task
from convtvm.machine.targets import CompileTarget, resolve
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import ConvWorkload

make = ConvWorkload.make
# Vectors of four, eight, and as many lanes as there are.
TARGETS = {name: resolve(name, 1) for name in ("llvm -mcpu=x86-64-v2", "avx2", "native")}
every_width = pytest.mark.parametrize("target", TARGETS.values(), ids=["sse", "avx2", "native"])


def lowered(task: Task, decisions: dict[str, int]) -> Any:
    (function,) = lowering.lower(task.instantiate(decisions), task.target.tvm).functions.values()
    return function


def found(node: Any, kind: type) -> list[Any]:
    nodes: list[Any] = []
    tvm_ffi.structural_walk(node, (kind, nodes.append), order="pre")
    return nodes


def stores(node: Any, buffer: str) -> list[int]:
    """How many elements each store to a buffer writes."""
    indices = [s.indices[0] for s in found(node, tirx.BufferStore) if s.buffer.name == buffer]
    return [int(i.lanes) if isinstance(i, tirx.Ramp) else 1 for i in indices]


def assert_exact(task: Task, decisions: dict[str, int], opt_level: int = 3) -> None:
    """On small integers, where sums are exact, whatever was not written being NaN."""
    data, weight, bias = random_inputs(task.workload, seed=1, kind="integer")
    expected = conv2d_reference(task.workload, data, weight, bias)
    found = run_task(task, decisions, data, weight, bias, opt_level)
    np.testing.assert_array_equal(found, expected)


def turn(target: CompileTarget) -> int:
    return list(TARGETS.values()).index(target)


def with_tile(task: Task, **wanted: int) -> dict[str, int]:
    """The first valid decisions with these values."""
    points = (d for d in task.space.points if wanted.items() <= d.items())
    every = next(points, None) or {**task.space.default, **wanted}
    assert task.space.contains(every)
    return every


@every_width
@pytest.mark.parametrize("tile", [1, 2, 3, 4, 5, 7, 8])
def test_tiles_of_any_width(target: CompileTarget, tile: int) -> None:
    """Eleven pixels a row: every tile but the narrowest has one that is cut off. LLVM optimises one
    of three, each width for another target: what is stored where was decided before it."""
    w = make(5, 19, 3, 11, 1, 3)
    task = Task(w, "direct", target)
    wide = {"tile_ow": tile, "tile_oh": 1, "flat": 0, "tile_oc": 1}
    level = 3 if tile % 3 == turn(target) else 0
    assert_exact(task, {**task.space.default, **wide, "rows_outer": 0}, level)


WIDTHS = (1, 2, 3, 4, 6, 13)


@every_width
@pytest.mark.parametrize("wide", WIDTHS)
def test_images_of_any_width(target: CompileTarget, wide: int) -> None:
    """Read and written by Winograd, in rows that tiles overhang. Two of four tiles for each width
    and target, so that each meets every width and every target; LLVM optimises the widest."""
    w = make(20, 21, 9, wide, 3, padding=1)
    data, weight, bias = random_inputs(w, seed=0)
    expected = conv2d_reference(w, data, weight, bias)
    for m in (2, 4) if (WIDTHS.index(wide) + turn(target)) % 2 else (3, 6):
        task = Task(w, f"winograd:{m}", target)
        level = 3 if wide == 13 else 0
        out = run_task(task, task.space.default, data, weight, bias, level)
        assert np.abs(out - expected).max() <= task.tolerance * np.abs(expected).max()


def test_columns_of_an_image_one_pixel_wide() -> None:
    """Lie in memory as rows do."""
    w = make(3, 8, 13, 1, 3, 1, padding=(1, 0))
    task = Task(w, "direct", TARGETS["avx2"])
    assert_exact(task, with_tile(task, tile_oh=4, tile_ow=1))


def test_pixels_of_several_images_in_a_row() -> None:
    """mec:a's tiles go from one image into the next, which lies elsewhere."""
    w = make(8, 16, 5, 5, 3, padding=1, n=3)
    task = Task(w, "mec:a", TARGETS["avx2"])
    assert_exact(task, with_tile(task, tile_ow=4))


@every_width
def test_memory_is_accessed_by_four(target: CompileTarget) -> None:
    """Where tiles and vectors are whole."""
    w = make(32, 32, 12, kh=3, padding=1)
    direct, winograd = Task(w, "direct", target), Task(w, "winograd:4", target)
    function = lowered(direct, with_tile(direct, tile_ow=4, tile_oh=1, flat=0))
    assert set(stores(function, "out")) == {4}
    function = lowered(winograd, winograd.space.default)
    assert set(stores(function, "out")) == {4}
    assert set(stores(function, "data_pad")) == {target.lanes}
    loads = [i for i in found(function, TensorLoad) if i.source.name == "data"]
    assert {int(i.indices[0].lanes) for i in loads} == {4}


def test_a_row_is_copied_once_but_for_its_end() -> None:
    """Fourteen pixels: three groups in a loop, and one that ends with the row."""
    w = make(8, 8, 14, kh=3, padding=1)
    task = Task(w, "winograd:2", TARGETS["avx2"])
    function = lowered(task, task.space.default)
    rows = [o for o in found(function, For) if stores(o, "data_pad") and o.kind == ForKind.SERIAL]
    assert 3 in [int(o.extent) for o in rows]


def test_channels_that_do_not_fill_vectors_are_left_to_the_compiler() -> None:
    """How many of a vector's channels there are is not known before the kernel runs."""
    w = make(12, 16, 9, kh=3, padding=1)
    task = Task(w, "winograd:2", TARGETS["avx2"])
    assert min(stores(lowered(task, task.space.default), "data_pad")) == 1
    task = Task(make(3, 16, 9, kh=3, padding=1), "winograd:2", TARGETS["avx2"])
    assert min(stores(lowered(task, task.space.default), "data_pad")) == 4  # of three


def test_selections_by_a_known_index_are_gone() -> None:
    w = make(16, 16, 8, kh=3, padding=1)
    for layout in ("NCHW", "NHWC"):
        task = Task(w, "winograd:4", TARGETS["avx2"], layout)
        assert not found(lowered(task, task.space.default), tirx.Select)


def test_steps() -> None:
    x, y = tirx.Var("x", "int32"), tirx.Var("y", "int32")
    assert step_of(3 * x + y, x) == 3
    assert step_of(y, x) == 0
    blocked = tirx.floordiv(x, 4) * 100 + tirx.floormod(x, 4)
    assert step_of(blocked, x) is None
    assert step_of(blocked, x, range(4, 8)) == 1
    assert step_of(blocked, x, range(4, 9)) is None
    assert step_of(x * y, x) is None


def test_terms_that_hold_up_to_some_pixel() -> None:
    x, y = tirx.Var("x", "int32"), tirx.Var("y", "int32")
    assert holds_before(4 * y + x < 14, x, 4)
    assert holds_before(2 * y + tirx.floordiv(x, 2) < 7, x, 4)
    assert holds_before(y < 3, x, 4)
    assert not holds_before(x >= 1, x, 4)
    assert not holds_before(tirx.floormod(x, 2) < 1, x, 4)


def test_cache_lines_go_out_whole_where_planes_take_each_others_place() -> None:
    """A plane of 512 elements: all pixels of a channel are stored before the next channel's."""
    w = make(3, 8, 16, 32)
    task = Task(w, "direct", TARGETS["avx2"])
    decisions = with_tile(task, tile_ow=8, tile_oh=1, tile_oc=1, flat=0)
    function = lowered(task, decisions)
    written = [
        s.indices[0].base for s in found(function, tirx.BufferStore) if s.buffer.name == "out"
    ]
    steps = [step - written[0] for step in written[:4]]
    assert [int(Analyzer().simplify(step)) for step in steps] == [0, 4, 512, 516]
    assert_exact(task, decisions)
