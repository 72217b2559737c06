"""The process that measures on a GPU: whatever a candidate does, it costs that candidate only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import tvm
from emulator import emulated, environment
from emulator.plain import PlainTask
from support import LIMITS_IN_TURN, LONG, eventually, record_of

from convtvm import tune
from convtvm.kernels.task import Task
from convtvm.logs import records
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import resolve
from convtvm.measure import client
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import BuildJob, Limits, Outcome, RunJob
from convtvm.measure.problems import write_problem
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning import confirm, tuner
from convtvm.tuning.progress import TaskProgress
from schedules.knobs import Decisions, Rules, Space

pytestmark = pytest.mark.emulated

W = ConvWorkload.make(5, 8, 7, kh=3, padding=1)
TARGET = resolve("cuda:sm_90")
PLAIN = PlainTask(W, "direct", TARGET)
SPLIT = Task(W, "im2col", TARGET, "NCHW")  # takes a workspace
BARRIER = r"__syncthreads\(\);"
LIMITS = Limits(timeout=LONG, window=1e-4, samples=2)


@dataclass(frozen=True)
class Faulty(PlainTask):
    """A task whose source has the first match of `pattern` replaced when it is built."""

    pattern: str = ""
    replacement: str = ""

    def instantiate(self, decisions: Decisions) -> tvm.IRModule:
        if self.pattern:  # in the process that builds, which is its own
            os.environ["EMULATOR_FAULT"] = json.dumps([self.pattern, self.replacement, 0])
        return super().instantiate(decisions)


FAULTS = {
    "nothing": ("", ""),
    "dies": (BARRIER, "__builtin_trap();"),
    "far out": (r"out_ptr\[\(", "out_ptr[((1L << 40) + "),
    "hangs": (BARRIER, "for (volatile int i = 0;;) i = 1;"),
    "breaks the context": (BARRIER, "if (threadIdx.x < 7) __syncthreads();"),
    "beyond": (r"out_ptr\[\(", "out_ptr[(80 + "),
    "before": (r"out_ptr\[\(", "out_ptr[(-9 + "),
    "far beyond": (r"out_ptr\[\(", "out_ptr[(9000 + "),
    "data": (BARRIER, "((float*)data_ptr)[7] = 7; __syncthreads();"),
    "weight": (BARRIER, "((float*)weight_ptr)[7] = 7; __syncthreads();"),
    "bias": (BARRIER, "((float*)bias_ptr)[7] = 7; __syncthreads();"),
    "writes little": (r"out_ptr\[\(", "if (threadIdx.x) out_ptr[("),
}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with emulated() as made:
        yield made


def built(zygote: Zygote, tasks: Sequence[Task]) -> list[RunJob]:
    """A job for the default decisions of each, as the tuner has them."""
    pack = str(zygote.fresh_path("-pack.so"))
    jobs = [BuildJob(tasks[0], None, pack)]
    jobs += [BuildJob(t, t.space.default, str(zygote.fresh_path(".so"))) for t in tasks]
    for _, outcome in zygote.call("build", jobs, Limits(workers=2, timeout=LONG)):
        assert not outcome.kind, outcome
    task = tasks[0]
    inputs = str(write_problem(task.workload, task.layout, zygote))
    scratch = task.scratch(task.space.default)
    shape, tolerance = task.packed_shape(), task.tolerance
    one = RunJob("", pack, shape, inputs, tolerance, device="cuda", scratch=scratch)
    return [replace(one, path=job.path) for job in jobs[1:]]


@pytest.fixture(scope="module")
def faulty(zygote: Zygote) -> dict[str, RunJob]:
    tasks = [Faulty(W, "direct", TARGET, pattern=p, replacement=r) for p, r in FAULTS.values()]
    return dict(zip(FAULTS, built(zygote, tasks), strict=True))


@pytest.fixture(scope="module")
def good(faulty: dict[str, RunJob]) -> RunJob:
    return faulty["nothing"]


def run(zygote: Zygote, *jobs: RunJob, limits: Limits = LIMITS) -> list[Outcome]:
    return [outcome for _, outcome in sorted(zygote.call("run", jobs, limits), key=lambda a: a[0])]


def runners(zygote: Zygote) -> list[int]:
    assert zygote._process
    return [child.pid for child in psutil.Process(zygote._process.pid).children()]


def is_right(outcome: Outcome) -> bool:
    return not outcome.kind and len(outcome.value[0]) == 2 and outcome.value[1] < 1e-5


def test_one_process_for_all_batches_and_tasks(zygote: Zygote, good: RunJob) -> None:
    (other,) = built(zygote, [SPLIT])
    assert other.scratch
    assert all(map(is_right, run(zygote, good, other)))
    (first,) = runners(zygote)
    for _ in range(3):
        assert all(map(is_right, run(zygote, good, other, good)))
    assert runners(zygote) == [first]


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("dies", "crash", "killed by SIGILL"),
        ("far out", "crash", "killed by SIGSEGV"),
        ("breaks the context", "runtime", "threads came"),
        ("beyond", "runtime", "the kernel writes beyond out"),
        ("before", "runtime", "the kernel writes between bias and out"),
        ("far beyond", "runtime", "the kernel writes beyond out"),
        ("data", "runtime", "the kernel writes into data"),
        ("weight", "runtime", "the kernel writes into weight"),
        ("bias", "runtime", "the kernel writes into bias"),
    ],
)
def test_what_it_does_costs_the_candidate(
    what: str, kind: str, message: str, zygote: Zygote, good: RunJob, faulty: dict[str, RunJob]
) -> None:
    """The next is answered by a new process, in the same batch and in another."""
    outcomes = run(zygote, good, faulty[what], good)
    before = runners(zygote)
    assert (outcomes[1].kind, message in outcomes[1].message) == (kind, True), outcomes[1]
    assert is_right(outcomes[0]) and is_right(outcomes[2])
    (outcome,) = run(zygote, faulty[what])
    assert outcome == outcomes[1]
    (outcome,) = run(zygote, good)
    assert is_right(outcome) and runners(zygote) != before


def test_a_kernel_that_leaves_elements_out_is_wrong(
    zygote: Zygote, good: RunJob, faulty: dict[str, RunJob]
) -> None:
    """Although another one wrote them before."""
    outcomes = run(zygote, good, faulty["writes little"], good)
    assert [o.kind for o in outcomes] == ["", "wrong_answer", ""]
    assert outcomes[1].message == "relative error inf, at most 1e-05 is accepted"


def test_one_that_hangs(zygote: Zygote, good: RunJob, faulty: dict[str, RunJob]) -> None:
    for seconds in LIMITS_IN_TURN:
        limits = replace(LIMITS, timeout=seconds)
        first, hanging, last = run(zygote, good, faulty["hangs"], good, limits=limits)
        hung = Outcome(None, "run_timeout", f"no result after {seconds:g} s")
        assert hanging == hung
        if hung not in (first, last):
            break
    assert is_right(first) and is_right(last)


def test_a_process_that_died_between_batches_blames_nobody(zygote: Zygote, good: RunJob) -> None:
    run(zygote, good)
    (runner,) = map(psutil.Process, runners(zygote))
    runner.kill()
    assert eventually(lambda: runner.status() == psutil.STATUS_ZOMBIE)
    assert all(map(is_right, run(zygote, good, good)))


def test_what_cannot_be_loaded(zygote: Zygote, good: RunJob) -> None:
    missing = replace(good, path="/nonexistent.so")
    outcomes = run(zygote, missing, good, replace(good, inputs="/nonexistent"), good)
    assert [o.kind for o in outcomes] == ["runtime", "", "runtime", ""]


def test_no_device_is_no_failure_of_the_candidate(
    good: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper without the emulator finds no GPU."""
    from convtvm.machine import gpu

    if gpu.devices():
        pytest.skip("this machine has a GPU")
    with Zygote() as plain:
        outcomes = run(plain, good, good)
    assert {o.kind for o in outcomes} == {"environment"}
    assert "no NVIDIA GPU here, or no driver for it" in outcomes[0].message


