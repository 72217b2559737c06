"""What parallel loops run on: forks, short-lived and many callers, affinity, limits, the exit.

Each program runs in a process of its own, since a fault here hangs or kills it. Sums of small
integers are exact, so every answer is compared bit for bit.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from support import LONG, without_torch
from warm import serving

from convtvm.errors import TargetError
from convtvm.kernels import codegen, launcher
from convtvm.library.build import compile
from convtvm.machine import targets
from convtvm.problem.workload import ConvWorkload

ROOT = Path(__file__).resolve().parents[1]
W = ConvWorkload.parse("mb2ic8ih14oc16oh14kh3ph1")
ALGORITHMS = ["direct", "im2col", "winograd:2", "mec:a"]
needs_two_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")

# What every program begins with. Its arguments are paths of libraries.
PRELUDE = """
import contextlib, multiprocessing, os, sys, threading, time
sys.modules["torch"] = None  # which tvm_ffi imports for two seconds, if it is there
import numpy as np
from convtvm.dispatch import load
from convtvm.problem.reference import conv2d_reference, random_inputs

def problem(library):
    w = library.workloads[0]
    data, weight, bias = random_inputs(w, 1, "NCHW", "integer")
    return w, data, weight, bias, conv2d_reference(w, data, weight, bias)

def plans(library):
    w, data, weight, bias, _ = problem(library)
    return [library.plan(w, weight, bias, c.algorithm) for c in library.candidates(w)]

def wrong(some):
    return sum(not np.array_equal(plan(data), expected) for plan in some)

def threads():
    return len(os.listdir("/proc/self/task"))

def workers():
    found = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm") as file:
            if file.read().strip() == "convtvm":
                found.append(sorted(os.sched_getaffinity(int(task))))
    return found

def in_child(work):
    pid = os.fork()
    if pid == 0:
        os._exit(int(work()))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

