"""Kernels of a PyTorch graph on PyTorch's own OpenMP threads: forks, nesting, callers, limits.

Each program runs in a process of its own, since a fault here hangs or kills it. Whichever threads
compute, every output is summed in the same order, so results are compared bit for bit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import LONG
from warm import serving

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from convtvm.kernels import launcher  # noqa: E402
from convtvm.library.build import compile  # noqa: E402
from convtvm.torch import team  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

if len(os.sched_getaffinity(0)) < 2:
    pytest.skip("needs two CPUs", allow_module_level=True)
if not Path("/proc/self/schedstat").exists():
    pytest.skip("this kernel does not count the time of threads", allow_module_level=True)
if team.pytorchs() is None:
    pytest.skip("this PyTorch has no OpenMP that can be asked", allow_module_level=True)

# What every program begins with. Its arguments are paths of libraries. PyTorch's own operations on
# the network's tensors are too small for its threads, except eager convolutions.
PRELUDE = """
import contextlib, ctypes, os, subprocess, sys, threading, time
import torch
from torch import nn
import convtvm.torch
from convtvm.dispatch import load
from convtvm.torch.team import pytorchs

torch.set_num_threads(2)
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 16, 1)).eval()
x = torch.randn(1, 32, 28, 28)
big = torch.ones(1 << 20)

def tasks():
    '''Threads, without those of Python's that watch something beside the program.'''
    beside = {t.native_id for t in threading.enumerate() if type(t) is not threading.Thread}
    return set(map(int, os.listdir("/proc/self/task"))) - beside | {os.getpid()}

def read(task, name):
    with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/{name}") as file:
        return file.read()
    return ""  # it has just ended

def workers():
    return sum(read(task, "comm").strip() == "convtvm" for task in tasks())

def seconds(task):
    return int((read(task, "schedstat").split() or [0])[0]) / 1e9

def share():
    '''Of the CPU time that the main thread takes for calls, a quarter of a second however long it
    has to wait for that, what its team takes. It is only told apart from waiting if that does not
    spin.'''
    before, began = {task: seconds(task) for task in tasks()}, time.thread_time()
    while time.thread_time() < began + 0.25: net(x)
    own, others = time.thread_time() - began, tasks() - {os.getpid()}
    return sum(seconds(task) - before.get(task, 0) for task in others) / own

def shared():
    '''Whether the team takes part, sooner or later: on a busy machine the caller is faster.'''
    return any(share() > 0.1 for _ in range(100))

def in_child(work):
    pid = os.fork()
    if pid == 0:
        end = 1
        try:
            end = int(work())
        finally:
            os._exit(end)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def eager():
    with torch.no_grad(): return nn.Module.__call__(net, x)

def wrong():
    with torch.no_grad(): return int(not torch.equal(net(x), right))

def ready(path=sys.argv[1], **options):
    '''The network optimized, and what it computes with that.'''
    global right
    expected = eager()
    handle = convtvm.torch.optimize(net, x, path, rest="eager", **options)
    with torch.no_grad(): right = net(x)
    assert len([s for s in handle.sites if s.plan]) == 2
    torch.testing.assert_close(right, expected, rtol=1e-4, atol=1e-5)
    return handle
"""

COLD = (sys.executable, "-c")
PYTORCH = ("torch._dynamo.backends.common", "torch._functorch.aot_autograd")
PATIENT = {"CONVTVM_TEAM_US": "1000000"}  # beside other tests any thread may be late
PASSIVE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What commands begin with whose process has PyTorch already, though not its OpenMP's threads
    nor anything of ours."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    place = str(tmp_path_factory.mktemp("warm") / "socket")
    with serving(place, *PYTORCH, environment=environment) as command:
        yield [*command, "--code"]


def run(program: str, *paths: Path, warm: Sequence[str] = COLD, **environment: str) -> list[str]:
    """The lines that `program` prints after PRELUDE, in a process that ends well and in time."""
    done = subprocess.run(
        [*warm, PRELUDE + textwrap.dedent(program), *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **PATIENT, **environment},
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


WORKLOADS = ["mb1ic32ih28oc64kh3ph1", "mb1ic64ih28oc16kh1"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the network's convolutions, for two threads."""
    path = tmp_path_factory.mktemp("library") / "net.so"
    compile(WORKLOADS, threads=2, logs=[], keep="best", epilogues="clip").export(path)
    return path


ONE_TEAM = """
    big.exp()  # PyTorch's team is there
    before = tasks()
    ready(workers="pytorch")
    with torch.no_grad():
        print(shared(), tasks() == before, workers())
        torch.set_num_threads(1)
        print(wrong(), share() < 0.05)
        torch.set_num_threads(2)
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cpus)})
        print(wrong(), share() < 0.05, workers())
        os.sched_setaffinity(0, cpus)
        print(wrong(), shared())
"""


def test_kernels_compute_on_pytorchs_threads(library: Path) -> None:
    """No thread more than PyTorch has, on no more than it may use, on the CPUs of the caller."""
    expected = ["True True 0", "0 True", "0 True 0", "0 True"]
    assert run(ONE_TEAM, library, **PASSIVE) == expected


SMALLER = """
    ready()
    print(wrong(), torch.get_num_threads(), workers())
"""