def test_tuning_builds_ahead_and_ends_with_a_race(tmp_path: Path) -> None:
    """Trials of several rounds in flight stay within the budget, and none is made twice."""
    log = tmp_path / "x.jsonl"
    with patch.dict(os.environ, environment()):
        summary = tune(
            W, TARGET, algorithms=["direct", "im2col"], trials=3, total_trials=5, log=log
        )
    made, problems = records.load([log])
    assert not problems and not summary.failures, summary.first_failures
    tried = [r for r in made if not r.confirmed]
    assert len(tried) == summary.measured == 5
    assert len({(r.algorithm, *r.decisions.values()) for r in tried}) == 5
    assert {r.algorithm for r in tried} == {"direct", "im2col"}
    raced = [r for r in made if r.confirmed]
    assert raced and all(len(r.run_secs) == 9 and r.max_error < 1e-5 for r in raced)


@dataclass(frozen=True)
class _Channels(Rules):
    values: tuple[int, ...]

    @property
    def knobs(self) -> dict[str, tuple[int, ...]]:
        return {"tile_p": (64,), "tile_oc": self.values}

    def cost(self, d: Decisions) -> float:
        return 1 / d["tile_oc"]


@dataclass(frozen=True)
class Minefield(PlainTask):
    """A task whose decisions do harm, each in a way of its own; `harms` are by channels of a
    thread."""

    harms: tuple[tuple[int, str], ...] = ()

    @property
    def space(self) -> Space:
        return Space(_Channels(tuple(dict(self.harms))))

    def instantiate(self, decisions: Decisions) -> tvm.IRModule:
        pattern, replacement = FAULTS[dict(self.harms)[decisions["tile_oc"]]]
        return Faulty(
            self.workload, "direct", self.target, pattern=pattern, replacement=replacement
        ).instantiate(decisions)


