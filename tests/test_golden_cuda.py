"""Hot CUDA kernels take what they did: registers, stack, spills, shared memory, code."""

from __future__ import annotations

import json
import struct
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import golden_cuda  # noqa: E402

from convtvm.errors import EnvironmentProblem  # noqa: E402
from convtvm.kernels.cuda import cubin  # noqa: E402

ENTRIES = json.loads(golden_cuda.KEPT.read_text(encoding="utf8"))


def compiler() -> cubin.Compiler:
    """One of the release that is kept; else the test is skipped."""
    try:
        found = cubin.find_compiler()
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    here, kept = golden_cuda.release(found), ENTRIES[0]["release"]
    if here != kept:
        pytest.skip(f"kept is what CUDA {kept} makes, here is {here}")
    return found


@pytest.mark.cubin
def test_figures_are_those_that_are_kept() -> None:
    """If what differs is meant: python scripts/golden_cuda.py --renew."""
    compiler()
    found = golden_cuda.again(ENTRIES)
    pairs = zip(ENTRIES, found, strict=True)
    assert [line for kept, now in pairs for line in golden_cuda.differences(kept, now)] == []


def test_every_kernel_is_kept() -> None:
    kept = [(e["arch"], e["algorithm"], e["layout"], e["workload"]) for e in ENTRIES]
    wanted = [(arch, *kernel) for arch in golden_cuda.ARCHES for kernel in golden_cuda.KERNELS]
    assert kept == wanted and len({e["release"] for e in ENTRIES}) == 1


def test_nothing_that_is_kept_spills() -> None:
    for kept in ENTRIES:
        for name, found in kept["kernels"].items():
            assert not (found["spills"] or found["stack"]), (kept["workload"], name)
            assert found["registers"] <= 255 and found["code"] > 0


@pytest.mark.parametrize(
    ("figure", "more"), [("registers", 20), ("spills", 8), ("stack", 16), ("code", 4096)]
)
def test_a_kernel_that_became_worse_is_noticed(figure: str, more: int) -> None:
    (kept, *_) = ENTRIES
    worse = deepcopy(kept)
    (name, *_) = worse["kernels"]
    worse["kernels"][name][figure] += more
    (line,) = golden_cuda.differences(kept, worse)
    assert f"{figure} of {name}: " in line
    assert golden_cuda.differences(kept, deepcopy(kept)) == []


def test_kernels_that_came_or_went_are_noticed() -> None:
    (kept, *_) = ENTRIES
    other = {**kept, "kernels": {"other_kernel": {}}}
    assert "-> other_kernel" in golden_cuda.differences(kept, other)[0]


@pytest.mark.cubin
def test_a_kernel_that_spills_is_noticed() -> None:
    """The same source for a GPU of which a thread may have a few registers only."""
    found = compiler()
    source = """
    extern "C" __global__ void __launch_bounds__(1024, 2) main_kernel(float* x) {
      float sums[64];
      for (int i = 0; i < 64; ++i) sums[i] = x[i * 1024 + threadIdx.x];
      for (int k = 0; k < 64; ++k)
        for (int i = 0; i < 64; ++i) sums[i] = sums[i] * sums[(i + 7) % 64] + x[k];
      for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = sums[i];
    }
    """
    (arch, *_) = golden_cuda.ARCHES
    image = cubin.compile_source(source, [arch], found)
    (figures,) = image.figures.values()
    assert figures.spills > 0 and figures.registers <= 32
    assert golden_cuda.code_bytes(image.data)["main_kernel"] > 1000


def section(names: list[bytes], sizes: list[int]) -> bytes:
    """An ELF file of sections of these names, the last one of which holds the names."""
    table = b"\0" + b"\0".join(names) + b"\0"
    places = [table.index(name) for name in names]
    headers = [
        struct.pack("<IIQQQQIIQQ", place, 0, 0, 0, 64 if last else 0, size, 0, 0, 0, 0)
        for place, size, last in zip(places, sizes, [n == names[-1] for n in names], strict=True)
    ]
    start = 64 + len(table)
    ident = b"\x7fELF" + bytes(36) + struct.pack("<Q", start)
    tail = struct.pack("<HHH", 64, len(names), len(names) - 1)
    return ident.ljust(58, b"\0") + tail + table + b"".join(headers)


def test_code_is_counted_by_kernel() -> None:
    made: Any = section(
        [b".text.main_kernel", b".data", b".text.other", b".shstrtab"], [64, 9, 32, 1]
    )
    assert golden_cuda.code_bytes(made) == {"main_kernel": 64, "other": 32}
