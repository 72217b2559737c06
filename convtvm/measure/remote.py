"""Devices behind TVM's RPC tracker: which answer, and candidates measured on them.

Every session with a device is a child process of the zygote, so a device that hangs or dies costs
that child; its candidates are measured on another. TVM's RPC has no authentication: whoever reaches
a server runs code on it.
"""

from __future__ import annotations

import gc
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from convtvm.errors import EnvironmentProblem, TargetError
from convtvm.machine.targets import CompileTarget
from convtvm.measure.jobs import Limits, Outcome, RunJob, failure

_HELD = 1.0  # seconds that a probe keeps its device, so that the next probe gets another
CONNECT_SECONDS = 10.0  # seconds to wait for a device that the tracker calls free
_SESSION = 10  # times the time of a job that a session may last
CONNECTED = "connected"  # the kind of the first outcome of a session
_LAST_PORT = 65535
_LONGEST = 16 << 20  # bytes of a tracker's answer
LOST = "device"  # the kind of a job whose device went away


@dataclass(frozen=True)
class Farm:
    """The devices that a tracker at `host`:`port` has under `key`."""

    host: str
    port: int
    key: str
    devices: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def find(address: str, key: str, seconds: float = CONNECT_SECONDS) -> Farm:
    """The devices under `key`. Raises EnvironmentProblem if the tracker does not answer in that
    time or has none of them free, TargetError for an address that is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > _LAST_PORT:
        raise TargetError(f"tracker {address!r} is no address, expected HOST:PORT")
    free = _free_devices(host, int(port), min(seconds, CONNECT_SECONDS))
    if not free.get(key):
        known = ", ".join(f"{name} ({count} free)" for name, count in sorted(free.items()))
        raise EnvironmentProblem(
            f"the tracker at {address} has no free device with key {key!r}; it has: "
            f"{known or 'none'}; start one with `python -m tvm.exec.rpc_server --tracker {address} "
            f"--key {key}`"
        )
    return Farm(host, int(port), key, free[key])


class _Line:
    """A connection to a tracker that ends at a time of the monotonic clock, and after some MB."""

    def __init__(self, host: str, port: int, deadline: float) -> None:
        self._deadline, self._left = deadline, _LONGEST
        self._socket = socket.create_connection((host, port), timeout=self._seconds())

    def _seconds(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def sendall(self, content: bytes) -> None:
        self._socket.settimeout(self._seconds())
        self._socket.sendall(content)

    def recv(self, count: int) -> bytes:
        self._socket.settimeout(self._seconds())
        content = self._socket.recv(count)
        self._left -= len(content)
        if self._left < 0:
            raise OSError("an answer without end")
        return content

    def close(self) -> None:
        self._socket.close()


def _free_devices(host: str, port: int, seconds: float) -> dict[str, int]:
    """Numbers of free devices by key. Raises EnvironmentProblem.

    TVM's own client goes on trying for a minute, and waits for ever for an answer.
    """
    from tvm.rpc import base

    line: _Line | None = None
    try:
        line = _Line(host, port, time.monotonic() + seconds)
        line.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
        (magic,) = struct.unpack("<i", base.recvall(line, 4))
        if magic != base.RPC_TRACKER_MAGIC:
            raise ValueError("another protocol is spoken there")
        base.sendjson(line, [base.TrackerCode.SUMMARY])
        code, summary = base.recvjson(line)
        if code != base.TrackerCode.SUCCESS:
            raise ValueError(f"it answers with code {code!r}")
        return {str(key): int(q["free"]) for key, q in summary["queue_info"].items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise EnvironmentProblem(
            f"no tracker answers at {host}:{port} ({failure('', error).message}); start one with "
            "`python -m tvm.exec.rpc_tracker`"
        ) from None
    finally:
        if line is not None:
            line.close()


def missing_features(cpu: str, target: CompileTarget) -> list[str]:
    """Features of the target that a device's CPU, by LLVM's name, lacks; none if nothing is
    known."""
    from tvm.target import Target, codegen

    triple = target.spec["mtriple"]
    if not cpu or not codegen.llvm_is_valid_cpu(cpu, triple):
        return []
    spec = {"kind": "llvm", "mtriple": triple, "mcpu": cpu}
    offered = {str(f) for f in codegen.llvm_get_cpu_features(Target(spec))}
    return sorted(set(target.features) - offered)


# ---- inside a child of the zygote ----------------------------------------------------------------


def _session(limits: Limits) -> Any:
    from tvm import rpc

    host, _, port = limits.tracker.rpartition(":")
    tracker = rpc.connect_tracker(host, int(port))
    # The server ends a session that lasts longer, so a hung one frees its device.
    return tracker.request(
        limits.key,
        session_timeout=int(CONNECT_SECONDS) + _SESSION * int(limits.timeout),
        max_retry=1,
    )


def probe(limits: Limits, report: Callable[[Outcome], None]) -> None:
    """Report the CPU of one device, by LLVM's name, empty where the device cannot tell."""
    session = _session(limits)
    try:
        cpu = str(session.get_function("target.llvm_get_system_cpu")())
    except (AttributeError, RuntimeError, ValueError):
        cpu = ""
    report(Outcome(cpu))
    time.sleep(_HELD)
    _close(session)


