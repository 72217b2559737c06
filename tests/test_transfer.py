"""What a log of other threads, targets and shapes offers a task: which decisions, in what order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from convtvm.kernels.task import Task
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import resolve
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning.transfer import Neighbours

WORKLOAD = ConvWorkload.parse("mb1ic16ih14oc16oh14kh3ph1")
TASK = Task(WORKLOAD, "direct", resolve("avx2", 2))
POINTS = TASK.space.points
HASWELL = "llvm -mtriple=x86_64-linux-gnu -mcpu=haswell"  # as wide as avx2
WIDE = resolve("avx512", 1).name


def record(point: Mapping[str, int], secs: float, **changes: object) -> TuningRecord:
    """A trial of the task with one thread; infinite seconds are a failure."""
    failed = math.isinf(secs)
    made = TuningRecord(
        *replace(TASK, target=resolve("avx2", 1)).key,
        device="a CPU",
        decisions=point,
        template=TASK.template_version,
        run_secs=[] if failed else [secs],
        error={"kind": "crash", "message": "planted"} if failed else {},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def shape(text: str) -> str:
    return ConvWorkload.parse(text).key


def test_the_same_workload_on_other_threads_comes_first() -> None:
    near = record(POINTS[9], 1e-6, workload=shape("mb1ic16ih14oc32oh14kh3ph1"), threads=2)
    own = [record(POINTS[i], 1e-3 * (1 + i), time=str(i)) for i in (4, 1, 3, 2)]
    failed = record(POINTS[0], math.inf)
    seeds = Neighbours([near, *own, failed]).seeds(TASK)
    assert seeds == [POINTS[1], POINTS[2], POINTS[3], POINTS[9]]


def test_a_confirmed_winner_leads() -> None:
    """Its time in the library counts, though another was as fast while tuning."""
    made = [record(POINTS[1], 1e-3), record(POINTS[2], 1.1e-3)]
    made += [record(POINTS[1], 2e-3, confirmed=True), record(POINTS[2], 1.2e-3, confirmed=True)]
    assert Neighbours(made).seeds(TASK) == [POINTS[2], POINTS[1]]


def test_the_place_most_like_this_one() -> None:
    """The same target, then the nearest number of threads; then another with the same vectors."""
    four = record(POINTS[1], 1e-3, threads=4)
    sixteen = record(POINTS[2], 1e-4, threads=16)
    other = record(POINTS[3], 1e-5, target=HASWELL, threads=2)
    assert Neighbours([sixteen, four, other]).seeds(TASK) == [POINTS[1]]
    assert Neighbours([sixteen, other]).seeds(TASK) == [POINTS[2]]
    assert Neighbours([other]).seeds(TASK) == [POINTS[3]]


@pytest.mark.parametrize(
    "changes",
    [
        {"target": WIDE},
        {"target": "llvm -mcpu=of-tomorrow"},
        {"template": TASK.template_version + 1},
        {"layout": "NHWC"},
        {"algorithm": "im2col"},
        {"workload": "no workload"},
        {"threads": 0},
        {"threads": TASK.target.threads},  # its own trials are no news
    ],
)
def test_what_does_not_fit_is_not_offered(changes: dict[str, object]) -> None:
    assert Neighbours([record(POINTS[1], 1e-3, **changes)]).seeds(TASK) == []


def test_other_shapes_nearest_first_each_decision_once() -> None:
    texts = ("mb1ic16ih14oc64oh14kh3ph1", "mb1ic16ih14oc32oh14kh3ph1", "mb1ic16ih14oc16oh14kh3ph1")
    far, near, _ = map(shape, texts)
    made = [
        record(POINTS[5], 1e-3, workload=far, threads=2),
        record(POINTS[6], 2e-3, workload=far, threads=2),
        record(POINTS[7], 1e-3, workload=near),
        record(POINTS[8], 9e-3, workload=near, threads=2),  # the same threads count more
    ]
    assert Neighbours(made).seeds(TASK) == [POINTS[8], POINTS[5]]
    assert Neighbours([*made, record(POINTS[5], 1.0)]).seeds(TASK) == [POINTS[5], POINTS[8]]


def test_samples_are_of_the_same_threads_and_other_shapes() -> None:
    near, far = shape("mb1ic16ih14oc32oh14kh3ph1"), shape("mb1ic16ih14oc256oh14kh3ph1")
    made = [
        record(POINTS[0], 1e-3, workload=far, threads=2),
        record(POINTS[1], 2e-3, workload=near, threads=2),
        record(POINTS[1], 3e-3, workload=near, threads=2),  # of a candidate the faster counts
        record(POINTS[2], math.inf, workload=near, threads=2),
        record(POINTS[3], 1e-3, workload=near),  # of one thread
        record({"tile_ow": 1}, 1e-3, workload=near, threads=2),  # not in the space
        record(POINTS[4], 1e-3, threads=2),  # of the workload itself
    ]
    found = list(Neighbours(made).samples(TASK, without={WORKLOAD}))
    assert [(task.workload.key, samples) for task, samples in found] == [
        (near, [(POINTS[1], 2e-3), (POINTS[2], math.inf)]),
        (far, [(POINTS[0], 1e-3)]),
    ]
