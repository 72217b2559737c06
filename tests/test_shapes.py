"""Every algorithm on many shapes, against float64: random ones, and a sample of the edge cases.

`scripts/check_shapes.py` runs as many as one likes; here is what fits a test run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from convtvm.algorithms import ALGORITHMS
from convtvm.measure import Zygote
from convtvm.sources import read_source
from convtvm.targets import resolve
from convtvm.task import LAYOUTS, Task, tasks_of
from convtvm.verify import random_workload, verify
from convtvm.workload import ConvWorkload

EDGES = Path(__file__).parent / "shapes" / "edges.txt"
TARGET = resolve("native", 2)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as helper:
        yield helper


def check(tasks: list[Task], zygote: Zygote, rng: random.Random | None = None) -> None:
    """Verify all tasks by their default decisions, or by random ones."""
    kernels = [(t, rng.choice(t.space.points) if rng else t.space.default) for t in tasks]
    wrong = [
        f"{v.task.workload} {v.task.algorithm_name} {v.task.layout} {v.decisions}: {v.problem}"
        for v in verify(kernels, zygote)
        if v.problem
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", [11, 12])
def test_random_workloads(layout: str, seed: int, zygote: Zygote) -> None:
    rng = random.Random(seed)
    workloads = [random_workload(rng) for _ in range(5)]
    check(tasks_of(workloads, TARGET, layout), zygote)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_decisions(layout: str, zygote: Zygote) -> None:
    w = ConvWorkload.parse("mb2ic12ih11iw13oc20oh11ow13kh3kw3ph1pw1")
    check(tasks_of([w] * 3, TARGET, layout), zygote, random.Random(7))


def test_a_sample_of_the_edges(zygote: Zygote) -> None:
    edges = read_source(str(EDGES))
    assert len(edges) >= 250
    tasks = [t for i, w in enumerate(edges[::19]) for t in tasks_of([w], TARGET, LAYOUTS[i % 2])]
    check(tasks, zygote)


def test_a_wrong_kernel_is_found(zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: the float64 reference of another problem must not pass."""
    from convtvm import measure

    honest = measure.conv2d_reference
    monkeypatch.setattr(measure, "conv2d_reference", lambda *a: honest(*a) + 1)
    task = Task(ConvWorkload.parse("mb1ic4ih5oc4oh5kh3ph1"), "direct", TARGET)
    (verdict,) = verify([(task, task.space.default)], zygote, seed=99)
    assert verdict.problem.startswith("wrong_answer")


def test_random_workloads_cover_what_they_should() -> None:
    rng = random.Random(0)
    many = [random_workload(rng) for _ in range(500)]
    assert any(w.is_depthwise for w in many)
    assert any(1 < w.groups < w.ic for w in many)
    assert {w.sh for w in many} == {1, 2, 3, 4}
    assert {w.dw for w in many} == {1, 2, 3}
    assert any((w.ph, w.pw) != (w.ph_r, w.pw_r) for w in many)
    for algorithm in ALGORITHMS.values():
        assert any(algorithm.inapplicable(w) is None for w in many), algorithm.name


def test_refusals_say_why() -> None:
    w = ConvWorkload.parse("mb1ic4ih9oc4oh5kh3sh2ph1")
    assert "stride is 2x2" in (ALGORITHMS["winograd:4"].inapplicable(w) or "")
    w = ConvWorkload.parse("mb1ic4ih9oc4oh7kh3dh1ph1")
    assert "dilation is 2x2" in (ALGORITHMS["winograd:2"].inapplicable(w) or "")
    w = ConvWorkload.parse("g2mb1ic4ih9oc4oh9kh3ph1")
    assert "groups is 2" in (ALGORITHMS["winograd:2"].inapplicable(w) or "")
    assert "1x1" in (ALGORITHMS["winograd:2"].inapplicable(ConvWorkload.make(4, 4, 9)) or "")