def test_a_team_smaller_than_asked_for(library: Path) -> None:
    assert run(SMALLER, library, OMP_THREAD_LIMIT="1") == ["0 2 0"]


LATE = """
    big.exp()
    ready()
    cpu = max(os.sched_getaffinity(0))
    for task in tasks() - {os.getpid()}:
        os.sched_setaffinity(task, {cpu})
        os.sched_setscheduler(task, os.SCHED_IDLE, os.sched_param(0))
    busy = "import os; os.sched_setaffinity(0, {%d})\\nwhile True: pass" % cpu
    other = subprocess.Popen([sys.executable, "-c", busy])
    patience, found = time.monotonic() + 120, []
    while not workers() and time.monotonic() < patience: found.append(wrong())
    more = [wrong() for _ in range(20)]
    other.kill()
    other.wait()
    print(sum(found + more), workers())
"""


def test_a_team_whose_threads_are_late_is_left_for_a_while(library: Path) -> None:
    """Where others need its cores. OpenMP waits for all of its threads, our own workers do not."""
    assert run(LATE, library, **PASSIVE, CONVTVM_TEAM_US="") == ["0 1"]


CALLERS = """
    big.exp()
    handle, before, ends = ready(), tasks(), []
    plan = handle.sites[0].plan
    expected = plan(x)

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def part(_):
        ends.append(not torch.equal(plan(x), expected))

    parallel = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_uint] * 2)
    loop = parallel(pytorchs().parallel)
    for _ in range(20): loop(ctypes.cast(part, ctypes.c_void_p), None, 2, 0)
    print(sum(ends), len(ends), tasks() == before, workers())

    def settle():
        patience = time.monotonic() + 60  # a thread that is joined ends a moment later
        while tasks() != before and time.monotonic() < patience: time.sleep(0.01)
        return len(tasks() - before)
    def together(number, call):
        callers = [threading.Thread(target=call) for _ in range(number)]
        for caller in callers: caller.start()
        for caller in callers: caller.join()
        return settle()
    ends.clear()
    print([together(8, lambda: ends.extend(wrong() for _ in range(30))) for _ in range(2)])
    print(sum(ends), len(ends), workers())

    torch.set_num_threads(1)  # PyTorch's loops of new threads keep to it
    more = []
    print([together(1, lambda: more.append((wrong(), len(tasks() - before)))) for _ in range(2)])
    print(more, workers())
"""


def test_callers(library: Path, warm: list[str]) -> None:
    """Within a loop of the team each computes alone; several at once have teams that end with
    them; one that has not asked PyTorch for anything yet keeps to its limit."""
    expected = ["0 40 True 0", "[0, 0]", "0 480 0", "[0, 0]", "[(0, 1), (0, 1)] 0"]
    assert run(CALLERS, library, warm=warm) == expected


FORKS = """
    big.exp()
    handle = ready()
    plan = handle.sites[0].plan
    expected = plan(x)
    def fresh():
        library = load(sys.argv[1])
        library.join(pytorchs())
        other = library.plan(str(plan.workload), net[0].weight, net[0].bias, activation="relu")
        return (other(x).numpy() != expected.numpy()).any()  # PyTorch's own loop would hang
    nested = lambda: wrong() + in_child(wrong) + wrong()
    print([in_child(work) for work in (wrong, fresh, nested)], workers())
    def limited():
        torch.set_num_threads(1)  # as a DataLoader's process does
        return wrong() + 10 * workers()
    print(in_child(limited), in_child(lambda: wrong() + 10 * workers()), wrong(), workers())
"""


def test_children_compute_on_their_own_workers(library: Path, warm: list[str]) -> None:
    """A child has none of its parent's threads, and OpenMP does not know: a loop there hangs."""
    assert run(FORKS, library, warm=warm) == ["[0, 0, 0] 0", "0 10 0 0"]


OWN = """
    big.exp()
    before = len(tasks())
    for path, options in ((sys.argv[2], {}), (sys.argv[1], {}), (sys.argv[1], {"workers": "own"})):
        handle = ready(path, **options)
        print(wrong(), workers(), len(tasks()) - before)
        handle.restore()
        torch._dynamo.reset()
"""


def test_workers_of_our_own(
    library: Path, warm: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For libraries of earlier versions, whose launchers know no team, and where it is wished."""
    path, assembly = tmp_path / "old.so", launcher._assembly
    with monkeypatch.context() as patch:
        patch.setattr(
            launcher, "_assembly", lambda *a: assembly(*a).replace("convtvm_team", "convtvm_meat")
        )
        launcher.object_code.cache_clear()
        compile(WORKLOADS, threads=2, logs=[], keep="best", epilogues="clip").export(path)
    launcher.object_code.cache_clear()
    assert run(OWN, library, path, warm=warm) == ["0 1 1"] * 3
    assert run(OWN, library, library, warm=warm) == ["0 0 0", "0 0 0", "0 1 1"]


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (torch.__config__, "parallel_info", lambda: "ATen parallel backend: native thread pool"),
        (team, "_LIMIT", "convtvm_no_such_function"),
        (torch, "__file__", "/nowhere/torch/__init__.py"),
    ],
)
def test_without_a_team(place: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch of another kind or build: kernels then have their own workers."""
    monkeypatch.setattr(place, name, value)
    assert team.pytorchs.__wrapped__() is None
