"""Tuning through TVM's own tracker and servers, on loopback; one of them is killed meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
from emulator import environment
from support import LONG, SOON, eventually, without_torch
from test_gpu_runner import FAULTS, PLAIN, TARGET, Faulty, W, built
from tvm.rpc import base

from convtvm.errors import ConvtvmError, EnvironmentProblem, TargetError
from convtvm.logs import records
from convtvm.logs.records import TuningRecord
from convtvm.machine import gpu
from convtvm.machine.targets import resolve
from convtvm.measure import client, remote
from convtvm.measure.client import Zygote, run_limits
from convtvm.problem.dtypes import ROUNDING
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning.progress import TaskProgress, TuningSummary
from convtvm.tuning.tuner import tune

KEY = "desk"
WORKLOAD = ConvWorkload.parse("mb1ic8ih6oc8oh6kh3ph1")
_PATTERN, _REPLACEMENT = FAULTS["writes little"]
LITTLE = Faulty(W, "direct", TARGET, pattern=_PATTERN, replacement=_REPLACEMENT)


@dataclass
class Rack:
    """A tracker and its servers, all bound to loopback."""

    port: int
    path: str  # PYTHONPATH
    environment: Mapping[str, str] = field(default_factory=dict)  # of the servers
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, *command: str) -> None:
        log, env = subprocess.DEVNULL, {**os.environ, **self.environment, "PYTHONPATH": self.path}
        whole = [sys.executable, *command]
        self.processes.append(subprocess.Popen(whole, stdout=log, stderr=log, env=env))

    def free(self) -> int:
        try:
            return remote.find(self.address, KEY).devices
        except EnvironmentProblem:
            return 0

    def kill_server(self, index: int) -> None:
        kill(self.processes[1 + index])


def kill(process: subprocess.Popen[bytes]) -> None:
    """A process with all that it started, as by a power cut."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        for member in [psutil.Process(process.pid), *family]:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
    process.wait()


@contextlib.contextmanager
def racked(servers: int, environment: Mapping[str, str]) -> Iterator[Rack]:
    """A tracker with so many servers, once they are free."""
    pytest.importorskip("tornado", reason="TVM's tracker needs tornado (the rpc extra)")
    # Each of the six processes would import PyTorch where it is installed.
    path = without_torch()["PYTHONPATH"]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        made = Rack(found.getsockname()[1], path, environment)
    try:
        own = ("--host", "127.0.0.1", "--port-end", str(made.port + 50), "--port")
        made.start("-m", "tvm.exec.rpc_tracker", *own, str(made.port))
        for _ in range(servers):
            address = ("--tracker", made.address, "--key", KEY)
            made.start("-m", "tvm.exec.rpc_server", *own, str(made.port + 1), *address)
        assert eventually(lambda: made.free() == servers)
        yield made
    finally:
        for process in made.processes:
            kill(process)


@pytest.fixture
def rack() -> Iterator[Rack]:
    with racked(2, {}) as made:
        yield made


def run(rack: Rack, log: Path, **options: object) -> TuningSummary:
    settings = {"threads": 1, "algorithms": ["direct"], "log": log, **options}
    return tune([WORKLOAD], tracker=rack.address, key=KEY, **settings)  # type: ignore[arg-type]


def test_tuning_on_two_devices_one_dies(rack: Rack, tmp_path: Path) -> None:
    """All trials are there, each once, and none is blamed for the loss."""
    killed = False

    def listener(summary: TuningSummary, _: TaskProgress, __: TuningRecord | None) -> None:
        nonlocal killed
        if summary.measured == 3 and not killed:
            killed = True
            rack.kill_server(0)

    log = tmp_path / "x.jsonl"
    summary = run(rack, log, trials=20, listener=listener)
    assert killed and summary.stopped == "" and summary.measured == 20
    found, problems = records.load([log])
    assert problems == [] and len({r.identity for r in found}) == len(found) == 20
    assert summary.failures == {} and all(r.run_secs and r.max_error is not None for r in found)
    assert found[0].device.startswith(f"{KEY}: ")


IMPATIENT = """from convtvm.measure import zygote
zygote._PATIENCE = 3.0
zygote.serve(sys.argv[1])"""


