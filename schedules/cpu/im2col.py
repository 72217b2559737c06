"""CPU template of im2col: windows copied to a matrix that suits the product, then register tiles.

The tile is that of `direct`, but it reads the columns, one row of pixels after another and without
stride, dilation or padding. What happens here to the block `columns` happens in the template of
MEC to `mec_lower`, so that both share the space and the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from schedules.cpu import epilogue
from schedules.cpu.registers import (
    CpuModel,
    accumulate_in_tile,
    extents,
    find_block,
    fits,
    layout,
    oc_block,
    tile_cost,
    waste,
)
from schedules.knobs import Decisions, Space

VERSION = 2
COMPUTE_KNOBS = ("tile_ic",)

# Values of the knob `order`, how the copied windows lie in memory. A tile reads the same element of
# neighbouring pixels: whole windows are often a multiple of 4 KB apart and evict each other from
# the L1 cache, blocks of channels are neighbours. Pixels innermost is what NCHW copies fastest.
WINDOWS, BLOCKS, PIXELS = 0, 1, 2

# Terms summed before they are added to the total: longer sums lose accuracy, shorter ones speed.
_MAX_TERMS = 768
_MAX_UNROLLED_ROWS = 4


def space(sch: Schedule, cpu: CpuModel) -> Space:
    """Knobs of `schedule`, for the function whose reduction is not yet cut (tile_ic = 1)."""
    copies = find_block(sch, "columns") is not None
    return window_space(sch, cpu, (WINDOWS, BLOCKS, PIXELS) if copies else (WINDOWS,))


def window_space(sch: Schedule, cpu: CpuModel, orders: tuple[int, ...]) -> Space:
    """Knobs of a register tile over copied windows, which may lie in any of `orders`."""
    chunks_in, _, channels, oh, ow, _, kh, kw, ic_block = extents(sch, "partial")
    block, transposes = oc_block(sch), layout(sch) == "NHWC"
    chunks_out, terms = channels // block, kh * kw * ic_block
    knobs = {
        "tile_ow": tuple(t for t in range(1, cpu.registers) if t <= ow),
        "tile_oh": tuple(t for t in range(1, _MAX_UNROLLED_ROWS + 1) if t <= oh),
        "tile_oc": tuple(t for t in (1, 2, 3, 4, 6) if t <= chunks_out),
        "tile_ic": tuple(
            t
            for t in range(1, chunks_in + 1)
            if chunks_in % t == 0 and (t == 1 or t * terms <= _MAX_TERMS)
        ),
        "rows_outer": (0, 1),
        "order": orders,
    }

    def is_valid(d: Decisions) -> bool:
        pixels = d["tile_ow"] * d["tile_oh"]
        return fits(pixels, d["tile_oc"], cpu) and chunks_out % d["tile_oc"] == 0

    def is_worthwhile(d: Decisions) -> bool:
        return (
            d["tile_ow"] * d["tile_oh"] * d["tile_oc"] >= 4
            and waste(oh, d["tile_oh"]) <= 0.34
            and (waste(ow, d["tile_ow"]) <= 0.34 or d["tile_oh"] == 1)
            and not (transposes and d["order"] == PIXELS)
        )

    def useless(d: Decisions) -> float:
        return (1 + waste(oh, d["tile_oh"])) * (1 + waste(ow, d["tile_ow"]))

    def cost(d: Decisions) -> float:
        tile = tile_cost(d["tile_ow"] * d["tile_oh"], d["tile_oc"], cpu)
        short = 1 + 4 / (d["tile_ic"] * terms)
        # The windows are larger than the weight: better read them once than once a channel tile.
        windows_again = 0.02 * (1 - d["rows_outer"])
        return (
            tile * useless(d) * short
            + 0.02 * (d["tile_oh"] - 1)
            + windows_again
            + 0.05 * (d["order"] != BLOCKS)
        )

    def features(d: Decisions) -> dict[str, float]:
        pixels = d["tile_ow"] * d["tile_oh"]
        return {
            "accumulators": pixels * d["tile_oc"],
            "tile": tile_cost(pixels, d["tile_oc"], cpu),
            "useless": useless(d),
            "terms": d["tile_ic"] * terms,
            "weight_tile_bytes": 4.0 * d["tile_oc"] * block * chunks_in * terms,
        }

    return Space(knobs, is_valid, is_worthwhile, cost, features)


def schedule(sch: Schedule, cpu: CpuModel, d: Decisions) -> None:
    out, columns = sch.get_sblock("out"), find_block(sch, "columns")
    if columns is not None:
        b = ic_block(sch)
        to_order = {
            BLOCKS: lambda n, y, x, ky, kx, c: [n, y, c // b, ky, kx, x, c % b],
            PIXELS: lambda n, y, x, ky, kx, c: [n, y, c // b, ky, kx, c % b, x],
        }
        if d["order"] in to_order:
            sch.transform_layout(columns, ("write", 0), to_order[d["order"]])
        n, y, x, ky, kx, c = sch.get_loops(columns)
        copy_windows(sch, d["order"], rows=[n, y], kernel=[ky, kx], x=x, c=c)
    else:
        number_pixels(sch, lambda n, c, y, x, ow: (n, c, y * ow + x))
    accumulate_in_tile(sch, out, d)
    epilogue.store_tile(sch, out, oc_block(sch))


def number_pixels(sch: Schedule, order: Callable[..., tuple]) -> None:
    """Let `out` count pixels as the products do: `order(n, c, y, x, ow)` gives its three axes, of
    which the second is the channel and the third the pixel."""
    out, axes = sch.get_sblock("out"), extents(sch, "out")
    if layout(sch) == "NHWC":

        def pixel_before_channel(n, y, x, c):  # type: ignore[no-untyped-def]
            first, channel, pixel = order(n, c, y, x, axes[2])
            return [first, pixel, channel]

        sch.transform_block_layout(out, pixel_before_channel)
    else:
        sch.transform_block_layout(out, lambda n, c, y, x: [*order(n, c, y, x, axes[3])])


def ic_block(sch: Schedule) -> int:
    """Input channels that are neighbours in the packed weight."""
    return int(sch.mod["main"].params[1].shape[-2])


def copy_windows(
    sch: Schedule,
    order: int,
    rows: Sequence[LoopRV],
    kernel: Sequence[LoopRV],
    x: LoopRV,
    c: LoopRV,
) -> None:
    """Copy windows in the order in which they are stored, rows in parallel."""
    co, ci = sch.split(c, [None, ic_block(sch)])
    if order == WINDOWS:
        sch.reorder(*rows, x, *kernel, co, ci)
    elif order == BLOCKS:
        sch.reorder(*rows, co, *kernel, x, ci)
    else:
        sch.reorder(*rows, co, *kernel, ci, x)
    if layout(sch) == "NHWC" and order != PIXELS:
        sch.vectorize(ci)
    sch.parallel(sch.fuse(*rows))
