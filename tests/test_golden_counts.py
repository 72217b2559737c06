"""Hot kernels consist of what they did: multiply-adds, loads, stores, spills, instructions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import golden_counts  # noqa: E402

ENTRIES = json.loads(golden_counts.KEPT.read_text(encoding="utf8"))
IDS = [f"{e['target']}-{e['algorithm']}" for e in ENTRIES]


@pytest.mark.parametrize("kept", ENTRIES, ids=IDS)
def test_counts_are_those_that_are_kept(kept: dict[str, Any]) -> None:
    """If what differs is meant: python scripts/golden_counts.py --renew."""
    found = golden_counts.entry(
        kept["target"], kept["algorithm"], kept["workload"], kept["decisions"]
    )
    assert golden_counts.differences(kept, found) == []


def test_every_kernel_is_kept() -> None:
    kept = [(e["target"], e["algorithm"], e["workload"]) for e in ENTRIES]
    assert kept == [(t, *kernel) for t in golden_counts.TARGETS for kernel in golden_counts.KERNELS]


def test_what_is_kept_is_fast() -> None:
    """Multiply-adds are a good share of every hot loop, and all of them are of vectors."""
    for kept in ENTRIES:
        loop, name = kept["loop"], (kept["target"], kept["algorithm"])
        assert loop["fma"] > 0.4 * loop["instructions"] and not loop.get("scalar"), name


X86 = """
main:
\tvxorps\t%xmm0, %xmm0, %xmm0
\tvmovups\t%ymm1, 32(%rsp)                # 32-byte Spill
.LBB0_1:
\tvbroadcastss\t(%rax), %ymm2
.LBB0_2:                                # Parent Loop
\tvfmadd231ps\t(%rdi,%rcx,4), %ymm2, %ymm0 # ymm0 = (ymm2 * mem) + ymm0
\tvfmadd231ps\t%ymm1, %ymm2, %ymm0
\tvfmadd231ps\t%ymm1, %ymm2, %ymm0
\tvfmadd231ps\t%ymm1, %ymm2, %ymm0
\tvfmadd231ps\t%ymm1, %ymm2, %ymm0
\tvfmadd231ps\t%ymm1, %ymm2, %ymm0
\tvfmadd213ss\t4(%rdi), %xmm2, %xmm3
\tvmovups\t64(%rsp), %ymm4
\tvmovups\t%ymm0, (%rsi)
\taddq\t$4, %rcx
\tjne\t.LBB0_2
\tjl\t.LBB0_1
\tretq
"""
AARCH64 = """
main:
\tstp\tq8, q9, [sp, #-32]!              // 32-byte Folded Spill
.LBB0_1:                               // =>This Inner Loop
\tldp\tq0, q1, [x0], #32
\tldr\tx9, [x1]
\tfmla\tv2.4s, v0.4s, v1.s[0]
\tfmla\tv2.4s, v0.4s, v1.s[0]
\tfmla\tv2.4s, v0.4s, v1.s[0]
\tfmla\tv2.4s, v0.4s, v1.s[0]
\tfmla\tv2.4s, v0.4s, v1.s[0]
\tfmla\tv2.4s, v0.4s, v1.s[0]
\tfmadd\ts3, s4, s5, s3
\tstr\tq2, [x2]
\tsubs\tx3, x3, #1
\tb.ne\t.LBB0_1
\tret
"""


def test_counting_x86() -> None:
    found = golden_counts.counts(X86)
    assert found.loop == {
        "instructions": 11, "fma": 6, "scalar": 1, "loads": 3, "stores": 1, "stack": 1
    }  # fmt: skip
    assert (found.whole["instructions"], found.whole["loads"]) == (16, 4)
    assert (found.whole["stores"], found.whole["stack"]) == (2, 2)


def test_counting_aarch64() -> None:
    found = golden_counts.counts(AARCH64)
    assert found.loop == {"instructions": 12, "fma": 6, "scalar": 1, "loads": 1, "stores": 1}
    assert found.whole["stack"] == 1 and found.whole["stores"] == 2


def test_a_kernel_that_spills_is_noticed() -> None:
    """A tile of more accumulators than there are registers."""
    (kept,) = (e for e in ENTRIES if (e["target"], e["algorithm"]) == ("avx2", "direct"))
    worse = {**kept["decisions"], "tile_ow": 8, "tile_oh": 1, "tile_oc": 4}
    found = golden_counts.entry("avx2", "direct", kept["workload"], worse)
    noticed = golden_counts.differences(kept, found)
    assert any("stack of the loop" in line for line in noticed), noticed
