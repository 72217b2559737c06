"""What a log of one GPU says of another, and of other dtypes, whose knobs may be others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from convtvm.kernels.task import Task, tasks_of
from convtvm.library.choices import choose, keep_some
from convtvm.logs import prediction, records
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import is_near, resolve
from convtvm.problem.sources import read_source
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning.transfer import Neighbours

make = ConvWorkload.make
SHIPPED = [r for r in records.load(records.shipped_logs())[0] if r.target == "cuda -arch=sm_90"]
LAYER = make(64, 64, 56, kh=3, padding=1)


def record(task: Task, decisions: dict[str, int], secs: float) -> TuningRecord:
    return TuningRecord(
        *task.key,
        device="a GPU",
        decisions=decisions,
        template=task.template_version,
        run_secs=[secs],
    )


def of(w: ConvWorkload, arch: str, name: str = "direct", layout: str = "NHWC") -> Task:
    return Task(w, name, resolve(f"cuda:{arch}"), layout)


@pytest.mark.parametrize("arch", ["sm_80", "sm_89"])
def test_decisions_of_another_architecture_come_first(arch: str) -> None:
    """Of the same layer; those that need more than this one has are refused."""
    w = replace(LAYER, dtype="float16", n=16, oc=128)
    here, there = of(w, arch), of(w, "sm_90")
    assert is_near(there.target.name, here.target)
    small = next(d for d in there.space.points if here.space.contains(d))
    large = max(there.space.points, key=lambda d: there.space.features(d)["shared"])
    assert not here.space.contains(large)
    made = [record(there, large, 1e-6), record(there, small, 2e-6)]
    assert Neighbours(made).seeds(here) == [large, small]
    hint = prediction.Hints(made[1:], here.target, "NHWC").of(here)
    assert hint.decisions == small and hint.source == made[1]
    assert prediction.Hints(made[:1], here.target, "NHWC").of(here).decisions is None


def test_defaults_differ_with_the_machine() -> None:
    """Processors, shared memory and rates are those of each architecture."""
    tasks = [of(replace(LAYER, n=16), arch, layout="NCHW") for arch in ("sm_80", "sm_89", "sm_90")]
    models = {task.device for task in tasks}
    assert len({(m.processors, m.shared_bytes, m.multiply_adds) for m in models}) == 3
    costs = [task.space.cost(task.space.default) for task in tasks]
    assert costs[0] > costs[2], "an A100 multiplies half as many float32 in a cycle"


def test_trials_of_another_dtype_teach_nothing() -> None:
    """Their knobs are those of another kernel, even if the nearest shape has them."""
    half = replace(LAYER, dtype="float16")
    made = [record(of(LAYER, "sm_90"), of(LAYER, "sm_90").space.default, 1e-6)]
    other = replace(half, n=2)
    made.append(record(of(other, "sm_90"), of(other, "sm_90").space.default, 1e-6))
    found = list(Neighbours(made).samples(of(half, "sm_90"), without={half}))
    assert [task.workload for task, _ in found] == [other]


def expected(history: Iterable[TuningRecord], w: ConvWorkload, layout: str) -> float:
    task = of(w, "sm_90", layout=layout)
    seconds = prediction.Hints(history, task.target, layout).of(task).seconds
    assert seconds is not None
    return seconds


def test_times_are_learned_by_dtype() -> None:
    """Of records in one layout whose float16 kernels are four times as fast."""
    shapes = [
        make(ic, oc, ih, kh=k, padding=k // 2)
        for ic, oc in ((64, 64), (128, 256), (256, 64))
        for ih in (14, 28, 56)
        for k in (1, 3)
    ]
    history = []
    for w in shapes:
        for dtype, rate in (("float32", 1e13), ("float16", 4e13)):
            task = of(replace(w, dtype=dtype), "sm_90")
            history.append(record(task, task.space.default, w.flops / rate))
    new = make(96, 128, 28, kh=3, padding=1)
    single, half = (
        expected(history, replace(new, dtype=d), "NHWC") for d in ("float32", "float16")
    )
    assert single / half == pytest.approx(4, rel=0.35)


def test_the_shipped_log_predicts_for_its_gpu() -> None:
    """A layer that it holds, without its records: within a factor of two."""
    held = next(r for r in SHIPPED if r.algorithm == "direct" and r.layout == "NCHW")
    others = [r for r in SHIPPED if r.workload != held.workload]
    w = ConvWorkload.parse(held.workload)
    assert held.seconds / 2 < expected(others, w, "NCHW") < held.seconds * 2


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_depthwise_layers_are_for_their_own_kernel(layout: str) -> None:
    """Which no log has: tiles of products would be empty but for one channel of sixteen."""
    layers = [w for w in read_source("mobilenet_v2") if w.groups > 1]
    tasks = tasks_of(layers, resolve("cuda:sm_90"), layout)
    kept = keep_some(choose(tasks, SHIPPED), "best")
    assert [c.task.workload for c in kept] == layers
    assert {c.task.algorithm_name for c in kept} == {"direct:depthwise"}
