"""What several test files need: kernels run in this process, planted tasks, hand-made logs."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import tirx

from convtvm.kernels import codegen, lowering
from convtvm.kernels.task import Task
from convtvm.logs.records import LogWriter, TuningRecord
from convtvm.machine.targets import CompileTarget, resolve
from convtvm.measure.verify import loaded

Array = NDArray[Any]
LONG = 300.0  # seconds that nothing which ends by itself comes near, on however busy a machine
SOON = 60.0  # seconds, on a busy machine, of what would else take LONG or never end
# Seconds that tests of what hangs give it, in turn: few, since it takes them all; more where
# something else was not done in time either, on a slow or busy machine.
LIMITS_IN_TURN = (3.0, 15.0, 100.0)
ROOT = Path(__file__).resolve().parents[1]
Decisions = Mapping[str, int]


@dataclass(frozen=True)
class Unoptimised(CompileTarget):
    """A target for which LLVM optimises nothing, where only numbers are asked for."""

    @classmethod
    def native(cls, threads: int = 1) -> Unoptimised:
        return cls(**vars(resolve("native", threads)))

    @property
    def options(self) -> dict[str, Any]:
        return {**super().options, "opt-level": 0}


def compiled(task: Task, decisions: Decisions | None) -> tvm.runtime.Module:
    """The kernel of these decisions, or the packing function for None, as the function `main`."""
    func = task.pack() if decisions is None else task.instantiate(decisions)["main"]
    target = task.target.tvm
    return codegen.compile_lowered(lowering.lower(codegen.merge({"main": func}), target), target)


def opt_level(*case: object) -> int:
    """LLVM's for a case of many: its optimiser, which takes most of the time of a kernel, in one of
    three, in every run the same."""
    return 3 if zlib.crc32(" ".join(map(str, case)).encode()) % 3 == 0 else 0


_packings: dict[tuple[int, str], Callable[..., Any]] = {}


def pack_weight(task: Task, weight: Array) -> Array:
    """`weight` as the kernels of `task` read it."""
    func = task.pack()
    key = tvm_ffi.structural_hash(func), task.target.name
    if key not in _packings:
        _packings[key] = loaded(func, task.target, opt_level=1)
    packed = np.full([int(extent) for extent in func.params[1].shape], np.nan, np.float32)
    _packings[key](tvm_ffi.from_dlpack(weight), tvm_ffi.from_dlpack(packed))
    return packed


def kernel_of(task: Task, decisions: Decisions, opt_level: int = 3) -> Callable[..., Any]:
    """The compiled kernel, a function of tensors.

    `opt_level` is LLVM's: 0 compiles several times faster and shows all but what its optimiser
    does, which has nothing to do with which decisions are meant.
    """
    if opt_level == 3:
        return compiled(task, decisions)["main"]
    return loaded(task.instantiate(decisions)["main"], task.target, opt_level)


def run_kernel(
    task: Task,
    decisions: Decisions,
    data: Array,
    packed: Array,
    bias: Array,
    opt_level: int = 3,
) -> Array:
    """The output of one kernel on a packed weight; elements that it leaves out are NaN."""
    out = np.full(task.workload.out_shape(task.layout), np.nan, np.float32)
    kernel_of(task, decisions, opt_level)(*map(tvm_ffi.from_dlpack, (data, packed, bias, out)))
    return out


def run_task(
    task: Task,
    decisions: Decisions,
    data: Array,
    weight: Array,
    bias: Array,
    opt_level: int = 3,
) -> Array:
    """The output of one kernel, with the weight packed by the task's own function."""
    return run_kernel(task, decisions, data, pack_weight(task, weight), bias, opt_level)


@dataclass(frozen=True)
class Planted:
    """A task for the zygote whose schedule does `deed` first, in the process that builds it."""

    deed: str
    task: Task

    @property
    def target(self) -> CompileTarget:
        return self.task.target

    def pack(self) -> tirx.PrimFunc:
        return self.task.pack()

    def instantiate(self, decisions: Decisions) -> tvm.IRModule:
        DEEDS[self.deed]()
        return self.task.instantiate(decisions)


def _print_garbage() -> None:
    print("garbage" * 1000, flush=True)
    os.write(1, b"\xff\x00 garbage on the file descriptor")


def _raise_lines() -> None:
    raise ValueError("\n  the first line\nthe second")


def _use_all_memory() -> None:
    blocks = [np.empty(1 << 30, np.uint8)]  # address space only, no page is touched
    while True:
        blocks.append(np.empty_like(blocks[0]))


def _recurse() -> None:
    _recurse()


def _hang_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


def _open_too_many() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    os.open(os.devnull, os.O_RDONLY)


def _leave_a_child() -> None:
    if os.fork() == 0:
        time.sleep(1000)


DEEDS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "abort": os.abort,
    "hang": lambda: time.sleep(1000),
    "hang deaf": _hang_deaf,
    "raise": _raise_lines,
    "raise silently": lambda: _throw(RuntimeError()),
    "exit": lambda: os._exit(3),
    "sys.exit": lambda: sys.exit(4),
    "interrupt": lambda: _throw(KeyboardInterrupt()),
    "print": _print_garbage,
    "memory": _use_all_memory,
    "too many files": _open_too_many,
    "no room": lambda: _throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.o")),
    "quota": lambda: _throw(RuntimeError(f"cannot write: {os.strerror(errno.EDQUOT)}")),
    "noexec": lambda: _throw(RuntimeError("x.so: failed to map segment from shared object")),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "recurse": _recurse,
    "close all files": lambda: os.closerange(0, 256),
    "leave a child": _leave_a_child,
}


def _throw(error: BaseException) -> None:
    raise error


def record_of(
    task: Task,
    secs: float | None,
    max_error: float | None = 1e-7,
    workspace: int | None = 0,
    decisions: Decisions | None = None,
) -> TuningRecord:
    """A trial of the task, by default of its default decisions; without seconds it failed."""
    return TuningRecord(
        *task.key,
        device="a CPU",
        decisions=dict(decisions or task.space.default),
        template=task.template_version,
        run_secs=[] if secs is None else [secs],
        error={"kind": "wrong_answer", "message": "planted"} if secs is None else {},
        max_error=None if secs is None else max_error,
        workspace_bytes=None if secs is None else workspace,
    )


def log_of(path: Path, *made: TuningRecord) -> Path:
    """A hand-made tuning log."""
    writer = LogWriter(path)
    for record in made:
        writer.append(record)
    writer.close()
    return path


def without_torch(*folders: Path) -> dict[str, str]:
    """The environment of a process that imports from `folders` too and finds no PyTorch, which
    tvm_ffi imports for two seconds wherever it is installed."""
    found = [str(ROOT / "tests" / "without_torch"), *map(str, folders)]
    path = os.pathsep.join(filter(None, [*found, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def eventually(is_true: Callable[[], bool]) -> bool:
    """Whether it becomes so."""
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        if is_true():
            return True
        time.sleep(0.05)
    return False