def run_batch(jobs: list[RunJob], limits: Limits, report: Callable[[Outcome], None]) -> None:
    """Measure the jobs on one device, in order; ends early, without a report, when it is lost."""
    from tvm.error import RPCError

    session = _session(limits)
    report(Outcome(None, CONNECTED))
    key, arrays = ("", ""), {}
    for job in jobs:
        try:
            if key != (job.inputs, job.pack):
                key, arrays = (job.inputs, job.pack), _send_inputs(session, job)
            report(_run(session, job, arrays, limits))
        except Exception as error:
            if isinstance(error, (OSError, RPCError)) or not _is_alive(session):
                print(failure(LOST, error).message, file=sys.stderr, flush=True)
                os._exit(1)  # without a report: nothing is known of the candidate
            report(failure("runtime", error))
    arrays.clear()
    _close(session)


def _close(session: Any) -> None:
    """Say goodbye: TVM's server does not survive a session that just breaks off."""
    del session._sess  # its last reference ends it
    gc.collect()


def _is_alive(session: Any) -> bool:
    try:
        session.get_function("runtime.config_threadpool")
    except Exception:
        return False
    return True


def _load(session: Any, path: str) -> Any:
    session.upload(path)
    return session.load_module(Path(path).name)


def _send_inputs(session: Any, job: RunJob) -> dict[str, Any]:
    """The kernel's arguments on the device and the reference here."""
    import numpy as np
    from tvm.runtime import empty, tensor

    arrays = {path.stem: np.load(path) for path in Path(job.inputs).glob("*.npy")}
    device = session.cpu(0)
    sent = {name: tensor(arrays[name], device) for name in ("data", "weight", "bias")}
    packed = empty(job.packed_shape, "float32", device)
    _load(session, job.pack)["main"](sent["weight"], packed)
    out = empty(arrays["reference"].shape, "float32", device)
    return {
        "args": (sent["data"], packed, sent["bias"], out),
        "reference": arrays["reference"],
    }


def _run(session: Any, job: RunJob, arrays: dict[str, Any], limits: Limits) -> Outcome:
    """The answer first, checked here; then the time, as the device takes it."""
    import numpy as np

    from convtvm.measure.timing import timed
    from convtvm.measure.trial import judge
    from convtvm.problem.reference import relative_error

    module = _load(session, job.path)
    args, reference = arrays["args"], arrays["reference"]
    args[3].copyfrom(np.full(reference.shape, np.nan, np.float32))
    module["main"](*args)

    def evaluate(number: int) -> float:
        calls = module.time_evaluator("main", session.cpu(0), number=number, repeat=1)
        return float(calls(*args).results[0])

    error = relative_error(args[3].numpy(), reference)
    outcome = judge(job, error, partial(timed, evaluate), limits)
    session.remove(Path(job.path).name)
    return outcome
