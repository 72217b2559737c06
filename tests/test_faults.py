"""A tuning run whose candidates crash, hang, exit, print garbage, lie and eat memory; logs of runs
that were killed, mixed and damaged."""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from faulty import CANDIDATES, Faulty
from support import LIMITS_IN_TURN, LONG, Planted, eventually
from test_zygote import PATH, children

from convtvm.errors import EnvironmentProblem
from convtvm.kernels.task import Task
from convtvm.logs import records
from convtvm.logs.records import LogWriter, TuningRecord
from convtvm.machine.targets import resolve
from convtvm.measure import client
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import ENVIRONMENT, Limits, Outcome
from convtvm.measure.workbench import Workbench
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning import tuner
from convtvm.tuning.search import candidate

TASK = Task(ConvWorkload.parse("mb1ic8ih6oc8oh6kh3ph1"), "direct", resolve("native", 1))

# What a candidate does while it is built -> kind of error, part of its first true line.
FAULTS = {
    "segfault": ("crash", "killed by SIGSEGV"),
    "abort": ("crash", "killed by SIGABRT"),
    "exit": ("crash", "exited with status 3"),
    "hang": ("build_timeout", "no library after 2 s"),
    "memory": ("instantiate", "MemoryError"),
    "raise": ("instantiate", "ValueError: the first line"),
    "print": ("", ""),
    "nothing": ("", ""),
}


@pytest.fixture
def zygote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zygote]:
    monkeypatch.setenv("PYTHONPATH", PATH)
    with Zygote() as made:
        yield made


