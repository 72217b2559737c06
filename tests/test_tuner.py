"""Tuning for real, on a tiny workload: what is recorded, and every way to be stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from support import LONG, ROOT, eventually, without_torch

from convtvm import __version__
from convtvm.errors import WorkloadError
from convtvm.library.build import compile
from convtvm.logs import records
from convtvm.logs.records import TuningRecord
from convtvm.machine.cpu import device_name
from convtvm.machine.targets import resolve
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning.progress import TuningSummary, winners
from convtvm.tuning.tuner import tune

WORKLOAD = ConvWorkload.parse("mb1ic8ih6oc8oh6kh3ph1")
TRIALS = 3
ALGORITHMS = ("direct", "winograd:2")


def in_log(log: Path) -> list[TuningRecord]:
    """All records; at most the last line is torn."""
    found, problems = records.load([log])
    assert [p.line for p in problems] in ([], [len(found) + 1])
    return found


# ---- undisturbed ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[TuningSummary, list[psutil.Process]]:
    """A finished call of `tune`, and the processes that it had started."""
    before = set(psutil.Process().children(recursive=True))  # what other files share
    helpers: list[psutil.Process] = []

    def listener(*_: object) -> None:
        helpers.extend(set(psutil.Process().children(recursive=True)) - before)

    log = tmp_path_factory.mktemp("tuned") / "x.jsonl"
    options = {"threads": 1, "trials": TRIALS, "log": log}
    summary = tune([WORKLOAD], algorithms=ALGORITHMS, listener=listener, **options)  # type: ignore[arg-type]
    return summary, helpers


def test_summary(tuned: tuple[TuningSummary, list[psutil.Process]]) -> None:
    summary, _ = tuned
    assert (summary.measured, summary.reused, summary.stopped) == (2 * TRIALS, 0, "")
    assert not summary.failures and not summary.problems and summary.seconds > 0
    found = in_log(summary.log)
    assert [r for r in found if r.confirmed] == found[2 * TRIALS :]
    assert summary.confirmed == len(found) - 2 * TRIALS > 0
    for progress, name in zip(summary.tasks, ALGORITHMS, strict=True):
        own = [r for r in found if r.task_key == progress.task.key]
        trials = [r for r in own if not r.confirmed]
        assert progress.task.algorithm_name == name and len(trials) == progress.done == TRIALS
        assert progress.default == own[0] and progress.best == records.best(own)
        assert own[0].decisions == progress.task.space.default


def test_records_are_complete(tuned: tuple[TuningSummary, list[psutil.Process]]) -> None:
    summary, _ = tuned
    target = resolve("native", 1)
    for made in in_log(summary.log):
        task = next(p.task for p in summary.tasks if p.task.key == made.task_key)
        assert made.workload == WORKLOAD.key
        assert (made.target, made.threads, made.layout) == (target.name, 1, "NCHW")
        assert made.device == device_name()
        assert task.space.contains(made.decisions) and made.template == task.template_version
        assert made.run_secs and all(0 < s < 1 for s in made.run_secs) and made.error == {}
        assert made.max_error is not None and 0 <= made.max_error <= task.algorithm.tolerance
        assert type(made.workspace_bytes) is int and made.workspace_bytes >= 0
        assert made.versions["convtvm"] == __version__ and made.versions["tvm"]
        assert datetime.fromisoformat(made.time).tzinfo
    assert records.usable(in_log(summary.log), summary.tasks[0].task)


def test_nothing_is_left(tuned: tuple[TuningSummary, list[psutil.Process]]) -> None:
    _, helpers = tuned
    assert helpers and eventually(lambda: not any(helper.is_running() for helper in helpers))


def test_nothing_left_to_do(tuned: tuple[TuningSummary, list[psutil.Process]]) -> None:
    log = tuned[0].log
    before = log.read_bytes()
    summary = tune([WORKLOAD], threads=1, trials=TRIALS, algorithms=ALGORITHMS, log=log)
    assert (summary.measured, summary.reused, summary.stopped) == (0, 2 * TRIALS, "")
    assert log.read_bytes() == before


def test_best_is_confirmed_in_the_library(
    tuned: tuple[TuningSummary, list[psutil.Process]],
) -> None:
    """The workload's winner carries the time of the exported library, and both are known."""
    summary, _ = tuned
    progress, winner = winners(summary.tasks)[WORKLOAD]
    assert winner.confirmed and winner.max_error is not None and progress.best == winner
    assert progress.tuned_secs and progress.tuned_secs > 0
    built = compile([WORKLOAD], threads=1, logs=[summary.log], algorithms=ALGORITHMS)
    assert built.candidates(WORKLOAD)[0].run_secs == winner.seconds


@pytest.mark.usefixtures("forked_helpers")
def test_time_limit_stops_within_a_batch(tmp_path: Path) -> None:
    """With the trial that was begun."""
    log, told = tmp_path / "x.jsonl", list[float]()

    def listener(_: object, __: object, record: TuningRecord | None) -> None:
        if record and not record.confirmed:
            told.append(time.monotonic())

    options = {"threads": 1, "trials": 10_000, "log": log, "time_limit": 4.0, "listener": listener}
    summary = tune([WORKLOAD], algorithms=["direct"], **options)  # type: ignore[arg-type]
    limit = time.monotonic() - summary.seconds + 4.0
    assert summary.stopped == "time limit reached" and summary.seconds < LONG
    assert sum(moment > limit for moment in told) <= 1 and len(told) == summary.measured
    assert summary.measured + summary.confirmed == len(in_log(log))


