"""Every algorithm on many shapes, against float64: random ones, and a sample of the edge cases.

`scripts/figures/check_shapes.py` runs as many as one likes; here is what fits a test run.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from convtvm.cli import main
from convtvm.kernels import codegen, lowering
from convtvm.kernels.algorithms import ALGORITHMS, Algorithm, applicable
from convtvm.kernels.cuda.algorithms import CUDA_ALGORITHMS
from convtvm.kernels.task import Task, tasks_of
from convtvm.machine.targets import resolve
from convtvm.measure.client import Zygote
from convtvm.measure.verify import Check, random_workload, verify
from convtvm.problem.sources import read_source
from convtvm.problem.workload import LAYOUTS, ConvWorkload

EDGES = Path(__file__).parent / "shapes" / "edges.txt"
TARGET = resolve("native", 2)


@pytest.fixture(scope="module")
def helpers() -> Iterator[list[Zygote]]:
    """Two that can unpickle the tasks planted below."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        with Zygote() as one, Zygote() as two:
            yield [one, two]


def assert_right(checks: list[Check], helpers: list[Zygote]) -> None:
    verdicts = list(verify(checks, helpers, chunk=8))
    wrong = [f"{v.check} {v.decisions}: {v.problem}" for v in verdicts if v.problem]
    assert not wrong, "\n".join(wrong)
    assert Counter(v.check for v in verdicts) == Counter(checks)


# Strassen takes larger parts than random workloads have: tests/test_strassen.py.
FOR_SMALL = {name: row for name, row in ALGORITHMS.items() if row.family != "strassen"}


def test_random_workloads(helpers: list[Zygote]) -> None:
    """Twenty workloads, each algorithm in one layout and the other in turn; a run of the script
    takes more, with LLVM's optimiser."""
    rng = random.Random(59)
    tasks: list[Task] = []
    turns = Counter[str]()
    for _ in range(20):
        alike = tasks_of([random_workload(rng)], TARGET)
        turns.update(t.algorithm_name for t in alike)
        placed = [replace(t, layout=LAYOUTS[turns[t.algorithm_name] % 2]) for t in alike]
        tasks += sorted(placed, key=lambda t: t.layout)  # each layout has a reference of its own
    checks = [Check(t, opt_level=3 if i % 8 == 0 else 0) for i, t in enumerate(tasks)]
    assert {(t.algorithm_name, t.layout) for t in tasks} == {*product(FOR_SMALL, LAYOUTS)}
    assert_right(checks, helpers)


def test_random_decisions(helpers: list[Zygote]) -> None:
    w = ConvWorkload.parse("mb2ic12ih11iw13oc20oh11ow13kh3kw3ph1pw1")
    tasks = [task for layout in LAYOUTS for task in tasks_of([w] * 2, TARGET, layout)]
    assert_right([Check(t, decisions=i, opt_level=0) for i, t in enumerate(tasks)], helpers)


