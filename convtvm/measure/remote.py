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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from convtvm.errors import EnvironmentProblem, TargetError
from convtvm.machine import gpu
from convtvm.machine.targets import CompileTarget, CudaTarget
from convtvm.measure.jobs import Limits, Outcome, RunJob, failure

_HELD = 1.0  # seconds that a probe keeps its device, so that the next probe gets another
CONNECT_SECONDS = 10.0  # seconds to wait for a device that the tracker calls free
_SESSION = 10  # times the time of a job that a session may last
CONNECTED = "connected"  # the kind of the first outcome of a session
# A GPU that was idle needs a while to bring up its clock, and its calls in a row overlap.
_GPU_WARM_UP, _GPU_WINDOW = 0.1, 0.01  # seconds
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


@dataclass(frozen=True)
class Machine:
    """What a device behind a tracker is: its CPU by LLVM's name, empty where it cannot tell, and
    the GPU that TVM finds there, with its architecture as in sm_90."""

    cpu: str = ""
    gpu: str = ""
    arch: str = ""

    def name(self, target: CompileTarget) -> str:
        """Of the part that runs kernels for `target`."""
        return self.gpu if target.kind == "cuda" else self.cpu


def objection(machine: Machine, target: CompileTarget) -> str:
    """Why a device cannot run kernels for `target`; empty if it can, as far as is known."""
    if isinstance(target, CudaTarget):
        if not machine.gpu:
            return (
                "TVM finds no NVIDIA GPU on a device; its server needs the driver, and "
                "libcudart.so.13 in its LD_LIBRARY_PATH"
            )
        if any(gpu.runs(arch, machine.arch) for arch in target.arches):
            return ""
        return (
            f"a device is {machine.gpu}, {machine.arch}; name it with --target cuda:{machine.arch}"
        )
    missing = missing_features(machine.cpu, target)
    if not missing:
        return ""
    return (
        f"a device is {machine.cpu}, which lacks {', '.join(missing)}; name it with --target "
        f"'llvm -mcpu={machine.cpu}'"
    )


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
    """Report the Machine of one device."""
    session = _session(limits)
    try:
        cpu = str(session.get_function("target.llvm_get_system_cpu")())
    except (AttributeError, RuntimeError, ValueError):
        cpu = ""
    there = session.cuda(0)
    found = Machine(cpu)
    if there.exist:
        arch = f"sm_{there.compute_version.replace('.', '')}"
        found = Machine(cpu, str(there.device_name), arch)
    report(Outcome(found))
    time.sleep(_HELD)
    _close(session)


def run_batch(jobs: list[RunJob], limits: Limits, report: Callable[[Outcome], None]) -> None:
    """Measure the jobs on one device, in order; ends early, without a report, when it is lost.

    What a kernel that failed has done to a GPU's memory nobody knows: the next ones get a new
    session, which is a new process there.
    """
    from tvm.error import RPCError

    session = _session(limits)
    report(Outcome(None, CONNECTED))
    key, arrays = ("", ""), {}
    for left, job in zip(reversed(range(len(jobs))), jobs, strict=True):
        try:
            if key != (job.inputs, job.pack):
                key, arrays = (job.inputs, job.pack), _send_inputs(session, job)
            outcome = _run(session, job, arrays, limits)
        except Exception as error:
            if isinstance(error, (OSError, RPCError)) or not _is_alive(session):
                print(failure(LOST, error).message, file=sys.stderr, flush=True)
                os._exit(1)  # without a report: nothing is known of the candidate
            outcome = failure("runtime", error)
        report(outcome)
        if outcome.kind and job.device == "cuda" and left:
            key, arrays = ("", ""), {}
            _close(session)
            session = _session(limits)
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
    from tvm.runtime import empty, tensor

    from convtvm.problem import dtypes

    arrays = {path.stem: dtypes.load(path) for path in Path(job.inputs).glob("*.npy")}
    dtype = str(arrays["weight"].dtype)
    host, device = session.cpu(0), _device(session, job)
    data, bias = (tensor(arrays[name], device) for name in ("data", "bias"))
    packed = empty(job.packed_shape, dtype, host)
    _load(session, job.pack)["main"](tensor(arrays["weight"], host), packed)
    if job.device == "cuda":
        packed = tensor(packed.numpy(), device)
    out = empty(arrays["reference"].shape, dtype, device)
    return {"args": (data, packed, bias, out), "reference": arrays["reference"]}


def _device(session: Any, job: RunJob) -> Any:
    return session.cuda(0) if job.device == "cuda" else session.cpu(0)


def _run(session: Any, job: RunJob, arrays: dict[str, Any], limits: Limits) -> Outcome:
    """The answer first, checked here; then the time, as the device takes it."""
    import numpy as np
    from tvm.runtime import empty

    from convtvm.measure.timing import timed
    from convtvm.measure.trial import judge
    from convtvm.problem.reference import relative_error

    module, device = _load(session, job.path), _device(session, job)
    operands, reference = arrays["args"], arrays["reference"]
    out = operands[3]
    out.copyfrom(np.full(reference.shape, np.nan, str(out.dtype)))
    scratch = [empty(shape, dtype, device) for dtype, *shape in job.scratch]
    args = (*operands, *scratch)
    module["main"](*args)
    device.sync()

    def evaluate(number: int) -> float:
        calls = module.time_evaluator("main", device, number=number, repeat=1)
        return float(calls(*args).results[0])

    error = relative_error(out.numpy(), reference)
    if job.device == "cuda":
        limits = replace(limits, window=_GPU_WINDOW)
        evaluate(max(1, int(_GPU_WARM_UP / max(evaluate(1), 1e-6))))
    outcome = judge(job, error, partial(timed, evaluate), limits)
    session.remove(Path(job.path).name)
    return outcome
