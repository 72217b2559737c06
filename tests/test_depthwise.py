"""Depthwise kernels by every way to unroll their taps, and what the hot loop keeps in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import pack_weight, run_kernel

from convtvm.kernels.algorithms import ALGORITHMS
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import ConvWorkload

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import golden_counts

make = ConvWorkload.make

SHAPES = {
    "3x3, rows of 9, batch 2": make(3, 3, 9, kh=3, padding=1, groups=3, n=2),
    "stride 2": make(4, 4, 47, kh=3, stride=2, padding=1, groups=4),
    "5x5, two outputs": make(2, 4, 15, 17, 5, padding=2, groups=2),
    "dilation 2 and 3": make(3, 3, 16, 31, 3, dilation=(2, 3), padding=(2, 3), groups=3),
    "column": make(3, 3, 13, 5, 3, 1, padding=(1, 0), groups=3),
    "row": make(3, 3, 5, 19, 1, 3, padding=(0, 1), groups=3),
    "large": make(2, 2, 40, kh=7, padding=3, groups=2),
    "four channels of 40x40": make(4, 4, 40, kh=3, padding=1, groups=4),
}


def unrollings(task: Task) -> Iterator[dict[str, int]]:
    """For every value of the knob decisions of several tiles, one that fits the registers best."""
    space = task.space
    for taps in space.knobs["unroll_taps"]:
        found = [d for d in space.points if d["unroll_taps"] == taps]
        for height in space.knobs["tile_h"]:
            tiles = [d for d in found if d["tile_h"] == height]
            if tiles:
                yield min(tiles, key=space.cost)


@pytest.mark.parametrize("w", SHAPES.values(), ids=SHAPES)
def test_answers(w: ConvWorkload) -> None:
    names = ["direct:depthwise", "direct:depthwise:inplace"]
    for name in (n for n in names if ALGORITHMS[n].inapplicable(w) is None):
        task = Task(w, name, resolve("native", 1))
        data, weight, bias = random_inputs(w, 7, "NCHW", "integer")
        reference = conv2d_reference(w, data, weight, bias)
        packed = pack_weight(task, weight)
        for decisions in unrollings(task):
            out = run_kernel(task, decisions, data, packed, bias, opt_level=0)
            assert np.array_equal(out, reference), (name, decisions)


def test_what_can_be_unrolled() -> None:
    """By columns only where a column has several taps, and rows of the image are vectors."""

    def values(w: ConvWorkload, layout: str = "NCHW") -> tuple[int, ...]:
        return Task(w, "direct:depthwise", resolve("avx2", 1), layout).space.knobs["unroll_taps"]

    assert values(SHAPES["stride 2"]) == values(SHAPES["column"]) == (0, 1, 2)
    assert values(SHAPES["stride 2"], "NHWC") == values(SHAPES["row"]) == (0, 1)
    assert values(SHAPES["large"]) == (0,)


@pytest.mark.parametrize("height", [4, 7])
def test_column_by_column_spills_less(height: int) -> None:
    """With AVX2's sixteen registers, what LLVM keeps for another tap does not fit beside a tile."""
    layer = "g144mb1ic144ih56oc144oh56kh3ph1"
    loops = [
        golden_counts.entry(
            "avx2",
            "direct:depthwise",
            layer,
            {"channels": 1, "tile_h": height, "tile_w": 1, "unroll_taps": taps},
        )["loop"]
        for taps in (1, 2)
    ]
    by_row, by_column = loops
    assert by_column["fma"] == by_row["fma"]
    assert by_column["stack"] <= min(height + 1, by_row["stack"] - 2)
    assert by_column["instructions"] < by_row["instructions"]