def test_a_sample_of_the_edges(helpers: list[Zygote]) -> None:
    edges = read_source(str(EDGES))
    assert len(edges) >= 250
    # Of each every other algorithm, and of the next one the others.
    sample = enumerate(edges[::19])
    tasks = [t for i, w in sample for t in tasks_of([w], TARGET, LAYOUTS[i // 2 % 2])[i % 2 :: 2]]
    checks = [Check(t, opt_level=3 if i % 8 == 0 else 0) for i, t in enumerate(tasks)]
    assert_right(checks, helpers)


# ---- the check itself ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong(Task):
    """A task whose kernel pads with one row too many on top: right shapes, wrong numbers."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Wrong, Task.__reduce__(self)[1]

    def instantiate(self, decisions: Mapping[str, int]) -> Any:
        shifted = ConvWorkload.make(4, 4, 5, kh=3, padding=(2, 1, 0, 1))
        return Task(shifted, "direct", self.target).instantiate(decisions)


@dataclass(frozen=True)
class Deadly(Task):
    def __reduce__(self) -> tuple[Any, ...]:
        return Deadly, Task.__reduce__(self)[1]

    def instantiate(self, decisions: Mapping[str, int]) -> Any:
        os.kill(os.getpid(), signal.SIGSEGV)


SMALL = ConvWorkload.make(4, 4, 5, kh=3, padding=1)


def test_wrong_and_crashing_kernels_are_found(helpers: list[Zygote]) -> None:
    kinds = (Task, Wrong, Deadly, Task)
    checks = [Check(kind(SMALL, "direct", TARGET)) for kind in kinds]
    right, wrong, dead, again = verify(checks, helpers[:1])
    assert right.problem == again.problem == ""
    assert wrong.problem.startswith("relative error") and "> 0e+00" in wrong.problem
    assert "SIGSEGV" in dead.problem and dead.check is checks[2]


def test_what_has_passed_is_known_again(helpers: list[Zygote]) -> None:
    check = Check(Task(SMALL, "direct", TARGET), opt_level=0)
    (first,) = verify([check], helpers[:1])
    others = [replace(check, opt_level=1), replace(check, task=Task(SMALL, "im2col", TARGET))]
    known = [replace(c, known=first.fingerprint) for c in (check, *others)]
    assert [v.repeated for v in verify(known, helpers[:1])] == [True, False, False]
    assert len(first.fingerprint) == 16 and not first.repeated


def test_random_workloads_cover_what_they_should() -> None:
    rng = random.Random(0)
    many = [random_workload(rng) for _ in range(500)]
    assert any(w.is_depthwise for w in many)
    assert any(1 < w.groups < w.ic for w in many)
    assert {w.sh for w in many} == {1, 2, 3, 4}
    assert {w.dw for w in many} == {1, 2, 3}
    assert any((w.ph, w.pw) != (w.ph_r, w.pw_r) for w in many)
    for algorithm in FOR_SMALL.values():
        assert any(algorithm.inapplicable(w) is None for w in many), algorithm.name


def test_refusals_say_why() -> None:
    w = ConvWorkload.parse("mb1ic4ih9oc4oh3kh3sh3ph0")
    assert "with stride 3x3" in (ALGORITHMS["winograd:4"].inapplicable(w) or "")
    w = ConvWorkload.parse("g2mb1ic4ih9oc4oh9kh3ph1")
    assert "groups is 2" in (ALGORITHMS["winograd:2"].inapplicable(w) or "")
    assert "1x1" in (ALGORITHMS["winograd:2"].inapplicable(ConvWorkload.make(4, 4, 9)) or "")


# ---- sizes beyond 32 bits ------------------------------------------------------------------------

# Workload -> algorithms whose own buffer has more than 2^31 - 1 elements.
BEYOND = {
    "mb1ic32ih2800oc12kh3ph1": ("im2col",),
    "mb16ic64ih224oc64kh7ph3": ("im2col",),
    "mb2ic700ih724oc1400kh3ph1": ("im2col", "mec:b"),
    "mb1ic64ih5800oc64kh3ph1": ("im2col", "mec:b", "winograd:2", "winograd:4", "winograd:6"),
    # 64 * 64 phases of 90 * 90 pixels, in whole tiles.
    "mb1ic64ih5700oc64kh3ph64dh63": ("im2col", "mec:b", "winograd:2", "winograd:4", "winograd:6"),
    "mb1ic1ih15447oc1kh3ph1": ("im2col",),  # 9 * 15447^2 = 2^31 + 4,633
}


@pytest.mark.parametrize("table", [ALGORITHMS, CUDA_ALGORITHMS], ids=["cpu", "cuda"])
@pytest.mark.parametrize("text", BEYOND)
def test_what_does_not_fit_32_bits_is_not_applicable(
    text: str, table: Mapping[str, Algorithm]
) -> None:
    """The reason has the numbers; the others serve the workload."""
    w = ConvWorkload.parse(text)
    for name in BEYOND[text]:
        if name in table:
            reason = table[name].inapplicable(w) or ""
            assert "elements, more than 2,147,483,647" in reason, (name, reason)
    left = [a.name for a in applicable(w, table=table)]
    assert "direct" in left and not set(left) & set(BEYOND[text])


@pytest.mark.parametrize("table", [ALGORITHMS, CUDA_ALGORITHMS], ids=["cpu", "cuda"])
@pytest.mark.parametrize(
    "text",
    [
        "mb4611686018427387904ic4ih6oc4kh3ph1",
        "mb1ic9223372036854775807ih6oc4kh3ph1",
        "mb1ic4ih6oc9223372036854775807kh3ph1",
        "mb1ic4ih6oc4kh3ph9223372036854775807",
        "mb9223372036854775807ic4ih6oc4kh3ph2dh1",
        "g9223372036854775807mb1ic9223372036854775807ih6oc9223372036854775807kh3ph1",
        "mb1ic4ih9223372036854775807iw1oc4kh9223372036854775807kw1",
    ],
)
def test_what_no_memory_holds_is_not_applicable(text: str, table: Mapping[str, Algorithm]) -> None:
    w = ConvWorkload.parse(text)
    for algorithm in table.values():
        assert "more than a process can address" in (algorithm.inapplicable(w) or ""), algorithm


def test_what_no_memory_holds_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--batch", str(1 << 62), "--threads", "1"]
    assert main(["compile", "resnet18", *args, "-o", str(tmp_path / "x.so")]) == 2
    assert main(["tune", "resnet18", *args, "--log", str(tmp_path / "x.jsonl")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and not list(tmp_path.iterdir())
    assert all("more than a process can address" in line for line in lines)


@pytest.mark.parametrize("text", ["mb1ic1ih15446oc1kh3ph1", "mb1ic64ih5700oc64kh1"])
def test_what_just_fits_is_applicable(text: str) -> None:
    assert ALGORITHMS["im2col"].inapplicable(ConvWorkload.parse(text)) is None


WIDE = ["mb1ic1ih50000oc2kh3sh5000dh10", "mb2ic3ih30000oc4kh1", "mb1ic1ih47000oc1kh3sh40ph1"]


@pytest.mark.parametrize("text", [*BEYOND, *WIDE])
def test_everything_applicable_compiles(text: str) -> None:
    """Lowered to LLVM; a literal that exceeds 32 bits, or none for a wide tensor, shows here."""
    w = ConvWorkload.parse(text)
    target = resolve("avx2", 1)
    wide = max(w.data_bytes, w.out_bytes) > 4 * (2**31 - 1)
    for task in tasks_of([w], target):
        func = task.instantiate(task.space.default)["main"]
        lowered = lowering.lower(codegen.merge({"main": func}), target.tvm)
        assert not wide or "int64" in lowered.script(), task