def test_no_device_left(rack: Rack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a tracker: once nobody has answered for a while."""
    monkeypatch.setattr(client, "_SERVE", IMPATIENT)

    def listener(summary: TuningSummary, *_: object) -> None:
        if summary.measured == 1:
            rack.kill_server(0)
            rack.kill_server(1)
            kill(rack.processes[0])

    log = tmp_path / "x.jsonl"
    summary = run(rack, log, trials=20, listener=listener)
    assert summary.stopped.startswith(f"no device with key {KEY!r} answers any more")
    found, _ = records.load([log])
    assert len(found) == summary.measured < 20 and all(r.run_secs for r in found)


def test_preflight_refuses(rack: Rack, tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    with pytest.raises(EnvironmentProblem, match=r"no free device with key 'shelf'; .*desk \(2 fr"):
        tune([WORKLOAD], threads=1, tracker=rack.address, key="shelf", log=log)
    rack_cpu = "skylake-avx512" if resolve("native", 1).lanes != 16 else "sapphirerapids"
    assert "avx512f" in remote.missing_features("haswell", resolve(f"llvm -mcpu={rack_cpu}", 1))
    assert remote.missing_features("", resolve("native", 1)) == []
    if not gpu.devices():
        with pytest.raises(TargetError, match="TVM finds no NVIDIA GPU on a device"):
            tune([WORKLOAD], "cuda:sm_90", tracker=rack.address, key=KEY, log=log)
    assert not log.exists() or not log.read_text()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tracker": "nowhere", "key": "k"}, TargetError, "expected HOST:PORT"),
        ({"tracker": "127.0.0.1:1", "key": "k"}, EnvironmentProblem, "no tracker answers at"),
        ({"tracker": "127.0.0.1:1"}, ConvtvmError, "tracker and key belong together"),
    ],
)
def test_refused(
    tmp_path: Path, options: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tune([WORKLOAD], threads=1, log=tmp_path / "x.jsonl", **options)  # type: ignore[arg-type]


# ---- GPUs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emulated_rack() -> Iterator[Rack]:
    """One server, on a machine with the emulated GPU."""
    with racked(1, environment()) as made:
        yield made


@pytest.fixture
def gpu_rack(emulated_rack: Rack) -> Rack:
    """The same, once the last session's server is free again."""
    assert eventually(lambda: emulated_rack.free() == 1)
    return emulated_rack


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What builds for the emulated GPU, which this process and its helpers do not see."""
    for name in ("CONVTVM_NVCC", "EMULATOR_LIBRARIES", "PYTHONPATH"):
        monkeypatch.setenv(name, environment()[name])


@pytest.mark.emulated
@pytest.mark.parametrize(("layout", "dtype"), [("NCHW", "float32"), ("NHWC", "bfloat16")])
def test_tuning_a_gpu(
    layout: str, dtype: str, gpu_rack: Rack, compiler: None, tmp_path: Path
) -> None:
    """Kernels with and without workspaces; trials in flight stay within the budget."""
    log, w = tmp_path / "x.jsonl", replace(WORKLOAD, dtype=dtype)
    summary = tune(
        [w],
        "cuda:sm_90",
        layout=layout,
        algorithms=["direct", "im2col"],
        trials=3,
        total_trials=4,
        log=log,
        tracker=gpu_rack.address,
        key=KEY,
    )
    assert summary.failures == {}, summary.first_failures
    found, problems = records.load([log])
    assert problems == [] and len({r.identity for r in found}) == len(found) == 4
    assert {r.algorithm for r in found} == {"direct", "im2col"}
    assert {(r.target, r.device) for r in found} == {("cuda -arch=sm_90", f"{KEY}: emulated GPU")}
    limit = 1e-5 if dtype == "float32" else ROUNDING[dtype]
    assert all(r.max_error < limit and len(r.run_secs) == 5 for r in found)


@pytest.mark.emulated
def test_a_wrong_kernel_is_the_last_of_its_session(gpu_rack: Rack, compiler: None) -> None:
    """The next have a new one, where the GPU's memory is as it was."""
    farm = remote.find(gpu_rack.address, KEY)
    with Zygote(farm=farm) as zygote:
        tasks = [PLAIN, LITTLE, PLAIN, PLAIN]
        jobs = built(zygote, tasks)
        limits = replace(run_limits(1, farm), samples=2)
        outcomes = [o for _, o in sorted(zygote.call("run", jobs, limits), key=lambda a: a[0])]
    assert [o.kind for o in outcomes] == ["", "wrong_answer", "", ""], outcomes
    assert all(len(o.value[0]) == 2 for o in outcomes if not o.kind)


@pytest.mark.emulated
def test_a_gpu_of_another_architecture(gpu_rack: Rack, compiler: None, tmp_path: Path) -> None:
    said = "a device is emulated GPU, sm_90; name it with --target cuda:sm_90"
    options = {"tracker": gpu_rack.address, "key": KEY, "log": tmp_path / "x.jsonl"}
    for arch in ("sm_80", "sm_100"):
        with pytest.raises(TargetError, match=f"'cuda -arch={arch}': {said}"):
            tune([WORKLOAD], f"cuda:{arch}", **options)  # type: ignore[arg-type]


def test_several_architectures_are_refused(tmp_path: Path) -> None:
    options = {"tracker": "127.0.0.1:1", "key": KEY, "log": tmp_path / "x.jsonl"}
    with pytest.raises(TargetError, match=r"one architecture, expected its name, such as --target"):
        tune([WORKLOAD], "cuda:sm_80,sm_90", **options)  # type: ignore[arg-type]


# ---- trackers that are none ----------------------------------------------------------------------

MAGIC = struct.pack("<i", base.RPC_TRACKER_MAGIC)


def framed(document: str) -> bytes:
    return struct.pack("<i", len(document)) + document.encode("utf8")


# What a tracker says, piece by piece, before it waits for ever; None closes the connection.
SAYS: dict[str, list[bytes | None]] = {
    "nothing": [],
    "goodbye": [None],
    "garbage": [b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10],
    "half a magic": [MAGIC[:2], None],
    "its magic only": [MAGIC],
    "its magic and goodbye": [MAGIC, None],
    "a byte now and then": [MAGIC, *([b"\x7f"] * 1200)],
    "a long answer that does not come": [MAGIC + struct.pack("<i", 2**31 - 1) + b"[1"],
    "an answer without end": [MAGIC + struct.pack("<i", 2**31 - 1), *([b" " * (1 << 20)] * 40)],
    "a negative length": [MAGIC + struct.pack("<i", -5)],
    "no JSON": [MAGIC + framed("what?")],
    "no text": [MAGIC + struct.pack("<i", 2) + b"\xff\xfe"],
    "a number": [MAGIC + framed("7")],
    "a failure": [MAGIC + framed('[-1, {"queue_info": {}}]')],
    "no queues": [MAGIC + framed('[0, {"server_info": []}]')],
    "queues of another kind": [MAGIC + framed('[0, {"queue_info": {"desk": {"free": null}}}]')],
    "a list of queues": [MAGIC + framed('[0, {"queue_info": ["desk"]}]')],
    "nested": [MAGIC + framed("[" * 100_000)],
}


@contextlib.contextmanager
def tracker(says: Sequence[bytes | None]) -> Iterator[str]:
    """The address of something that listens and says that to all who connect."""
    ended = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError), server.accept()[0] as line:
            for piece in says:
                if piece is None:
                    return
                line.sendall(piece)
                ended.wait(0.1 if len(piece) == 1 else 0)
            ended.wait()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            thread.join(5)


