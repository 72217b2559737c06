"""What the tuner and its helper processes say to each other: jobs, limits, outcomes, messages."""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from convtvm.errors import blames_environment

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

    from convtvm.kernels.task import Scratch, Task
    from convtvm.machine.targets import CompileTarget
    from convtvm.problem.workload import ConvWorkload

LENGTH = struct.Struct("<q")
ENVIRONMENT = "environment"  # the kind of a failure that says nothing about the candidate
STOPPED = "stopped"  # the kind of a job that was given up because its time was over


@dataclass(frozen=True)
class BuildJob:
    """Compile `task` by `decisions`, or its packing function for None, as the function `symbol`.

    A `path` that ends in .o gets the object file, any other the linked library. A `strict` job
    fails for a GPU kernel that spills registers: it could only lose.
    """

    task: Task
    decisions: Mapping[str, int] | None
    path: str
    symbol: str = "main"
    strict: bool = False


@dataclass(frozen=True)
class ProblemJob:
    """Make the arrays that kernels of `workload` are checked on, with the right answer, in the
    folder `path`."""

    workload: ConvWorkload
    layout: str
    path: str


@dataclass(frozen=True)
class FunctionJob:
    """Compile the scheduled `func` for the CPU of `target`, as the function `symbol`, into the
    object file `path`; its parameters need no more than their dtype's alignment."""

    func: PrimFunc
    target: CompileTarget
    path: str
    symbol: str


@dataclass(frozen=True)
class RunJob:
    """Check and time the kernel library `path` on the arrays in folder `inputs`.

    The folder is one of problems.write_problem; the library `pack` packs its weight. `device` is
    the kind of target; a GPU's kernel takes the buffers `scratch` besides.
    """

    path: str
    pack: str
    packed_shape: tuple[int, ...]
    inputs: str
    tolerance: float
    device: str = "cpu"
    scratch: Scratch = ()


@dataclass(frozen=True)
class RaceJob:
    """Check and time kernels of the exported library `path`, all of one workload, side by side.

    `tolerances` are by the kernels' functions. The value is the Outcome of each, in this order.
    """

    path: str
    inputs: str
    tolerances: Mapping[str, float]
    device: str = "cpu"


@dataclass(frozen=True)
class Limits:
    """Workers at once, seconds a job may take, and for runs the number of threads and the timing.

    A candidate is timed in windows of at least `window` seconds, until there are `samples` times or
    `patience` seconds are over; no time is spent on waiting for one that has needed more than
    `hopeless` seconds in each of them.
    With a `tracker`, HOST:PORT, runs are on the devices that it has under `key`, one a worker.
    """

    workers: int = 1
    timeout: float = 20.0
    threads: int = 1
    window: float = 0.0005
    samples: int = 5
    patience: float = 0.3
    hopeless: float = math.inf
    tracker: str = ""
    key: str = ""


@dataclass(frozen=True)
class Outcome:
    """Result of a job: `value` on success, else the kind of error and its first line."""

    value: Any = None
    kind: str = ""
    message: str = ""


def failure(kind: str, error: BaseException) -> Outcome:
    """The outcome of an exception: its class and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else "no message"
    return failed(kind, f"{type(error).__name__}: {first}"[:400])


def failed(kind: str, message: str) -> Outcome:
    """The outcome of a failure; its kind is ENVIRONMENT if the message blames that."""
    return Outcome(kind=ENVIRONMENT if blames_environment(message) else kind, message=message)


def wrong_answer(error: float, tolerance: float) -> Outcome:
    """The outcome of a kernel whose result is off by `error`, relative to the largest output."""
    message = f"relative error {error:.1e}, at most {tolerance:.0e} is accepted"
    return Outcome(None, "wrong_answer", message)


def send(stream: BinaryIO, message: object) -> None:
    body = pickle.dumps(message)
    content = memoryview(LENGTH.pack(len(body)) + body)
    while content:
        content = content[stream.write(content) :]
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """The next message. Raises EOFError when the other side is gone, even in its middle."""
    (length,) = LENGTH.unpack(_exactly(stream, LENGTH.size))
    return pickle.loads(_exactly(stream, length))


def _exactly(stream: BinaryIO, count: int) -> bytes:
    content = b""
    while len(content) < count:
        more = stream.read(count - len(content))
        if not more:
            raise EOFError
        content += more
    return content