def test_faults_cost_their_own_candidates(
    zygote: Zygote, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each is named by kind and first line, nothing reaches the terminal, nothing is left."""
    points = TASK.space.points
    found = {}
    for deed in FAULTS:
        planted, seconds = Planted(deed, TASK), 2.0 if deed == "hang" else LONG
        monkeypatch.setattr(client, "BUILD_SECONDS", seconds)
        bench = Workbench(TASK, zygote)
        jobs = bench.builder.jobs([points[0]])
        changed = [replace(j, task=planted) if j.decisions is not None else j for j in jobs]
        bench.builder.jobs = lambda _many, made=changed: made  # type: ignore[method-assign,misc]
        bench.builder._ready[tuple(sorted(points[0].items()))] = changed[-1].path
        ((_, found[deed]),) = bench.measure([candidate(TASK.space, points[0])])
    for deed, (kind, message) in FAULTS.items():
        trial = found[deed]
        assert trial.kind == kind and message in trial.message, (deed, trial)
        assert bool(trial.run_secs) == (kind == ""), (deed, trial)
    assert capfd.readouterr() == ("", "")
    assert eventually(lambda: children(zygote) == [])


# What becomes of each candidate of tests/faulty.py: kind, part of the first true line.
BUILT = {
    "segfault": ("crash", "killed by SIGSEGV"),
    "abort": ("crash", "killed by SIGABRT"),
    "exit": ("crash", "exited with status 3"),
    "hang": ("build_timeout", "no library after "),
    "memory": ("instantiate", "MemoryError"),
    "raise": ("instantiate", "ValueError: the first line"),
}
RAN = {
    "segfault": ("crash", "killed by SIGSEGV"),
    "abort": ("crash", "killed by SIGABRT"),
    "exit": ("crash", "exited with status 3"),
    "hang": ("run_timeout", "no result after "),
    "memory": ("crash", "killed by SIGSEGV"),  # malloc gives none, and the kernel writes there
    "lie": ("wrong_answer", "relative error 1.0e+00"),
}


def is_late(record: TuningRecord) -> bool:
    """Whether a candidate that does not hang was not done in time."""
    hangs = "hang" in CANDIDATES[record.decisions["deed"]]
    return not hangs and record.error.get("kind", "").endswith("timeout")


@pytest.mark.slow
def test_a_whole_run_of_faults_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Crashes, hangs, exits, garbage, lies and hunger, while building and running, the default
    first of all: each is in the log by its true name, and the best of the others wins."""
    monkeypatch.setenv("PYTHONPATH", PATH)
    task = Faulty(TASK.workload, "direct", TASK.target)
    monkeypatch.setattr(tuner, "tasks_of", lambda *_: [task])
    before = set(psutil.Process().children(recursive=True))  # what other files share
    helpers: set[psutil.Process] = set()

    def listener(*_: object) -> None:
        helpers.update(set(psutil.Process().children(recursive=True)) - before)

    for seconds in LIMITS_IN_TURN:
        monkeypatch.setattr(client, "BUILD_SECONDS", seconds)
        monkeypatch.setattr(client, "RUN_SECONDS", seconds)
        log = tmp_path / f"{seconds:g}.jsonl"
        summary = tuner.tune([task.workload], task.target, log=log, listener=listener)
        if not any(map(is_late, records.load([log])[0])):
            break
    assert capfd.readouterr() == ("", "")
    assert helpers and eventually(lambda: not any(helper.is_running() for helper in helpers))
    found, problems = records.load([log])
    trials = [r for r in found if not r.confirmed]
    assert not problems and trials[0].decisions == task.space.default == {"deed": 0}
    assert sorted(r.decisions["deed"] for r in trials) == list(range(len(CANDIDATES)))
    expected = Counter[str]()
    for record in trials:
        built, ran = CANDIDATES[record.decisions["deed"]]
        kind, message = BUILT.get(built) or RAN.get(ran) or ("", "")
        assert record.error.get("kind", "") == kind, (built, ran, record)
        assert message in record.error.get("message", ""), (built, ran, record)
        assert bool(record.run_secs) == (not kind), (built, ran, record)
        expected[kind] += 1
    works = expected.pop("")
    assert works == 3 and summary.failures == expected and summary.stopped == ""
    firsts = {r.error["kind"]: r.error["message"] for r in reversed(trials) if r.error}
    assert summary.first_failures == firsts
    (progress,) = summary.tasks
    assert progress.default and progress.default.error == trials[0].error
    assert progress.best and progress.best.confirmed and progress.best.run_secs
    again = tuner.tune([task.workload], task.target, log=log)
    assert (again.measured, again.reused) == (0, len(CANDIDATES))


def troubled(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let the machine have no room during so many builds."""
    left, call = [calls], Zygote.call

    def planted(zygote: Zygote, kind: str, jobs: list[object], limits: Limits) -> object:
        if kind == "build" and jobs and left[0] > 0:
            left[0] -= 1
            full = Outcome(None, ENVIRONMENT, "ld: final link failed: No space left on device")
            return ((index, full) for index in range(len(jobs)))
        return call(zygote, kind, jobs, limits)

    monkeypatch.setattr(Zygote, "call", planted)


def test_what_the_machine_lacks_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, and no trial says that a candidate has failed."""
    troubled(monkeypatch, 2)
    log = tmp_path / "x.jsonl"
    summary = tuner.tune([TASK.workload], TASK.target, None, ["direct"], 4, log=log, confirm=False)
    assert set(summary.failures) == {ENVIRONMENT} and summary.measured == 4
    found, _ = records.load([log])
    assert len(found) == 4 and all(r.run_secs for r in found)
    assert found[0].decisions == TASK.space.default


def test_what_the_machine_lacks_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    troubled(monkeypatch, 1000)
    log = tmp_path / "x.jsonl"
    with pytest.raises(EnvironmentProblem, match="No space left on device; what was measured bef"):
        tuner.tune([TASK.workload], TASK.target, None, ["direct"], 4, log=log)
    assert records.load([log]) == ([], [])


# ---- logs ----------------------------------------------------------------------------------------


def made(log: Path, count: int, seed: int) -> list[TuningRecord]:
    """A log of `count` trials with distinct times, a third of them failures."""
    rng = random.Random(seed)
    writer, written = LogWriter(log), []
    for point in rng.sample(TASK.space.points, min(count, len(TASK.space.points))):
        failed = rng.random() < 1 / 3
        record = TuningRecord(
            *TASK.key,
            device="a CPU",
            decisions=point,
            template=TASK.template_version,
            run_secs=[] if failed else [rng.uniform(1e-6, 1e-3)],
            error={"kind": "crash", "message": "planted"} if failed else {},
        )
        writer.append(record)
        written.append(record)
    writer.close()
    return written


def test_damaged_logs_have_the_winners_of_clean_ones(tmp_path: Path) -> None:
    """Three logs concatenated in any order, one torn, with binary garbage in the middle."""
    logs = [tmp_path / f"{i}.jsonl" for i in range(3)]
    clean = [record for i, log in enumerate(logs) for record in made(log, 10, i)]
    winner = records.best(clean)
    torn = logs[0].read_bytes().splitlines(keepends=True)[0][:-30]
    for order in itertools.permutations(logs):
        mixed = tmp_path / "mixed.jsonl"
        parts = [log.read_bytes() for log in order]
        mixed.write_bytes(parts[0] + b"\xff\xfe\x00garbage\n" + parts[1] + parts[2] + torn)
        found, problems = records.load([mixed])
        assert len(problems) == 2 and len(found) == len(clean)
        assert records.best(found) == winner
        writer = LogWriter(mixed)  # goes on after the torn line
        writer.append(clean[0])
        writer.close()
        assert len(records.load([mixed])[0]) == len(clean) + 1


def test_a_writer_killed_anywhere_loses_its_last_line_only(tmp_path: Path) -> None:
    """Every possible length of a log that was being written."""
    log = tmp_path / "x.jsonl"
    clean = made(log, 5, 1)
    content = log.read_bytes()
    for length in range(0, len(content), 7):
        os.truncate(log, 0)
        log.write_bytes(content[:length])
        found, problems = records.load([log])
        assert found == clean[: len(found)] and len(problems) <= 1
        assert len(found) >= content[:length].count(b"\n")
