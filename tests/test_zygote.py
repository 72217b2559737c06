"""The zygote: whatever a candidate does, it costs that candidate only, and nothing is left."""

from __future__ import annotations

import math
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support import LIMITS_IN_TURN, LONG, Planted, eventually
from tvm.s_tir.meta_schedule.runner import RunnerInput

from convtvm.errors import BuildError, EnvironmentProblem
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.measure import client, places
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import ENVIRONMENT, STOPPED, BuildJob, Limits, Outcome, RunJob
from convtvm.measure.problems import write_problem
from convtvm.measure.workbench import Workbench
from convtvm.problem.workload import ConvWorkload

TESTS = Path(__file__).resolve().parent
PATH = os.pathsep.join(
    filter(None, [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
)
TASK = Task(ConvWorkload.parse("mb1ic8ih6oc8oh6kh3ph1"), "direct", resolve("native", 1))


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    """One whose processes can unpickle planted tasks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATH)
        with Zygote() as made:
            yield made


def children(zygote: Zygote) -> list[psutil.Process]:
    return psutil.Process(zygote._process.pid).children(recursive=True)


def build_jobs(zygote: Zygote, *deeds: str) -> list[BuildJob]:
    return [
        BuildJob(
            Planted(deed, TASK),  # type: ignore[arg-type]
            TASK.space.default,
            str(zygote.fresh_path(".so")),
        )
        for deed in deeds
    ]


def build(zygote: Zygote, *deeds: str, timeout: float = LONG) -> list[Outcome]:
    """The outcomes in the order of the jobs; each has exactly one."""
    jobs = build_jobs(zygote, *deeds)
    answers = list(zygote.call("build", jobs, Limits(workers=2, timeout=timeout)))
    assert sorted(index for index, _ in answers) == list(range(len(jobs)))
    outcomes = [outcome for _, outcome in sorted(answers, key=lambda answer: answer[0])]
    assert all(Path(j.path).exists() for j, o in zip(jobs, outcomes, strict=True) if not o.kind)
    return outcomes


# ---- builds --------------------------------------------------------------------------------------

GOOD = ("", "")
DEEDS = {
    "nothing": GOOD,
    "segfault": ("crash", "killed by SIGSEGV"),
    "abort": ("crash", "killed by SIGABRT"),
    "raise": ("instantiate", "ValueError: the first line"),
    "raise silently": ("instantiate", "RuntimeError: no message"),
    "exit": ("crash", "exited with status 3 without a result"),
    "sys.exit": ("unknown", "SystemExit: 4"),
    "interrupt": ("unknown", "KeyboardInterrupt: no message"),
    "print": GOOD,
    "memory": ("instantiate", "MemoryError"),
    "recurse": ("instantiate", "RecursionError: maximum recursion depth exceeded"),
    "close all files": ("crash", "without a result"),
}


def test_each_deed_costs_its_own_candidate(zygote: Zygote) -> None:
    mixed = [name for deed in DEEDS for name in (deed, "nothing")]
    outcomes = build(zygote, *mixed)
    for deed, outcome in zip(mixed, outcomes, strict=True):
        kind, message = DEEDS[deed]
        assert outcome.kind == kind and message in outcome.message, (deed, outcome)
        assert "\n" not in outcome.message
    workspace = outcomes[0].value
    assert type(workspace) is int and workspace >= 0
    assert {o.value for o in outcomes} <= {workspace, None}
    assert children(zygote) == []


def test_hanging_builds(zygote: Zygote) -> None:
    for seconds in LIMITS_IN_TURN:
        *hanging, good = build(zygote, "hang", "hang deaf", "nothing", timeout=seconds)
        hung = Outcome(None, "build_timeout", f"no library after {seconds:g} s")
        assert hanging == [hung, hung] and children(zygote) == []
        if good != hung:
            break
    assert good.kind == ""


def test_what_builds_leave_behind_is_ended(zygote: Zygote) -> None:
    """And not waited for."""
    (outcome,) = build(zygote, "leave a child")
    assert outcome.kind == "" and eventually(lambda: children(zygote) == [])


def test_pack_and_object_jobs(zygote: Zygote) -> None:
    folder = zygote.folder
    jobs = [
        BuildJob(TASK, None, str(folder / "pack.so")),
        BuildJob(TASK, TASK.space.default, str(folder / "kernel.o"), "conv_7"),
        BuildJob(TASK, {"foreign": 1}, str(folder / "foreign.so")),
        BuildJob(TASK, TASK.space.default, str(folder / "nowhere" / "x.so")),
    ]
    answers = dict(zygote.call("build", jobs, Limits(workers=2, timeout=LONG)))
    assert [answers[i].kind for i in range(4)] == ["", "", "instantiate", "compile"]
    assert answers[2].message.startswith("KeyError")
    assert (folder / "pack.so").exists() and not (folder / "pack.so.o").exists()
    assert b"conv_7" in (folder / "kernel.o").read_bytes()


def test_nothing_to_do(zygote: Zygote) -> None:
    assert list(zygote.call("build", [], Limits())) == []


def test_fresh_paths_are_fresh(zygote: Zygote) -> None:
    paths = [zygote.fresh_path(".so") for _ in range(3)]
    assert len(set(paths)) == 3 and not any(path.exists() for path in paths)
    assert all(path.parent == zygote.folder for path in paths)


# ---- runs ----------------------------------------------------------------------------------------

QUICK = Limits(samples=1, patience=0, timeout=LONG)

# What a library does with its arguments instead of a convolution.
C_BODY = {
    "hang": "for (;;) sleep(1);",
    "segfault": "*(volatile int *)0 = 1;",
    "abort": "abort();",
    "exit": "_exit(0);",
    "nothing": "",
}


@pytest.fixture(scope="module")
def good_run(zygote: Zygote) -> RunJob:
    """A kernel with a right answer."""
    kernel, pack = (str(zygote.folder / name) for name in ("good.so", "good-pack.so"))
    jobs = [BuildJob(TASK, TASK.space.default, kernel), BuildJob(TASK, None, pack)]
    assert {o.kind for _, o in zygote.call("build", jobs, Limits(timeout=LONG))} == {""}
    inputs = write_problem(TASK.workload, TASK.layout, zygote)
    return RunJob(kernel, pack, TASK.packed_shape(), str(inputs), 1e-5)


@pytest.fixture(scope="module")
def planted_runs(zygote: Zygote, good_run: RunJob) -> dict[str, RunJob]:
    """By deed, libraries that do it when their kernel is called."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    jobs = {}
    for name, body in C_BODY.items():
        source, library = (zygote.folder / f"{name}{suffix}" for suffix in (".c", ".so"))
        head = "#include <stdlib.h>\n#include <unistd.h>\n"
        signature = "int __tvm_ffi_main(void *self, void *args, int count, void *result)"
        source.write_text(f"{head}{signature} {{ {body} return 0; }}\n", encoding="utf8")
        subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-o", library, source], check=True)
        jobs[name] = changed(good_run, path=str(library))
    return jobs


def changed(job: RunJob, **changes: Any) -> RunJob:
    return RunJob(**{**vars(job), **changes})


def run(zygote: Zygote, *jobs: RunJob, limits: Limits = QUICK) -> list[Outcome]:
    """The outcomes; runs are answered in order."""
    answers = list(zygote.call("run", jobs, limits))
    assert [index for index, _ in answers] == list(range(len(jobs)))
    assert eventually(lambda: children(zygote) == [])
    return [outcome for _, outcome in answers]


def test_good_run(zygote: Zygote, good_run: RunJob) -> None:
    for outcome in run(zygote, good_run, good_run, limits=Limits(timeout=LONG)):
        run_secs, error, clean = outcome.value
        assert outcome.kind == "" and 1 <= len(run_secs) <= 5 and type(clean) is bool
        assert all(0 < s < 10 for s in run_secs) and 0 <= error < 1e-5


def test_what_is_hopeless_follows_the_best(zygote: Zygote) -> None:
    """Each batch is told the best of those before it; wrong answers do not count."""
    told, times = [], iter([(4e-3, ""), (2e-3, ""), (1e-3, "wrong_answer"), (3e-3, "")])

    class Recording:
        folder, fresh_path, farm = zygote.folder, zygote.fresh_path, None

        def call(
            self, kind: str, jobs: Sequence[RunJob], limits: Limits
        ) -> Iterator[tuple[int, Outcome]]:
            told.append(limits.hopeless)
            for index, (seconds, failed) in zip(range(len(jobs)), times, strict=False):
                yield index, Outcome(([seconds], 0.0, True), failed)

    bench = Workbench(TASK, Recording())
    for number in (2, 1, 1):
        paths = [str(zygote.fresh_path(".so")) for _ in range(number)]
        bench.builder.scratch.update(dict.fromkeys(paths, ()))
        for future in bench.runner.run([RunnerInput(path, "cpu", []) for path in paths]):
            future.result()
    assert told == pytest.approx([math.inf, 3e-3, 3e-3])


def test_check_without_timing(zygote: Zygote, good_run: RunJob) -> None:
    (outcome,) = run(zygote, good_run, limits=Limits(samples=0, timeout=LONG))
    assert outcome.kind == "" and outcome.value[0] == []


def wrong_reference(job: RunJob, folder: Path, change: Callable[[np.ndarray], None]) -> RunJob:
    shutil.copytree(job.inputs, folder)
    reference = np.load(folder / "reference.npy")
    change(reference)
    np.save(folder / "reference.npy", reference)
    return changed(job, inputs=str(folder))


def test_wrong_answers(zygote: Zygote, good_run: RunJob, tmp_path: Path) -> None:
    def one_element(reference: np.ndarray) -> None:
        reference[0, -1, -1, -1] += 1e-3 * np.abs(reference).max()

    one = wrong_reference(good_run, tmp_path / "one", one_element)
    nan = wrong_reference(good_run, tmp_path / "nan", lambda r: r.fill(np.nan))
    strict = changed(good_run, tolerance=0.0)
    outcomes = run(zygote, one, good_run, nan, strict, changed(one, tolerance=2e-3))
    assert [o.kind for o in outcomes] == ["wrong_answer", "", "wrong_answer", "wrong_answer", ""]
    assert outcomes[0].message == "relative error 1.0e-03, at most 1e-05 is accepted"
    assert outcomes[2].message == "relative error inf, at most 1e-05 is accepted"


def test_a_kernel_that_writes_nothing_is_wrong(
    zygote: Zygote, good_run: RunJob, planted_runs: dict[str, RunJob]
) -> None:
    """Although the one before it left the right answer in the same memory."""
    outcomes = run(zygote, good_run, planted_runs["nothing"])
    assert [o.kind for o in outcomes] == ["", "wrong_answer"]


def test_crashing_runs(zygote: Zygote, good_run: RunJob, planted_runs: dict[str, RunJob]) -> None:
    jobs = []
    for name in ("segfault", "abort", "exit"):
        jobs += [planted_runs[name], good_run]
    outcomes = run(zygote, *jobs, planted_runs["segfault"])
    assert [o.kind for o in outcomes] == ["crash", ""] * 3 + ["crash"]
    endings = ["killed by SIGSEGV", "killed by SIGABRT", "exited with status 0 without a result"]
    assert [o.message for o in outcomes[::2]] == [*endings, endings[0]]


def test_hanging_runs(zygote: Zygote, good_run: RunJob, planted_runs: dict[str, RunJob]) -> None:
    for seconds in LIMITS_IN_TURN:
        limits = Limits(samples=0, timeout=seconds)
        first, hanging, last = run(zygote, good_run, planted_runs["hang"], good_run, limits=limits)
        hung = Outcome(None, "run_timeout", f"no result after {seconds:g} s")
        assert hanging == hung
        if hung not in (first, last):
            break
    assert first.kind == last.kind == ""


def test_runs_that_cannot_start(zygote: Zygote, good_run: RunJob, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library", encoding="utf8")
    (tmp_path / "empty").mkdir()
    jobs = [
        changed(good_run, path=str(tmp_path / "no.so")),
        changed(good_run, path=str(tmp_path / "text.so")),
        changed(good_run, inputs=str(tmp_path / "empty")),
        changed(good_run, pack=str(tmp_path / "no.so")),
        changed(good_run, path=good_run.pack),  # takes two arguments, not four
        good_run,
    ]
    outcomes = run(zygote, *jobs)
    assert [o.kind for o in outcomes] == ["runtime"] * 5 + [""]
    assert all(o.message and "\n" not in o.message for o in outcomes[:5])


def test_problem_is_written_once(zygote: Zygote) -> None:
    first = write_problem(TASK.workload, "NHWC", zygote, 3, "integer")
    before = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    assert set(before) == {"data.npy", "weight.npy", "bias.npy", "reference.npy"}
    assert write_problem(TASK.workload, "NHWC", zygote, 3, "integer") == first
    assert {path.name: path.stat().st_mtime_ns for path in first.iterdir()} == before
    others = [("NCHW", 3, "integer"), ("NHWC", 4, "integer"), ("NHWC", 3, "normal")]
    for layout, seed, kind in others:
        assert write_problem(TASK.workload, layout, zygote, seed, kind) != first  # type: ignore[arg-type]


# ---- ends ----------------------------------------------------------------------------------------


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zygote]:
    """A zygote that the test may kill."""
    monkeypatch.setenv("PYTHONPATH", PATH)
    with Zygote() as made:
        yield made


def test_close_leaves_nothing(own: Zygote) -> None:
    folder, process = own.folder, psutil.Process(own._process.pid)
    calls = own.call("build", build_jobs(own, "hang", "hang"), Limits(workers=2, timeout=LONG))
    pending = threading.Thread(target=lambda: list(calls))
    pending.start()
    assert eventually(lambda: len(process.children()) == 2)
    hung = process.children()
    own.close()
    pending.join()
    assert not folder.exists() and not process.is_running()
    assert eventually(lambda: not any(child.is_running() for child in hung))
    own.close()  # again does no harm


def test_killed_zygote_is_replaced(own: Zygote) -> None:
    kept = own.folder / "kept"
    kept.touch()
    first = own._process.pid
    jobs = build_jobs(own, "nothing", "hang", "nothing")
    answers = own.call("build", jobs, Limits(timeout=LONG))
    index, outcome = next(answers)
    assert (index, outcome.kind) == (0, "")
    os.kill(first, signal.SIGKILL)
    died = Outcome(None, ENVIRONMENT, "the build helper died")
    assert list(answers) == [(1, died), (2, died)]
    assert own._process.pid != first and kept.exists()
    assert [o.kind for o in build(own, "nothing")] == [""]


def test_zygote_killed_between_calls(own: Zygote) -> None:
    os.kill(own._process.pid, signal.SIGKILL)
    own._process.wait()
    (outcome,) = build(own, "nothing")
    assert outcome.kind == ENVIRONMENT
    (outcome,) = build(own, "nothing")
    assert outcome.kind == ""


LACKS = ["too many files", "no room", "quota", "noexec", "killed"]


def test_what_the_machine_lacks_is_no_failure_of_the_candidate(zygote: Zygote) -> None:
    assert [o.kind for o in build(zygote, *LACKS)] == [ENVIRONMENT] * len(LACKS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_no_failure_of_the_candidate(zygote: Zygote, tmp_path: Path) -> None:
    (tmp_path / "x.o").symlink_to("/dev/full")
    job = BuildJob(TASK, TASK.space.default, str(tmp_path / "x.o"))
    ((_, outcome),) = zygote.call("build", [job], Limits(timeout=LONG))
    assert outcome.kind == ENVIRONMENT and "No space left on device" in outcome.message


def test_memory_that_a_limit_from_outside_denies(own: Zygote) -> None:
    """The helper's own limit is the candidate's business."""
    assert [o.kind for o in build(own, "memory")] == ["instantiate"]
    assert own._process is not None
    used = psutil.Process(own._process.pid).memory_info().vms
    resource.prlimit(own._process.pid, resource.RLIMIT_AS, (used + (2 << 30),) * 2)
    assert [o.kind for o in build(own, "memory", "nothing")] == [ENVIRONMENT, ""]


def test_processes_that_cannot_be_had(own: Zygote) -> None:
    assert own._process is not None
    resource.prlimit(own._process.pid, resource.RLIMIT_NOFILE, (8, 8))
    outcomes = build(own, *["nothing"] * 4)
    assert {o.kind for o in outcomes} <= {ENVIRONMENT, ""} and outcomes[-1].kind == ENVIRONMENT
    assert "Too many open files" in outcomes[-1].message


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that is fit; what is wrong with each where none is."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.setattr(places, "_places", lambda: [tmp_path / "no", first, second])
    found = places.workplace()
    assert found.parent == first and list(found.iterdir()) == []
    found.rmdir()
    objections = {first: "no code can run there (noexec)", second: ""}
    monkeypatch.setattr(places, "_objection", lambda folder, _: objections[folder.parent])
    assert places.workplace().parent == second
    objections[second] = "1 MiB of room, 32 needed"
    with pytest.raises(EnvironmentProblem) as caught:
        places.workplace()
    for text in ("no: No such file", "first: no code can run there", "second: 1 MiB", "TMPDIR"):
        assert text in str(caught.value)
    assert list(first.iterdir()) == []


def test_ctrl_c_is_the_parents_to_handle(zygote: Zygote) -> None:
    os.kill(zygote._process.pid, signal.SIGINT)
    assert [o.kind for o in build(zygote, "nothing")] == [""]


def test_helper_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    monkeypatch.setattr(client.places, "workplace", lambda _: tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BuildError, match="the build helper did not start"):
        Zygote()
    assert not (tmp_path / "folder").exists()


PARENT = """
import sys, time
sys.modules["torch"] = None  # tvm_ffi would import it
from support import LONG
from test_zygote import build_jobs
from convtvm.measure.client import Zygote
from convtvm.measure.jobs import Limits
zygote = Zygote()
print(zygote._process.pid, zygote.folder, flush=True)
if sys.argv[1] == "busy":
    list(zygote.call("build", build_jobs(zygote, "hang", "hang deaf"), Limits(2, LONG)))
time.sleep(1000)
"""


@pytest.mark.parametrize(("number", "state"), [(signal.SIGKILL, "busy"), (signal.SIGTERM, "idle")])
def test_killed_parent_leaves_nothing(number: int, state: str) -> None:
    command = [sys.executable, "-c", PARENT, state]
    env = dict(os.environ, PYTHONPATH=PATH)
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid, folder = parent.stdout.readline().split()
        helper = psutil.Process(int(pid))
        if state == "busy":
            assert eventually(lambda: len(helper.children()) == 2)
        processes = [helper, *helper.children()]
        parent.send_signal(number)
    assert eventually(lambda: not any(process.is_running() for process in processes))
    assert not Path(folder).exists()


def test_answers_that_come_too_late_are_nobodys(tmp_path: Path) -> None:
    """What a helper is still busy with when the time is over does not answer the next call."""
    gate, limits = str(tmp_path / "gate"), Limits(timeout=LONG)
    os.mkfifo(gate)
    with Zygote() as helper:
        assert [o.value for _, o in helper.call("run", [partial(pow, 2, 3)], limits)] == [8]
        # The second waits until somebody opens the other end.
        slow = [partial(pow, 3, 2), partial(os.open, gate, os.O_RDONLY), partial(pow, 7, 2)]
        answers = helper.call("run", slow, limits)
        index, first = next(answers)
        assert (index, first.value) == (0, 9)
        helper.deadline = time.monotonic()
        assert [(i, o.kind) for i, o in answers] == [(1, STOPPED), (2, STOPPED)]
        with open(gate, "wb"):
            pipe = helper._process.stdout
            assert eventually(lambda: bool(select.select([pipe], [], [], 0)[0]))
        for _ in range(2):
            late = dict(helper.call("run", [partial(pow, 5, n) for n in range(3)], limits))
            assert [late[i].kind for i in range(3)] == [STOPPED] * 3


# ---- PyTorch -------------------------------------------------------------------------------------


def torch_in_a_child() -> tuple[bool, str]:
    """Whether something stands for it where loaded modules do, and what an import of it says."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return "torch" in sys.modules, str(error)
    return True, "it was loaded"


def test_helpers_have_no_torch_and_nothing_in_its_place(zygote: Zygote) -> None:
    """scipy asks what it finds there for its Tensor."""
    ((_, outcome),) = zygote.call("run", [torch_in_a_child], Limits(timeout=LONG))
    assert outcome.value == (False, "torch is hidden"), outcome