def mined(
    harms: dict[int, str], log: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, TuningRecord]:
    """What a run that tries each of them once leaves in its log, by what they do."""
    task = Minefield(W, "direct", TARGET, harms=tuple(harms.items()))
    monkeypatch.setattr(tuner, "tasks_of", lambda *_: [task])
    with patch.dict(os.environ, environment()):
        summary = tune(W, TARGET, trials=8, log=log, confirm=False)
    assert summary.measured == len(harms) and not summary.stopped
    return {harms[r.decisions["tile_oc"]]: r for r in records.load([log])[0]}


def test_a_run_goes_on_whatever_its_candidates_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harms = {1: "dies", 2: "beyond", 4: "data", 8: "nothing"}
    found = mined(harms, tmp_path / "x.jsonl", monkeypatch)
    assert {what: r.error.get("kind", "") for what, r in found.items()} == {
        "nothing": "",
        "dies": "crash",
        "beyond": "runtime",
        "data": "runtime",
    }
    assert "the kernel writes beyond out" in found["beyond"].error["message"]
    assert "the kernel writes into data" in found["data"].error["message"]
    assert found["nothing"].max_error < 1e-5


def test_a_run_goes_on_after_one_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is tried first."""
    for seconds in LIMITS_IN_TURN:
        monkeypatch.setattr(client, "RUN_SECONDS", seconds)
        found = mined({4: "nothing", 8: "hangs"}, tmp_path / f"{seconds}.jsonl", monkeypatch)
        hung = {"kind": "run_timeout", "message": f"no result after {seconds:g} s"}
        assert found["hangs"].error == hung
        if not found["nothing"].error:
            break
    assert found["nothing"].max_error < 1e-5


def test_a_race_is_broken_by_who_writes_where_it_must_not(zygote: Zygote) -> None:
    """Then each runs alone, and the others are not blamed."""
    plain, *wrong = (
        Faulty(W, "direct", TARGET, pattern=FAULTS[name][0], replacement=FAULTS[name][1])
        for name in ("nothing", "data", "writes little")
    )
    found = []
    for task, tile_p in zip((plain, *wrong), (64, 32, 128), strict=True):
        record = record_of(task, 1e-4, decisions={"tile_p": tile_p, "tile_oc": 8})
        found.append((TaskProgress(task, 8), record))
    trials = {doubt[0].task: trial for doubt, trial in confirm._measure(found, zygote)}
    assert trials[plain].kind == "" and len(trials[plain].run_secs) == 9
    assert trials[wrong[0]].message == "the kernel writes into data"
    assert trials[wrong[1]].kind == "wrong_answer"
