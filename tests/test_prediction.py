"""What a log says of workloads that it lacks: learned times, transferred decisions, the script."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import ROOT, log_of, record_of, without_torch

from convtvm.kernels.task import Task
from convtvm.logs import prediction
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import resolve
from convtvm.problem.sources import read_source
from convtvm.problem.workload import ConvWorkload

NATIVE = resolve("native", 1)
RATES = {"direct": 1e-11, "winograd:4": 4e-12}  # seconds a multiply-add, but see `seconds`


def seconds(w: ConvWorkload, name: str) -> float:
    """A world in which Winograd pays from 35 channels on."""
    loss = 1 if name == "direct" else max(1, 64 / w.ic) ** 1.5
    return w.macs * RATES[name] * loss


def records_of(workloads: list[ConvWorkload]) -> list[TuningRecord]:
    """Made without the spaces of the templates, which take long to enumerate."""
    found = []
    for w in workloads:
        for name in RATES:
            task = Task(w, name, NATIVE)
            if task.algorithm.inapplicable(w) is None:
                found.append(record_of(task, seconds(w, name), decisions={"tile": 1}))
    return found


@pytest.fixture(scope="module")
def history() -> list[TuningRecord]:
    sizes = [(ic, ih) for ic in (8, 16, 32, 64, 96, 128, 256) for ih in (7, 14, 28, 56)]
    shapes = [ConvWorkload.make(ic=ic, oc=64, ih=ih, kh=3, padding=1) for ic, ih in sizes]
    return records_of(shapes)


def model_of(history: list[TuningRecord]) -> prediction.TimeModel:
    best = prediction.best_records(history)
    return prediction.TimeModel([(w, r.algorithm, r.seconds) for w, r in best], NATIVE)


def test_times_are_learned(history: list[TuningRecord]) -> None:
    model = model_of(history)
    for ic, ih in ((12, 20), (48, 14), (160, 40)):
        w = ConvWorkload.make(ic=ic, oc=48, ih=ih, kh=3, padding=1)
        found = model.seconds(w, [*RATES, "mec:b"])
        assert list(found) == list(RATES)  # of a family that was never measured nothing is known
        best = min(RATES, key=lambda name: seconds(w, name))
        assert min(found, key=found.__getitem__) == best
        for name in RATES:
            assert found[name] == pytest.approx(seconds(w, name), rel=0.6)


def test_a_variant_never_measured_is_expected_to_do_as_its_family() -> None:
    """Scalar code wastes the vectors of `direct` where a group has one channel."""
    shapes = [ConvWorkload.make(ic=ic, oc=64, ih=ih, kh=3) for ic in (8, 32) for ih in (7, 28)]
    model = model_of(records_of(shapes))
    w = ConvWorkload.make(ic=64, oc=64, ih=34, kh=3, groups=64)
    found = model.seconds(w, ["direct", "direct:depthwise"])
    assert found["direct"] == pytest.approx(NATIVE.lanes * found["direct:depthwise"], rel=0.5)


def test_few_tasks_make_no_model(history: list[TuningRecord]) -> None:
    task = Task(ConvWorkload.parse("mb1ic200ih20oc64kh3ph1"), "winograd:4", NATIVE)
    few = prediction.Hints(history[: prediction.MIN_TASKS - 1], NATIVE)
    enough = prediction.Hints(history[: prediction.MIN_TASKS], NATIVE)
    assert few.of(task).seconds is None and enough.of(task).seconds is not None


def test_a_model_is_of_the_target_itself_if_it_can_be(history: list[TuningRecord]) -> None:
    """Else of near targets, else of other numbers of threads."""
    w = ConvWorkload.make(ic=48, oc=64, ih=14, kh=3, padding=1)
    task = Task(w, "direct", NATIVE)
    slower = [replace(r, run_secs=[10 * r.seconds]) for r in history]
    threaded = [replace(r, threads=2) for r in slower]
    own, other = (prediction.Hints(made, NATIVE).of(task) for made in (history, threaded))
    both = prediction.Hints([*threaded, *history], NATIVE).of(task)
    assert own.seconds is not None and other.seconds == pytest.approx(20 * own.seconds)
    assert both.seconds == pytest.approx(own.seconds)


def test_disturbed_times_are_not_learned(history: list[TuningRecord]) -> None:
    task = Task(ConvWorkload.parse("mb1ic48ih14oc64kh3ph1"), "direct", NATIVE)
    worse = [replace(r, run_secs=[50 * r.seconds], disturbed=True) for r in history[:8]]
    clean = prediction.Hints(history[8:], NATIVE).of(task)
    assert prediction.Hints([*worse, *history[8:]], NATIVE).of(task) == clean


def test_what_is_learned_from(history: list[TuningRecord]) -> None:
    """Only the best record of a task, of today's template, of what is a workload."""
    first = history[0]
    others = [
        replace(first, template=first.template - 1, run_secs=[1e-9]),
        replace(first, algorithm="unheard:of", run_secs=[1e-9]),
        replace(first, workload="nonsense", run_secs=[1e-9]),
        replace(first, run_secs=[], error={"kind": "crash"}),
        replace(first, run_secs=[1.0]),
    ]
    elsewhere = replace(first, threads=2)
    found = prediction.best_records([*others, first, elsewhere])
    assert found == [(ConvWorkload.parse(first.workload), r) for r in (first, elsewhere)]


def test_leave_one_network_out(tmp_path: Path) -> None:
    """The script on a log of three networks that follow the rule of `seconds`."""
    made = [w for name in ("resnet18", "resnet50", "vgg16") for w in read_source(name)]
    log = log_of(tmp_path / "x.jsonl", *records_of(list(dict.fromkeys(made))))
    command = [
        sys.executable,
        str(ROOT / "scripts" / "figures" / "evaluate_prediction.py"),
        str(log),
    ]
    environment = without_torch(ROOT)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines()[2:]}
    assert lines["mobilenet_v2"][1:] == ["no", "record", "of", "it"]
    assert lines["resnet50"][1] == "model" and lines["resnet50"][3] == "100%"