libraries = [load(path) for path in sys.argv[1:]]
w, data, weight, bias, expected = problem(libraries[0])
"""


Run = Callable[..., str]
LOADED = ("numpy", "convtvm.dispatch", "convtvm.problem.reference")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """What a program prints after PRELUDE, in a process that ends well and in time. It has what
    PRELUDE imports already, and one thread."""

    def output(program: str, paths: Sequence[Path], **variables: str) -> str:
        done = subprocess.run(
            [*warm, "--code", PRELUDE + textwrap.dedent(program), *map(str, paths)],
            env=dict(os.environ, PYTHONPATH=str(ROOT), **variables),
            capture_output=True,
            text=True,
            timeout=LONG,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.strip()

    place = str(tmp_path_factory.mktemp("warm") / "socket")
    with serving(place, *LOADED, environment=without_torch(ROOT)) as warm:
        yield output


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For 1, 2 and 64 threads, and for 2 as earlier versions linked it: without a launcher."""
    folder = tmp_path_factory.mktemp("threads")
    made = {}
    for threads in (1, 2, 64):
        library = compile([W], threads=threads, logs=[], keep="all", algorithms=ALGORITHMS)
        made[str(threads)] = folder / f"{threads}.so"
        library.export(made[str(threads)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codegen, "link_objects", link_without_launcher)
        library = compile([W], threads=2, logs=[], keep="all", algorithms=ALGORITHMS)
    made["old"] = folder / "old.so"
    library.export(made["old"])
    return made


def link_without_launcher(objects: Sequence[str], path: Path, target: object) -> None:
    subprocess.run(["ld", "-shared", "-o", str(path), *objects], check=True)


EVERY = pytest.mark.parametrize("name", ["1", "2", "64", "old"])


# ---- forks ---------------------------------------------------------------------------------------

FORKS = """
    mine = plans(libraries[0])
    fresh = lambda: wrong(plans(load(sys.argv[1])))
    again = lambda: wrong(mine)
    nested = lambda: wrong(mine) + abs(in_child(again)) + wrong(mine)
    before = [in_child(again), in_child(fresh), in_child(nested)]
    here = wrong(mine)
    after = [in_child(again), in_child(fresh), in_child(nested)]
    print(before, here, after, wrong(mine))
"""


@EVERY
def test_children_compute(name: str, libraries: dict[str, Path], run: Run) -> None:
    """Before and after a call, by the parent's plan and a fresh one, and a child's child."""
    assert run(FORKS, [libraries[name]]) == "[0, 0, 0] 0 [0, 0, 0] 0"


BUSY_FORKS = """
    mine = plans(libraries[0])
    stop = False
    def call():
        while not stop:
            mine[0](data)
    others = [threading.Thread(target=call) for _ in range(2)]
    for other in others: other.start()
    ends = [in_child(lambda: wrong(mine)) for _ in range(20)]
    stop = True
    for other in others: other.join()
    print(sum(map(abs, ends)), wrong(mine))
"""


def test_children_of_a_busy_process_compute(libraries: dict[str, Path], run: Run) -> None:
    """Forked while other threads are in a parallel loop, whose lock the child must not inherit."""
    assert run(BUSY_FORKS, [libraries["2"]]) == "0 0"


METHODS = """
    def work(path, answers):
        answers.put(wrong(plans(load(path))))

    if __name__ == "__main__":
        mine = plans(libraries[0])
        print(wrong(mine))
        for method in ("fork", "spawn", "forkserver"):
            context = multiprocessing.get_context(method)
            answers = context.Queue()
            child = context.Process(target=work, args=(sys.argv[1], answers))
            child.start()
            print(method, answers.get(timeout=200))
            child.join()
"""


def test_multiprocessing(libraries: dict[str, Path], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PRELUDE + textwrap.dedent(METHODS), encoding="utf8")
    done = subprocess.run(
        [sys.executable, str(program), str(libraries["2"])],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert done.stdout.split() == ["0", "fork", "0", "spawn", "0", "forkserver", "0"], done.stderr


# ---- callers -------------------------------------------------------------------------------------

CALLERS = """
    mine, faults = plans(libraries[0]), []
    def call():
        faults.append(wrong(mine))
    def once():
        caller = threading.Thread(target=call)
        caller.start()
        caller.join()
    once()
    before = threads()
    for _ in range(400): once()
    patience = time.monotonic() + 60  # a thread that is joined ends a moment later
    while threads() > before and time.monotonic() < patience: time.sleep(0.01)
    print(sum(faults), len(faults), max(0, threads() - before), len(workers()))
"""


@pytest.mark.parametrize(
    ("name", "workers"), [("1", 0), pytest.param("2", 1, marks=needs_two_cpus)]
)
def test_callers_that_end_leave_nothing(
    name: str, workers: int, libraries: dict[str, Path], run: Run
) -> None:
    assert run(CALLERS, [libraries[name]]) == f"0 401 0 {workers}"


TOGETHER = """
    mine = [plan for library in libraries for plan in plans(library)]
    faults = []
    def call(number):
        for i in range(60):
            faults.append(wrong([mine[(number * step + i) % len(mine)]]))
    for step in (0, 1):  # all on one plan, then each on its own
        callers = [threading.Thread(target=call, args=(number,)) for number in range(8)]
        for caller in callers: caller.start()
        for caller in callers: caller.join()
    print(sum(faults), len(faults), len(workers()))
"""


@needs_two_cpus
def test_callers_at_once(libraries: dict[str, Path], run: Run) -> None:
    """On one plan and on different plans of several libraries, which share their workers."""
    usable = min(64, len(os.sched_getaffinity(0)))
    paths = [libraries["2"], libraries["64"], libraries["1"]]
    assert run(TOGETHER, paths) == f"0 960 {usable - 1}"


LIMITED = """
    import resource
    os.setresuid(65534, 65534, 65534)  # root is not limited
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    mine = plans(libraries[0])
    print(wrong(mine), wrong(mine), len(workers()))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user's limit on processes")
@pytest.mark.parametrize("name", ["1", "2", "64"])
def test_without_a_thread_to_start_the_caller_computes(
    name: str, libraries: dict[str, Path], run: Run
) -> None:
    assert run(LIMITED, [libraries[name]]) == "0 0 0"


# ---- affinity ------------------------------------------------------------------------------------

AFFINITY = """
    everyone = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everyone)})
    mine = plans(libraries[0])
    def check(mask):
        os.sched_setaffinity(0, mask)
        fault = wrong(mine)
        inside = all(set(found) <= set(mask) for found in workers())
        return [fault, os.sched_getaffinity(0) == set(mask), inside]
    one, other = [{cpu} for cpu in sorted(everyone)][:2]
    first = check(one)
    print(first, len(workers()))
    for mask in (everyone, one, other, everyone, other):
        assert check(mask) == [0, True, True], mask
    os.sched_setaffinity(0, everyone)
    main = os.sched_getaffinity(os.getpid())
    def call():
        faults.append(check(one))
    faults = []
    caller = threading.Thread(target=call)
    caller.start()
    caller.join()
    print(faults[0], os.sched_getaffinity(0) == everyone)
