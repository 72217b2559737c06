"""Templates: whatever decisions they accept, the answer is the reference's. Odd shapes first."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support import Array, compiled, opt_level, pack_weight, run_kernel
from tvm.tirx import BufferStore, For, ForKind

from convtvm.compute.stages import is_padded
from convtvm.kernels import codegen, lowering
from convtvm.kernels.algorithms import ALGORITHMS
from convtvm.kernels.task import Task, tasks_of
from convtvm.machine.targets import resolve
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.workload import ConvWorkload
from schedules.knobs import Decisions, Rules, Space, accepted

make = ConvWorkload.make
LAYOUTS = ("NCHW", "NHWC")

# Largest error relative to the largest output, on normally distributed numbers.
TOLERANCE = {"winograd:2": 1e-5, "winograd:4": 1e-4}

DIRECT = {
    "1x1 image": make(3, 5, 1),
    "1x1 image, 3x3": make(17, 16, 1, kh=3, padding=1),
    "pointwise": make(16, 33, 7),
    "pointwise, stride 2": make(5, 16, 13, stride=2),
    "one channel": make(1, 1, 13, kh=3, padding=1),
    "7x7": make(16, 17, 7, kh=3, padding=1),
    "13x13, batch 2": make(33, 16, 13, kh=3, padding=1, n=2),
    "asymmetric padding": make(5, 3, 7, 13, 3, padding=(2, 0, 1, 3)),
    "padding at the end only": make(3, 16, 7, 6, 3, padding=(0, 0, 1, 2)),
    "stride 3": make(3, 17, 13, kh=3, stride=3, padding=1),
    "stride beyond the kernel": make(5, 5, 13, kh=2, stride=3),
    "dilation 2 and 3": make(3, 16, 13, kh=3, dilation=(2, 3), padding=(2, 3)),
    "stem": make(3, 16, 17, kh=7, stride=2, padding=3),
    "kernel as large as the image": make(5, 17, 7, 5, 7, 5),
    "even kernel, strides differ": make(16, 5, 13, 7, 2, 4, stride=(1, 2), padding=(1, 2)),
    "1-D": make(5, 33, 1, 13, 1, 5, padding=(0, 2), stride=(1, 2)),
    "column": make(3, 5, 13, 1, 3, 1, padding=(1, 0)),
    "groups": make(15, 33, 7, kh=3, padding=1, groups=3),
    "groups, dilation, batch 2": make(10, 6, 13, kh=3, dilation=2, groups=2, n=2),
    "depthwise": make(17, 17, 13, kh=3, padding=1, groups=17),
    "depthwise, two outputs, stride 2": make(16, 32, 7, kh=3, stride=2, padding=1, groups=16),
}
WINOGRAD = {
    "one output": make(3, 5, 3, kh=3),
    "one channel, 7x7": make(1, 1, 7, kh=3, padding=1),
    "13x13, batch 2": make(17, 16, 13, kh=3, padding=1, n=2),
    "asymmetric padding": make(5, 33, 7, 13, 3, padding=(2, 0, 1, 3)),
    "1-D": make(16, 3, 1, 13, 1, 3, padding=(0, 1)),
    "oblong": make(3, 16, 5, 13, 5, 3, padding=1),
    "stride 2": make(5, 17, 13, kh=3, stride=2, padding=1),
    "strides differ, batch 2": make(3, 16, 13, 7, 3, n=2, stride=(1, 2), padding=(0, 1)),
    "stride 3 of 5": make(5, 3, 17, 11, 5, 4, stride=(3, 2), padding=(2, 1)),
    "strided rows": make(16, 5, 7, 13, 1, 3, stride=(2, 1), padding=(0, 1)),
    "stem": make(3, 16, 17, kh=7, stride=2, padding=3),
    "dilation 2": make(16, 17, 13, kh=3, dilation=2, padding=2),
    "dilations differ, batch 2": make(5, 17, 13, 11, 3, n=2, dilation=(3, 2), padding=(1, 3)),
    "dilated rows": make(5, 9, 14, 7, 3, dilation=(2, 1), padding=(2, 0, 1, 0)),
    "dilated 1-D": make(5, 9, 1, 30, 1, 3, dilation=(7, 4), padding=(0, 4)),
    "dilation as large as the image": make(4, 8, 9, kh=3, dilation=9, padding=9),
    "dilation 3, stride 2": make(5, 9, 20, kh=3, stride=2, dilation=3, padding=3),
    "dilation 2, stride 2": make(5, 9, 19, kh=3, stride=2, dilation=2, padding=2),
    "dilation 6, stride 4": make(5, 9, 40, 19, 5, 3, stride=(4, 1), dilation=(6, 1), padding=2),
}
POINTWISE = {
    "one of everything": make(1, 1, 1),
    "whole tiles": make(16, 48, 16),
    "pixels end within a vector": make(5, 33, 7),
    "a row of 13, batch 3": make(17, 16, 1, 13, n=3),
    "deep": make(70, 25, 9, 8, n=2),
}
INPLACE = {
    **{shape: w for shape, w in DIRECT.items() if is_padded(w)},
    "tests at both ends only": make(5, 17, 5, 40, 3, padding=1),
    "tests at one end only": make(5, 9, 5, 40, 3, padding=(0, 0, 1, 2), stride=(1, 2)),
    "long ends": make(3, 5, 3, 60, 3, padding=(1, 24), dilation=(1, 24)),
    "nothing but padding in some windows": make(3, 5, 2, 3, 3, padding=4),
    "kernel too long to unroll": make(2, 9, 3, 70, 1, 65, padding=(0, 32)),
    "padding of a 1x1 kernel": make(9, 17, 6, padding=(1, 2), stride=(2, 1)),
}
SHAPES = {
    "direct": DIRECT,
    "direct:inplace": INPLACE,
    "direct:pointwise": POINTWISE,
    "winograd:2": WINOGRAD,
    "winograd:4": {
        shape: w for shape, w in WINOGRAD.items() if not ALGORITHMS["winograd:4"].inapplicable(w)
    },
}
CASES = {
    f"{name}-{shape}": (name, w) for name, shapes in SHAPES.items() for shape, w in shapes.items()
}
any_case = pytest.mark.parametrize(("name", "w"), CASES.values(), ids=CASES.keys())


@cache
def task_of(name: str, w: ConvWorkload, layout: str, target: str = "native") -> Task:
    return Task(w, name, resolve(target, 1), layout)


def problem(task: Task) -> tuple[tuple[Array, Array, Array], Array]:
    """Inputs and the right answer: whole numbers where the algorithm is exact on them."""
    kind = "normal" if task.algorithm.family == "winograd" else "integer"
    data, weight, bias = random_inputs(task.workload, 5, task.layout, kind)
    return (data, weight, bias), conv2d_reference(task.workload, data, weight, bias, task.layout)


@lru_cache(maxsize=4)
def all_valid(task: Task) -> list[dict[str, int]]:
    """What may be built, worthwhile or not."""
    return list(accepted(task.space.knobs, task.space.is_valid))


def is_right(task: Task, out: Array, reference: Array) -> bool:
    if task.algorithm.family == "winograd":
        return relative_error(out, reference) <= TOLERANCE[task.algorithm_name]
    return np.array_equal(out, reference)


@any_case
def test_answers(name: str, w: ConvWorkload) -> None:
    """The default decisions in one layout, every third case's optimised; three others drawn from
    all that are valid in both, as they are lowered."""
    draw = random.Random(w.key)
    layouts, level = draw.sample(LAYOUTS, 2), opt_level(name, w.key)
    tasks = [task_of(name, w, layouts[i % 2]) for i in range(4)]
    packed = pack_weight(tasks[0], problem(tasks[0])[0][1])  # the same for both
    for i, task in enumerate(tasks):
        decisions = draw.choice(all_valid(task)) if i else task.space.default
        (data, _, bias), reference = problem(task)
        out = run_kernel(task, decisions, data, packed, bias, opt_level=0 if i else level)
        assert is_right(task, out, reference), (task.layout, decisions)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["direct", "direct:pointwise", "im2col", "winograd:2"])
def test_images_share_the_weight(name: str, layout: str) -> None:
    kh = 1 if name == "direct:pointwise" else 3
    task = task_of(name, make(17, 33, 7, kh=kh, padding=kh // 2, n=4), layout)
    (data, weight, bias), reference = problem(task)
    packed = pack_weight(task, weight)
    for images in (2, 4):
        shared = [d for d in all_valid(task) if d["images"] == images]
        for decisions in random.Random(images).sample(shared, 2):
            out = run_kernel(task, decisions, data, packed, bias, opt_level=0)
            assert is_right(task, out, reference), decisions


@any_case
def test_space(name: str, w: ConvWorkload) -> None:
    alike = {task.space: task for task in (task_of(name, w, layout) for layout in LAYOUTS)}
    for space, task in alike.items():  # one space, where the layout makes no difference to it
        points = {tuple(point.values()) for point in space.points}
        assert 1 <= len(points) == len(space.points) <= len(all_valid(task)) <= space.size
        every = (dict(zip(space.knobs, e, strict=True)) for e in product(*space.knobs.values()))
        assert all_valid(task) == [point for point in every if space.is_valid(point)]
        worthwhile = [point for point in all_valid(task) if space.is_worthwhile(point)]
        assert space.points == (worthwhile or all_valid(task))
        assert space.default in space.points
        assert all(space.contains(point) for point in space.points)
        assert all(list(point) == list(space.knobs) for point in space.points)
        assert all(len(set(values)) == len(values) >= 1 for values in space.knobs.values())
        cheapest = min(space.cost(point) for point in space.points)
        assert space.cost(space.default) == cheapest
        features = [space.features(point) for point in space.points]
        assert all(list(f) == list(features[0]) for f in features)
        assert all(np.isfinite(list(f.values())).all() for f in features)


def found(node: Any, kind: type) -> list[Any]:
    nodes: list[Any] = []
    tvm_ffi.structural_walk(node, (kind, nodes.append), order="pre")
    return nodes


def stores_output(loop: For) -> bool:
    return any(store.buffer.name == "out" for store in found(loop, BufferStore))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_turns_are_those_of_the_parallel_loop(name: str, layout: str) -> None:
    """Of the one that stores the output."""
    kh, groups = int(name != "direct:pointwise") * 2 + 1, 40 if "depthwise" in name else 1
    w = make(40, 40, 13, kh=kh, padding=kh // 2, groups=groups, n=2)
    w = make(256, 300, 13, n=2) if name.startswith("strassen") else w
    task = Task(w, name, resolve("avx2", 2), layout)
    for decisions in random.Random(name).sample(all_valid(task), 4):
        lowered = lowering.lower(task.instantiate(decisions), task.target.tvm)
        shared = [loop for loop in found(lowered, For) if loop.kind == ForKind.PARALLEL]
        (turns,) = [int(loop.extent) for loop in shared if stores_output(loop)] or [1]
        assert task.space.turns(decisions) == turns, decisions


def test_spread_changes_only_what_idles() -> None:
    """One panel of all tiles is one turn; a thread of eight can have it only by its channels."""
    w = make(64, 128, 14, kh=3, padding=1)
    alone, shared = (Task(w, "winograd:4", resolve("avx2", n)).space for n in (1, 8))
    one_panel = {"panel_h": 4, "panel_w": 4, "tile_p": 4, "tile_oc": 2, "images": 1, "prefetch": 0}
    made = {**one_panel, "gemm_at_oc": 0, "input_first": 0}
    assert alone.turns(made) == shared.turns(made) == 1
    assert (alone.idling(made), shared.idling(made)) == (1, 8)
    assert alone.spread(made) == made
    assert shared.spread(made) == {**made, "gemm_at_oc": 1, "input_first": 1}
    assert shared.idling(shared.spread(made)) == 1
    assert shared.idling(shared.default) <= 1.2


def test_spread_shares_as_far_as_it_goes() -> None:
    space = Task(make(1, 1, 5, kh=3), "direct", resolve("avx2", 8)).space
    decisions = {**space.default, "flat": 1, "tile_oh": 1, "rows_outer": 0, "tile_ow": 3}
    assert space.contains(decisions) and space.idling(decisions) == 8
    shared = space.spread(decisions)
    assert space.contains(shared) and space.turns(shared) > 1


@any_case
def test_space_refuses_what_is_foreign(name: str, w: ConvWorkload) -> None:
    space = task_of(name, w, "NCHW").space
    default = space.default
    assert not space.contains({})
    assert not space.contains({**default, "foreign": 1})
    for knob, values in space.knobs.items():
        assert not space.contains({k: v for k, v in default.items() if k != knob})
        assert not space.contains({**default, knob: max(values) + 1})
        assert not space.contains({**default, knob: -1})


def test_space_is_the_same_in_every_process_and_copy() -> None:
    task = task_of("winograd:2", WINOGRAD["13x13, batch 2"], "NCHW")
    again = Task(task.workload, task.algorithm_name, task.target, task.layout)
    assert again == task and again.space is task.space  # listed once for all equal tasks
    anew = Space(task.space.rules, task.space.threads)
    assert anew.points == task.space.points and anew.default == task.space.default


@dataclass(frozen=True)
class SmallRules(Rules):
    """One knob, `a`: its values that may be built, and those that are worthwhile."""

    valid: tuple[int, ...]
    worthwhile: tuple[int, ...]
    knobs = MappingProxyType({"a": (1, 2, 3)})

    def is_valid(self, d: Decisions) -> bool:
        return d["a"] in self.valid

    def is_worthwhile(self, d: Decisions) -> bool:
        return d["a"] in self.worthwhile

    def cost(self, d: Decisions) -> float:
        return 0.0


def small_space(valid: tuple[int, ...], worthwhile: tuple[int, ...]) -> Space:
    return Space(SmallRules(valid, worthwhile))


@pytest.mark.parametrize(
    ("valid", "worthwhile", "points"),
    [
        ((1, 2, 3), (1, 2, 3), [1, 2, 3]),
        ((2, 3), (1, 2, 3), [2, 3]),
        ((2, 3), (3,), [3]),
        ((2, 3), (1,), [2, 3]),  # nothing worthwhile: whatever is valid
    ],
)
def test_points(valid: tuple[int, ...], worthwhile: tuple[int, ...], points: list[int]) -> None:
    space = small_space(valid, worthwhile)
    assert [point["a"] for point in space.points] == points
    assert space.default == {"a": points[0]}  # the first of the cheapest
    assert [a for a in range(5) if space.contains({"a": a})] == list(valid)


def test_space_without_valid_points_says_so() -> None:
    with pytest.raises(ValueError, match="no valid decisions among 3 combinations"):
        _ = small_space((), (1,)).points


@pytest.mark.parametrize(
    ("w", "name", "reason"),
    [
        (make(8, 8, 9), "winograd:2", "kernel is 1x1"),
        (make(8, 8, 9, kh=3), "direct:pointwise", "kernel is 3x3"),
        (make(8, 8, 9, stride=2), "direct:pointwise", "stride is 2x2"),
        (make(8, 8, 9, padding=1), "direct:pointwise", "the input of 9x9 is padded to 11x11"),
        (make(8, 8, 9, groups=2), "direct:pointwise", "groups is 2"),
        (make(8, 8, 9, kh=3, stride=3), "winograd:4", "kernel is 3x3 with stride 3x3"),
        (make(8, 8, 9, kh=3, kw=2, stride=(1, 3)), "winograd:2", "stride is 1x3"),
        (make(8, 8, 9, kh=3, stride=2), "winograd:5", "5 outputs of stride 2x2 take 11 > 9 pixels"),
        (make(8, 8, 9, stride=3, dilation=2), "winograd:2", "kernel is 1x1"),
        (
            make(8, 8, 19, kh=3, stride=6, dilation=4),
            "winograd:2",
            "kernel is 3x3 with stride 3x3 of phases",
        ),
        (make(8, 8, 9, kh=3, groups=2), "winograd:2", "groups is 2"),
        (make(8, 8, 9, kh=7), "winograd:4", "F(4, 7) has tiles of 10 > 8"),
    ],
)
def test_inapplicable(w: ConvWorkload, name: str, reason: str) -> None:
    message = ALGORITHMS[name].inapplicable(w)
    assert message is not None and message.startswith(reason)
    target = resolve("native", 1)
    assert name not in [t.algorithm_name for t in tasks_of([w], target)]
    assert [t.algorithm_name for t in tasks_of([w], target, algorithms=["im2col"])] == ["im2col"]


# ---- ordinary arrays -----------------------------------------------------------------------------


def unaligned(array: Array) -> Array:
    """A copy that starts 4 bytes after a multiple of 64."""
    raw = np.empty(array.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + 4
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert copy.ctypes.data % 64 == 4
    return copy


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["direct", "winograd:2"])
def test_unaligned_arrays(name: str, layout: str) -> None:
    task = task_of(name, make(16, 16, 7, kh=3, padding=1), layout)
    (data, weight, bias), reference = problem(task)
    packed = unaligned(pack_weight(task, unaligned(weight)))
    out = unaligned(np.full(reference.shape, np.nan, np.float32))
    arrays = (unaligned(data), packed, unaligned(bias), out)
    compiled(task, task.space.default)["main"](*map(tvm_ffi.from_dlpack, arrays))
    assert is_right(task, out, reference)


def test_accept_unaligned_asks_for_the_dtype_only() -> None:
    func = task_of("direct", make(16, 16, 7), "NCHW").compute()
    assert [int(p.ty.data_alignment) for p in func.params] == [4] * 4


# ---- other machines ------------------------------------------------------------------------------

MACHINE = {"avx512": 62, "aarch64": 183}  # e_machine of an ELF header


@pytest.mark.parametrize("target", MACHINE)
@pytest.mark.parametrize("name", ["direct", "winograd:2"])
def test_objects_for_other_machines(name: str, target: str, tmp_path: Path) -> None:
    task = task_of(name, make(17, 33, 7, kh=3, padding=1), "NCHW", target)
    for decisions in (task.space.default, None):
        path = tmp_path / "kernel.o"
        compiled(task, decisions).write_to_file(str(path))
        header = path.read_bytes()[:20]
        assert header[:4] == b"\x7fELF"
        assert int.from_bytes(header[18:20], "little") == MACHINE[target]


@pytest.mark.parametrize(("target", "lanes"), [("aarch64", 4), ("avx2", 8), ("avx512", 16)])
@pytest.mark.parametrize("name", [n for n in SHAPES if n != "direct:pointwise"])
def test_weights_are_packed_by_vectors(name: str, target: str, lanes: int) -> None:
    task = task_of(name, make(32, 32, 7, kh=3, padding=1), "NCHW", target)
    assert task.packed_shape()[-1] == lanes


STRIDED = make(32, 32, 28, kh=3, stride=2, padding=1, groups=32)
PADDED = make(32, 32, 14, kh=3, padding=1)


@pytest.mark.parametrize(
    ("name", "w"), [("direct:depthwise", STRIDED), ("winograd:4", PADDED), ("im2col", PADDED)]
)
def test_no_gathers_and_scatters(name: str, w: ConvWorkload) -> None:
    """They take as long as their elements one by one; the copies of data are shuffles."""
    task = Task(w, name, resolve("avx512", 1))
    lowered = lowering.lower(task.instantiate(task.space.default), task.target.tvm)
    code = codegen.compile_lowered(lowered, task.target.tvm).inspect_source("asm")
    assert "vfmadd" in code
    assert "gather" not in code and "scatter" not in code


def test_few_channels_are_copied_at_a_time() -> None:
    """As many as a thread's copy holds; of narrow rows in vectors that hold them."""
    w = make(48, 48, 7, kh=3, padding=1, groups=48)
    task = Task(w, "direct:depthwise", resolve("avx512", 1))
    assert task.space.knobs["channels"] == (1, 2, 4, 8, 16)
    assert int(task.compute().attrs["block"]) == 8
    odd = make(17, 34, 7, kh=3, padding=1, groups=17)  # two outputs of each input
    assert Task(odd, "direct:depthwise", resolve("avx512", 1)).space.knobs["channels"] == (1, 2)