@pytest.mark.usefixtures("forked_helpers")
def test_budget_of_trials(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    options = {"threads": 1, "total_trials": 5, "log": log, "confirm": False}
    summary = tune([WORKLOAD], algorithms=ALGORITHMS, **options)  # type: ignore[arg-type]
    assert summary.measured == len(in_log(log)) == 5
    assert summary.stopped == "all trials of the budget done"
    assert all(p.default for p in summary.tasks)


def test_no_helper_without_work(
    tuned: tuple[TuningSummary, list[psutil.Process]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convtvm.tuning.tuner.Zygote", None)
    summary = tune([WORKLOAD], threads=1, trials=TRIALS, algorithms=ALGORITHMS, log=tuned[0].log)
    assert summary.measured == 0 and all(p.ended == "all its trials" for p in summary.tasks)


def test_nothing_applicable_is_refused(tmp_path: Path) -> None:
    grouped = ConvWorkload.parse("g2mb1ic8ih6oc8oh6kh3ph1")
    with pytest.raises(WorkloadError, match="nothing to tune: none of winograd can compute"):
        tune([grouped], threads=1, algorithms=["winograd"], log=tmp_path / "x.jsonl")
    with pytest.raises(WorkloadError, match="nothing to tune"):
        tune([], threads=1, log=tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


# ---- stopped -------------------------------------------------------------------------------------

TUNE = """
import sys
sys.modules["torch"] = None  # tvm_ffi would import it
from convtvm.tuning.tuner import tune
from convtvm.problem.workload import ConvWorkload
import convtvm.tuning.budget
convtvm.tuning.budget._BATCH = 4  # so that the first records come soon
print("started", flush=True)
workload = ConvWorkload.parse(sys.argv[1])
summary = tune([workload], threads=1, trials=1000, log=sys.argv[2], algorithms=["direct"])
print(summary.stopped, summary.measured, flush=True)
"""


class Tuning:
    """`tune` in a process of its own, with the helper and the folder that it uses."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-c", TUNE, WORKLOAD.key, str(log)],
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout and self.process.stdout.readline() == "started\n"
        self.helper = self._wait_for_helper()
        self.folder = Path(self.helper.cmdline()[-1])
        assert self.folder.name.startswith("convtvm-")

    def _wait_for_helper(self) -> psutil.Process:
        found: list[psutil.Process] = []

        def started() -> bool:
            children = psutil.Process(self.process.pid).children()
            found.extend(c for c in children if "zygote.serve" in " ".join(c.cmdline()))
            return bool(found)

        assert eventually(started)
        return found[0]

    @property
    def lines(self) -> int:
        assert self.process.poll() is None, "tuning ended by itself"
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    def stop(self, number: int) -> tuple[int, str, str]:
        """Send a signal; exit status, output and errors once nothing of it is left."""
        helpers = [self.helper, *self.helper.children(recursive=True)]
        self.process.send_signal(number)
        out, err = self.process.communicate()
        assert eventually(lambda: not any(helper.is_running() for helper in helpers))
        assert not self.folder.exists()
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Tuning]]:
    started: list[Tuning] = []

    def begin() -> Tuning:
        started.append(Tuning(tmp_path / "x.jsonl"))
        return started[-1]

    yield begin
    for tuning in started:
        tuning.process.kill()
        tuning.process.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_helpers")
def test_killed_and_resumed(start: Callable[[], Tuning]) -> None:
    for lines in (1, 4):
        tuning = start()
        assert eventually(lambda: tuning.lines >= lines)  # noqa: B023
        assert tuning.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    log = tuning.log
    before, kept = log.read_bytes(), in_log(log)
    assert len(kept) >= 4
    summary = tune([WORKLOAD], threads=1, trials=len(kept) + 2, algorithms=["direct"], log=log)
    assert (summary.measured, summary.reused) == (2, len(kept))
    assert log.read_bytes().startswith(before)
    found = [r for r in records.load([log])[0] if not r.confirmed]
    assert found[: len(kept)] == kept
    assert len({r.identity for r in found}) == len(found) == len(kept) + 2
    assert found[0].decisions == summary.tasks[0].task.space.default


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_ctrl_c_keeps_what_is_finished(start: Callable[[], Tuning], lines: int) -> None:
    tuning = start()
    assert eventually(lambda: tuning.lines >= lines)
    status, out, err = tuning.stop(signal.SIGINT)
    found = in_log(tuning.log)
    assert (status, out) == (0, f"interrupted {len(found)}\n"), err
    assert len(found) >= lines and "Traceback" not in err


@pytest.mark.usefixtures("forked_helpers")
def test_ctrl_c_handler_is_restored(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    tune([WORKLOAD], threads=1, trials=1, log=tmp_path / "x.jsonl", time_limit=0)
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.usefixtures("forked_helpers")
@pytest.mark.parametrize("limit", [1e10, 1e300, 10**400], ids=["centuries", "1e300", "10**400"])
def test_a_time_limit_beyond_all_clocks_is_none(tmp_path: Path, limit: float) -> None:
    log = tmp_path / "x.jsonl"
    options = {"threads": 1, "trials": 1, "algorithms": ["direct"], "confirm": False}
    assert tune([WORKLOAD], log=log, time_limit=limit, **options).measured == 1
    assert len(in_log(log)) == 1


NAMES = """
import importlib, pkgutil
import convtvm
import convtvm.cli
for module in pkgutil.iter_modules(convtvm.__path__, "convtvm."):
    if module.name not in ("convtvm.__main__", "convtvm.torch"):  # the latter needs PyTorch
        importlib.import_module(module.name)
print([name for name in ("tune", "compile", "load") if not callable(getattr(convtvm, name))])
"""


def test_public_functions_stay_functions() -> None:
    """Whatever module of convtvm was imported before."""
    done = subprocess.run(
        [sys.executable, "-c", NAMES],
        env=without_torch(ROOT),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[]\n", done.stderr