@pytest.mark.parametrize("says", SAYS.values(), ids=SAYS)
def test_what_is_no_tracker_is_refused_in_time(says: list[bytes | None]) -> None:
    with tracker(says) as address:
        started = time.monotonic()
        with pytest.raises(EnvironmentProblem, match=f"no tracker answers at {address}"):
            remote.find(address, KEY, seconds=0.5)
        assert time.monotonic() - started < SOON


def test_a_silent_tracker_costs_no_more_than_the_time_limit(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    with tracker([]) as address:
        started = time.monotonic()
        with pytest.raises(EnvironmentProblem, match="no tracker answers"):
            tune([WORKLOAD], threads=1, tracker=address, key=KEY, log=log, time_limit=0.5)
        assert time.monotonic() - started < SOON and not log.exists()


def test_a_device_that_a_tracker_only_promises(tmp_path: Path) -> None:
    """The tracker has a free one and then says nothing more."""
    free = MAGIC + framed('[0, {"queue_info": {"desk": {"free": 1}}}]')
    with tracker([free]) as address:
        started = time.monotonic()
        with pytest.raises(EnvironmentProblem, match="does not answer: the time was over"):
            tune(
                [WORKLOAD],
                threads=1,
                tracker=address,
                key=KEY,
                log=tmp_path / "x.jsonl",
                time_limit=3,
            )
        assert time.monotonic() - started < LONG
