"""Software prefetch: what is fetched, when, and that machine code does it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support import run_task
from tvm import tirx
from tvm.ir import Call, Var
from tvm.sym import Analyzer
from tvm.tirx import For, IntImm

from convtvm.kernels import codegen, lowering
from convtvm.kernels.lowering import prefetch
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import ConvWorkload

# 5x5 tiles; one panel has three rows, so that tiles overhang below.
W = ConvWorkload.parse("mb1ic16ih10oc24oh10kh3ph1")
TASK = Task(W, "winograd:2", resolve("avx2", 1))
TILING = {"panel_h": 3, "panel_w": 5, "tile_p": 5, "tile_oc": 1, "input_first": 0, "images": 1}

IM2COL = {"tile_ic": 16, "unroll_ic": 1, "pack": 1, "images": 1, "prefetch": 1}
POINTWISE = {
    "tile_c": 8,
    "tile_p": 1,
    "panel": 2,
    "images": 1,
    "unroll": 1,
    "pack": 0,
    "prefetch": 1,
}


def lowered(**changes: int) -> Any:
    decisions = {**TILING, "gemm_at_oc": 1, "prefetch": 1, **changes}
    assert TASK.space.contains(decisions)
    return lowering.lower(TASK.instantiate(decisions), TASK.target.tvm)


def found(node: Any, kind: type) -> list[Any]:
    nodes: list[Any] = []
    tvm_ffi.structural_walk(node, (kind, nodes.append), order="pre")
    return nodes


def fetches(node: Any) -> list[Any]:
    """Indices into the weight, of the calls in `node`."""
    calls = [c for c in found(node, Call) if c.op.name == "tirx.call_llvm_intrin"]
    return [c.args[1].args[0].indices[0] for c in calls]


def value(index: Any, at: dict[Var, int]) -> int:
    def on_var(var: Var) -> Any:
        return tirx.const(at[var], "int32")

    constant = tvm_ffi.structural_map(index, [(Var, on_var)], order="post")
    return int(Analyzer().simplify(constant))


@pytest.mark.parametrize(
    ("gemm_at_oc", "distance"), [(0, 16 * 8), (1, 3 * 16 * 8)], ids=["channels", "products"]
)
def test_the_next_block_is_fetched_whole(gemm_at_oc: int, distance: int) -> None:
    """Every cache line of the block that is read next, and none twice; the last iterations may
    reach into the one after it."""
    mod = lowered(gemm_at_oc=gemm_at_oc)
    around = [loop for loop in found(mod, For) if fetches(loop)]
    outside = {loop.loop_var: 0 for loop in around}
    inner = around[-2:]
    assert [int(loop.extent) for loop in inner] == [3, 2]  # register tiles, channel blocks
    elements = [
        value(index, {**outside, inner[0].loop_var: p, inner[1].loop_var: i})
        for p, i in itertools.product(range(3), range(2))
        for index in fetches(inner[1])
    ]
    block = 16 * 8
    lines = {(e - distance) // 16 for e in elements}
    assert set(range(block // 16)) <= lines and len(lines) == len(elements)
    assert all(e % 16 == 0 for e in elements)
    assert len(elements) < block // 16 + 6  # as many for each of six iterations


@pytest.mark.parametrize("changes", [{"prefetch": 0}, {"prefetch": 0, "panel_h": 1}])
def test_nothing_is_fetched_unasked(changes: dict[str, int]) -> None:
    assert fetches(lowered(**changes)) == []


def test_a_single_register_tile_has_no_time_to_fetch() -> None:
    assert not TASK.space.contains({**TILING, "gemm_at_oc": 1, "prefetch": 1, "panel_h": 1})


def test_im2col_fetches_the_next_channel_tile() -> None:
    """A weight of 320 KiB; three tiles of four pixels share 256 channels of two vectors."""
    w = ConvWorkload.parse("mb1ic256ih3iw4oc320oh3ow4kh1kw1ph0")
    task = Task(w, "im2col", resolve("avx2", 1))
    decisions = {**IM2COL, "tile_ow": 4, "tile_oc": 2, "panel": 1}
    assert task.space.contains(decisions)
    mod = lowering.lower(task.instantiate(decisions), task.target.tvm)
    around = [loop for loop in found(mod, For) if fetches(loop)]
    pixels, channels = around[-2:]
    outside = {loop.loop_var: 0 for loop in around}
    elements = [
        value(index, {**outside, pixels.loop_var: p, channels.loop_var: i})
        for p, i in itertools.product(range(int(pixels.extent)), range(int(channels.extent)))
        for index in fetches(channels)
    ]
    block = 2 * 256 * 8
    assert {(e - block) // 16 for e in elements} >= set(range(block // 16))
    assert len(set(elements)) == len(elements)


def test_the_last_panel_has_fewer_whole_tiles() -> None:
    """Four tiles of 13 pixels cover 49: not all panels have two whole ones."""
    w = ConvWorkload.parse("mb1ic256ih7oc320oh7kh1ph0")
    task = Task(w, "im2col", resolve("avx2", 1))
    decisions = {**IM2COL, "tile_ow": 13, "tile_oc": 1, "panel": 2}
    assert task.space.contains(decisions)
    mod = lowering.lower(task.instantiate(decisions), task.target.tvm)
    around = [loop for loop in found(mod, For) if fetches(loop)]
    assert any(not isinstance(loop.extent, IntImm) for loop in around)
    data, weight, bias = random_inputs(w, 0, "NCHW", "integer")
    reference = conv2d_reference(w, data, weight, bias, "NCHW")
    assert np.array_equal(run_task(task, decisions, data, weight, bias), reference)


@pytest.mark.parametrize("workload", ["mb1ic8ih3oc8oh3kh1ph0", "mb1ic16ih14oc32oh14kh3ph1"])
def test_im2col_has_no_choice_where_the_weight_stays_in_cache(workload: str) -> None:
    space = Task(ConvWorkload.parse(workload), "im2col", resolve("avx2", 1)).space
    assert space.knobs["prefetch"] == (0,)


def test_pointwise_fetches_the_next_panel() -> None:
    """Three tiles of 8 channels meet a panel of two tiles of 8 pixels, in each of 128 planes."""
    w = ConvWorkload.parse("mb1ic128ih24oc24oh24kh1ph0")
    task = Task(w, "direct:pointwise", resolve("avx2", 1))
    assert task.space.contains(POINTWISE)
    mod = lowering.lower(task.instantiate(POINTWISE), task.target.tvm)
    shared, tiles, i = (loop for loop in found(mod, For) if fetches(loop))
    (index,) = fetches(tiles)
    panels = 24 * 24 // 16
    assert [int(loop.extent) for loop in (shared, tiles)] == [panels * 3, 2]
    for panel in (0, 5):
        elements = [
            value(index, {shared.loop_var: panel * 3 + c, tiles.loop_var: t, i.loop_var: k})
            for c, t, k in itertools.product(range(3), range(2), range(int(i.extent)))
        ]
        expected = {plane * 24 * 24 + (panel + 1) * 16 for plane in range(128)}
        assert expected <= set(elements) and len(elements) == len(set(elements)) < 128 + 6


@pytest.mark.parametrize(
    ("workload", "changes"),
    [
        ("mb1ic8ih24oc24oh24kh1ph0", {}),
        ("mb1ic128ih24oc24oh24kh1ph0", {"pack": 1}),
        ("mb1ic128ih24oc8oh24kh1ph0", {}),
        ("mb2ic128ih24oc24oh24kh1ph0", {"images": 2}),
    ],
    ids=["data in cache", "copied", "one tile of channels", "another image follows"],
)
def test_pointwise_does_not_fetch_in_vain(workload: str, changes: dict[str, int]) -> None:
    task = Task(ConvWorkload.parse(workload), "direct:pointwise", resolve("avx2", 1))
    assert not task.space.contains({**POINTWISE, **changes})
    assert task.space.contains({**POINTWISE, **changes, "prefetch": 0})


def test_machine_code_fetches() -> None:
    module = codegen.compile_lowered(lowered(), TASK.target.tvm)
    assert "prefetcht1" in module.inspect_source("asm")


def test_a_loop_that_reads_no_weight_stays() -> None:
    func = lowered(prefetch=0)["main"]
    loop = found(func, For)[0]
    bare = For(
        loop.loop_var,
        loop.min,
        loop.extent,
        loop.kind,
        tirx.Evaluate(tirx.const(0, "int32")),
        annotations={prefetch.PREFETCH: [16, 16, 1]},
    )
    changed = prefetch.insert(codegen.merge({"main": func.with_body(bare)}))
    assert fetches(changed) == []
