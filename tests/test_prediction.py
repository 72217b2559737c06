"""What a log says of workloads that it lacks: learned times, transferred decisions, the script."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import log_of, record_of

from convtvm import prediction
from convtvm.records import TuningRecord
from convtvm.sources import read_source
from convtvm.targets import resolve
from convtvm.task import Task
from convtvm.workload import ConvWorkload

ROOT = Path(__file__).resolve().parents[1]
NATIVE = resolve("native", 1)
RATES = {"direct": 1e-11, "winograd:4": 4e-12}  # seconds a multiply-add, but see `seconds`
TARGET = (NATIVE.name, 1, "NCHW")


def seconds(w: ConvWorkload, name: str) -> float:
    """A world in which Winograd pays from 64 channels on."""
    return w.macs * RATES[name] * (10 if name != "direct" and w.ic < 64 else 1)


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


def test_times_are_learned(history: list[TuningRecord]) -> None:
    model = prediction.TimeModel.learn(prediction.best_records(history, *TARGET))
    assert model is not None
    for ic, ih in ((12, 20), (48, 14), (160, 40)):
        w = ConvWorkload.make(ic=ic, oc=48, ih=ih, kh=3, padding=1)
        found = model.seconds(w, [*RATES, "mec:b"])
        assert list(found) == list(RATES)  # an algorithm that was never measured has no time
        best = min(RATES, key=lambda name: seconds(w, name))
        assert min(found, key=found.__getitem__) == best
        for name in RATES:
            assert found[name] == pytest.approx(seconds(w, name), rel=0.6)


def test_few_tasks_make_no_model(history: list[TuningRecord]) -> None:
    best = prediction.best_records(history[: prediction.MIN_TASKS - 1], *TARGET)
    assert prediction.TimeModel.learn(best) is None


def test_what_is_learned_from(history: list[TuningRecord]) -> None:
    """Only the fastest record of a task, of this target and of today's template."""
    first = history[0]
    others = [
        replace(first, target="llvm -mcpu=other", run_secs=[1e-9]),
        replace(first, threads=2, run_secs=[1e-9]),
        replace(first, layout="NHWC", run_secs=[1e-9]),
        replace(first, template=first.template - 1, run_secs=[1e-9]),
        replace(first, algorithm="unheard:of", run_secs=[1e-9]),
        replace(first, run_secs=[], error={"kind": "crash"}),
        replace(first, run_secs=[1.0]),
    ]
    assert list(prediction.best_records([*others, first], *TARGET).values()) == [first]
    assert prediction.parsable([first, replace(first, workload="nonsense")]) == [first]


def test_leave_one_network_out(tmp_path: Path) -> None:
    """The script on a log of three networks that follow the rule of `seconds`."""
    made = [w for name in ("resnet18", "resnet50", "vgg16") for w in read_source(name)]
    log = log_of(tmp_path / "x.jsonl", *records_of(list(dict.fromkeys(made))))
    command = [sys.executable, str(ROOT / "scripts" / "evaluate_prediction.py"), str(log)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines()[2:]}
    assert lines["mobilenet_v2"][1:] == ["no", "record", "of", "it"]
    assert lines["resnet50"][1] == "model" and lines["resnet50"][3] == "100%"
