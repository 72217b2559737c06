"""Conflicts of banks of shared memory, counted on the emulated GPU; and the counting itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from emulator import emulated
from emulator.accesses import Access, CountedCheck, CountedSource

from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import Limits
from convtvm.problem.workload import ConvWorkload

pytestmark = pytest.mark.emulated


@pytest.fixture(scope="module")
def emulated_gpu() -> Iterator[Zygote]:
    with emulated() as zygote:
        yield zygote


def counted(job: object, zygote: Zygote) -> list[Access]:
    ((_, outcome),) = zygote.call("run", [job], Limits(timeout=120.0))
    assert isinstance(outcome.value, list), outcome
    return outcome.value


# ---- the counting --------------------------------------------------------------------------------

KERNEL = """
extern "C" __global__ void main_kernel(float* __restrict__ x) {
  extern __shared__ __align__(16) uchar buffer[];
  int t = threadIdx.x;
  %s
}
"""
MATRICES = """
  unsigned int r[4];
  unsigned int addr = __cvta_generic_to_shared(buffer + %s);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%%0, %%1, %%2, %%3}, [%%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr));
  x[t] = r[0] + r[1] + r[2] + r[3];
"""
COPY = """
  unsigned int addr = __cvta_generic_to_shared(buffer + %s);
  asm volatile("cp.async.cg.shared.global [%%0], [%%1], %%2;"
               :: "r"(addr), "l"(x + 4 * t), "n"(16));
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.wait_group 0;");
"""


def stored(place: str, kind: str = "float") -> str:
    return f"(({kind}*)buffer)[{place}] = {{}};"


# statement, what accesses shared memory: kind, bytes, turns in all, without conflicts, ways
SHARED = {
    "neighbours": (stored("t"), ("store", 4, 1, 1, 1)),
    "every other word": (stored("2 * t"), ("store", 4, 2, 1, 2)),
    "one bank": (stored("32 * t"), ("store", 4, 32, 1, 32)),
    "a column of padded rows": (stored("33 * t"), ("store", 4, 1, 1, 1)),
    "one word for all": ("x[t] = ((float*)buffer)[x[t] > 0 ? 5 : 5];", ("load", 4, 1, 1, 1)),
    "two halves of a word": (stored("t", "half"), ("store", 2, 1, 1, 1)),
    "vectors of 16 bytes": (stored("t", "float4"), ("store", 16, 4, 4, 1)),
    "every other vector": (stored("2 * t", "float4"), ("store", 16, 8, 4, 2)),
    "vectors of 8 bytes": (stored("t", "float2"), ("store", 8, 2, 2, 1)),
    "half of the lanes": (f"if (t % 2) {stored('t')}", ("store", 4, 1, 1, 1)),
    "matrices, rows of 64 bytes": (MATRICES % "t * 64", ("matrices", 16, 16, 4, 4)),
    "matrices, rows of 80 bytes": (MATRICES % "t * 80", ("matrices", 16, 4, 4, 1)),
    "matrices, rows swizzled": (
        MATRICES % "(t % 16 * 4 + (t / 16 ^ t / 2 % 4)) * 16",
        ("matrices", 16, 4, 4, 1),
    ),
    "copies to rows of 64 bytes": (COPY % "t * 16", ("copy", 16, 4, 4, 1)),
    "copies to rows of 80 bytes": (COPY % "(t / 4 * 80 + t % 4 * 16)", ("copy", 16, 8, 4, 2)),
}
# statement, what accesses global memory: bytes, sectors in all, enough for the bytes
GLOBAL = {
    "neighbours": ("x[t] = 1;", (4, 4, 4)),
    "every other one": ("x[2 * t] = 1;", (4, 8, 4)),
    "far apart": ("x[8 * t] = 1;", (4, 32, 4)),
    "vectors": ("((float4*)x)[t] = {};", (16, 16, 16)),
    "out of line": ("x[t + 1] = 1;", (4, 5, 4)),
    "eight lanes": ("if (t < 8) x[t] = 1;", (4, 1, 1)),
}


@pytest.mark.parametrize("case", SHARED)
def test_turns_of_shared_memory(case: str, emulated_gpu: Zygote) -> None:
    statement, right = SHARED[case]
    (found,) = (
        a for a in counted(CountedSource(KERNEL % statement), emulated_gpu) if a.space == "shared"
    )
    assert (found.kind, found.bytes, found.cost, found.least, found.worst) == right
    assert (found.kernel, found.requests) == ("main_kernel", 1)


@pytest.mark.parametrize("case", GLOBAL)
def test_sectors_of_global_memory(case: str, emulated_gpu: Zygote) -> None:
    statement, right = GLOBAL[case]
    (found,) = counted(CountedSource(KERNEL % statement), emulated_gpu)
    assert (found.bytes, found.cost, found.least) == right
    assert (found.space, found.kind, found.requests) == ("global", "store", 1)


def test_warps_and_loops_are_told_apart(emulated_gpu: Zygote) -> None:
    """Two warps and three turns of a loop, in which some lanes take part less often."""
    loop = "for (int i = 0; i < 3; i++) if (i < 2 || t % 2) ((float*)buffer)[32 * i + t] = i;"
    found = counted(CountedSource(KERNEL % loop, threads=64), emulated_gpu)  # g++ may unroll it
    assert sum(a.requests for a in found) == sum(a.cost for a in found) == 6
    assert {a.worst for a in found} == {1}


# ---- products on tensor cores --------------------------------------------------------------------

# Rows of a tile of 2, 4, 8 and 16 vectors of 16 bytes, on both sides; one warp, and several.
TILES = {
    "narrow": {"tile_p": 16, "tile_c": 16, "tile_k": 16, "warp_p": 16, "warp_c": 16, "stages": 1},
    "usual": {"tile_p": 64, "tile_c": 32, "tile_k": 32, "warp_p": 32, "warp_c": 32, "stages": 3},
    "wide": {"tile_p": 32, "tile_c": 128, "tile_k": 64, "warp_p": 32, "warp_c": 64, "stages": 2},
}


def product(name: str, dtype: str, layout: str, tiles: str, zygote: Zygote) -> list[Access]:
    """The accesses of a product whose pixels and depth end within tiles; its numbers are right."""
    w = ConvWorkload.make(40, 64, 7, kh=3, padding=1, dtype=dtype)
    task = Task(w, name, resolve("cuda:sm_90"), layout)
    decisions = {**TILES[tiles], "split_k": 1}
    assert task.space.is_valid(decisions)
    return counted(CountedCheck(task, decisions), zygote)


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_nothing_conflicts(dtype: str, layout: str, tiles: str, emulated_gpu: Zygote) -> None:
    """Neither copies into swizzled tiles nor loads of matrices."""
    found = [
        a for a in product("direct", dtype, layout, tiles, emulated_gpu) if a.space == "shared"
    ]
    copied = "store" if TILES[tiles]["stages"] == 1 or layout == "NCHW" else "copy"
    assert {"matrices", copied} <= {a.kind for a in found}
    assert all(a.worst == 1 and not a.conflicts for a in found), found


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_lanes_that_read_tf32_never_conflict(layout: str, emulated_gpu: Zygote) -> None:
    found = product("direct:tf32", "float32", layout, "usual", emulated_gpu)
    loads = [a for a in found if (a.space, a.kind) == ("shared", "load")]
    assert len(loads) >= 2 and all(a.worst == 1 and not a.conflicts for a in loads), found


# Channels, columns of a warp and groups, whose outputs are stored by so many bytes of a lane.
STORES = {
    "16 bytes": ({"oc": 64}, 32, 16),
    "16 bytes, two groups, more columns than channels": ({"oc": 64, "groups": 2}, 64, 16),
    "16 bytes, three groups, a part of a tile": ({"oc": 288, "groups": 3}, 32, 16),
    "8 bytes": ({"oc": 64}, 16, 8),
    "pairs": ({"oc": 40}, 32, 4),
    "single channels": ({"oc": 33}, 32, 2),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", STORES)
def test_outputs_are_stored_by_whole_vectors(case: str, dtype: str, emulated_gpu: Zygote) -> None:
    sizes, columns, width = STORES[case]
    w = ConvWorkload.make(ic=24, ih=7, kh=3, padding=1, n=2, dtype=dtype, **sizes)
    task = Task(w, "direct", resolve("cuda:sm_90"), "NHWC")
    warp = {"tile_c": 64, "warp_c": columns, "tile_p": 32, "warp_p": 16}
    found = counted(CountedCheck(task, {**TILES["usual"], **warp, "split_k": 1}), emulated_gpu)
    stores = [a for a in found if (a.space, a.kind) == ("global", "store")]
    assert {a.bytes for a in stores} == {width}
    assert width < 16 or all(a.cost == a.least for a in stores), stores


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["direct", "im2col", "mec:b"])
def test_sums_through_memory_are_of_the_same_channels(
    name: str, layout: str, emulated_gpu: Zygote
) -> None:
    """Parts of a sum, whose columns are channels in another order; answers are compared."""
    w = ConvWorkload.make(24, 64, 5, kh=3, padding=1, n=2, dtype="float16")
    task = Task(w, name, resolve("cuda:sm_90"), layout)
    counted(CountedCheck(task, {**TILES["usual"], "split_k": 2, "stages": 1}), emulated_gpu)