"""


@needs_two_cpus
@pytest.mark.parametrize("name", ["1", "2", "64", "old"])
def test_the_callers_cpus_are_kept_to(name: str, libraries: dict[str, Path], run: Run) -> None:
    """By the caller and by the workers, also when the mask changes between calls."""
    program = AFFINITY
    if name == "old":  # TVM's pool cannot be told; the caller's own mask is all that is kept
        program = program.replace("all(set(found) <= set(mask) for found in workers())", "True")
    assert run(program, [libraries[name]]) == "[0, True, True] 0\n[0, True, True] True"


# ---- many threads, few CPUs ----------------------------------------------------------------------


def test_a_number_beyond_reason_is_refused() -> None:
    with pytest.raises(TargetError, match="threads is 1000000, expected 1 to 1024"):
        compile([W], threads=1_000_000, logs=[])


NUMBERS = """
    for threads in (1, 2, 64, 10**6, 10**12):
        print(wrong(plans(load(sys.argv[1], threads))), end=" ")
    print(len(workers()) < len(os.sched_getaffinity(0)))
"""


@pytest.mark.parametrize(
    ("name", "variable"),
    [("1", "auto"), ("2", "auto"), ("64", "1000000"), ("old", "auto"), ("old", "-3")],
)
def test_threads_asked_for(name: str, variable: str, libraries: dict[str, Path], run: Run) -> None:
    """By the caller of `load`, and in TVM's variable, which counts for nothing."""
    text = run(NUMBERS, [libraries[name]], TVM_NUM_THREADS=variable)
    assert text == "0 0 0 0 0 True"


# ---- the end -------------------------------------------------------------------------------------

EXIT = """
    mine = plans(libraries[0])
    def call(plan):
        while True:
            plan(data)
    for plan in mine[:3]:
        threading.Thread(target=call, args=(plan,), daemon=True).start()
    time.sleep(0.05)
    print("end")
"""


@pytest.mark.parametrize("name", ["1", "2"])
def test_exit_under_load(name: str, libraries: dict[str, Path], run: Run) -> None:
    for _ in range(4):
        assert run(EXIT, [libraries[name]]) == "end"


UNLOADED = """
    import gc
    first = libraries.pop()
    print(wrong(plans(first)))
    del first
    for _ in range(12):
        gc.collect()
        print(wrong(plans(load(sys.argv[1]))), end=" ")
"""


def test_libraries_come_and_go(libraries: dict[str, Path], run: Run) -> None:
    """The launcher outlives the library that brought it."""
    assert run(UNLOADED, [libraries["2"]]).split() == ["0"] * 13


# ---- what is compiled ----------------------------------------------------------------------------


def test_launcher_is_made_of_its_source() -> None:
    """After a change of launcher.c, run scripts/make_launcher."""
    folder = Path(launcher.__file__).parent
    name = hashlib.sha256((folder / "launcher.c").read_bytes()).hexdigest()
    assert f"(sha256 {name})" in (folder / "launcher.ll").read_text(encoding="utf8").split("\n")[0]


@pytest.mark.parametrize("target", ["avx2", "avx512", "aarch64"])
def test_launcher_compiles_for(target: str) -> None:
    code = launcher.object_code(targets.resolve(target, 2).spec["mtriple"], 2)
    assert code.startswith(b"\x7fELF") and b"sched_getaffinity" in code


def symbols(path: Path) -> set[str]:
    listed = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in listed.stdout.splitlines()}


def test_what_kernels_need(libraries: dict[str, Path]) -> None:
    """No launcher for one thread; never a barrier, whose tasks would have to run at once."""
    found = {name: symbols(path) for name, path in libraries.items()}
    assert not any("Parallel" in s or "launcher" in s for s in found["1"])
    assert all("TVMBackendParallelBarrier" not in s for name in found for s in found[name])
    assert {"__TVMBackendParallelLaunch", "convtvm_launcher"} <= found["2"]
