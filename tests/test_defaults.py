"""What an untuned kernel does, where a wrong guess was measured to cost a third or more."""

from __future__ import annotations

import pytest

from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.problem.workload import ConvWorkload

make = ConvWorkload.make
NAMES = ("direct", "im2col", "mec:b")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [(384, 96, 14), (160, 960, 7), (256, 1024, 14), (512, 128, 28)])
def test_deep_layers_read_the_weight_by_tiles_of_many_pixels(
    name: str, sizes: tuple[int, int, int]
) -> None:
    """A weight that leaves the L1 cache is read anew by every tile, from a cache that gives a tile
    of two pixels half of what it could use."""
    space = Task(make(*sizes), name, resolve("avx2", 1)).space
    chosen = space.default
    assert chosen["tile_ow"] * chosen.get("tile_oh", 1) >= 4
    assert chosen["tile_ow"] * chosen.get("tile_oh", 1) * chosen["tile_oc"] >= 8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [512, 1280, 2048])
def test_a_single_pixel_by_few_vectors_has_short_sums(name: str, channels: int) -> None:
    """One long sum waits for each of its products; of short ones a core computes several."""
    space = Task(make(channels, 1000, 1), name, resolve("avx2", 1)).space
    assert space.default["tile_oc"] == 1  # 125 vectors have no divisor among the knob's values
    assert space.default["tile_ic"] == 1
    # Where the tile has enough sums to wait for nothing, long ones are better.
    wide = Task(make(channels, 960, 7), name, resolve("avx2", 1)).space
    assert wide.default["tile_ic"] > 1
