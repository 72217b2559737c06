"""Object files of kernels and other functions, compiled side by side, or as the cache holds them.

A function is named by what it depends on, so that libraries of any content share its object file.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import tvm_ffi
from tvm import tirx

from convtvm.errors import BuildError, EnvironmentProblem
from convtvm.kernels.cuda import cubin, device_code
from convtvm.kernels.task import Task
from convtvm.library.cache import Cache, key_of, open_cache
from convtvm.machine.cpu import physical_cores
from convtvm.machine.targets import CompileTarget
from convtvm.measure.client import BUILD_SECONDS, Zygote
from convtvm.measure.jobs import ENVIRONMENT, BuildJob, FunctionJob, Limits

Job = BuildJob | FunctionJob
_HEAD = struct.Struct("<qq")  # workspace in bytes, length of the object file


def kernel_symbol(task: Task, decisions: Mapping[str, int]) -> str:
    """The name of a task's kernel."""
    made_of = f"{task.key} {task.epilogue} {sorted(decisions.items())}"
    return f"conv_{task.algorithm_name.replace(':', '_')}_{_digest(made_of)}"


def pack_symbol(task: Task) -> str:
    """The name of the function that packs a task's weight: tasks share it where it is the same,
    whatever else they differ in."""
    return function_symbol("pack", task.pack(), task.target)


def function_symbol(prefix: str, func: tirx.PrimFunc, target: CompileTarget) -> str:
    """The name of a function compiled for `target`."""
    return f"{prefix}_{_digest(f'{target!r} {tvm_ffi.structural_hash(_nameless(func))}')}"


def _nameless(func: tirx.PrimFunc) -> tirx.PrimFunc:
    named = func.attrs is not None and "global_symbol" in func.attrs
    return func.without_attr("global_symbol") if named else func


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf8")).hexdigest()[:12]


def compile_objects(
    zygote: Zygote, jobs: Sequence[Job], compiled: Callable[[Job], None] = lambda job: None
) -> dict[str, int]:
    """Make the object file of every job; workspace bytes by symbol.

    `compiled` is called for each that is ready. Raises BuildError for the first failure,
    EnvironmentProblem where the machine lacks something.
    """
    cache = open_cache()
    workspaces: dict[str, int] = {}
    missing = []
    for job in jobs:
        key = _key(job)
        found = _unpack(cache.get(key), job.path)
        if found is None:
            missing.append((job, key))
        else:
            workspaces[job.symbol] = found
            compiled(job)
    for job, key, workspace in _built(zygote, missing):
        workspaces[job.symbol] = workspace
        if cache.folder is not None:
            _keep(cache, key, job.path, workspace)
        compiled(job)
    if missing:
        cache.sweep()
    return workspaces


def _built(zygote: Zygote, missing: Sequence[tuple[Job, str]]) -> Iterator[tuple[Job, str, int]]:
    """Each of these as it is compiled, with its workspace."""
    limits = Limits(workers=physical_cores(), timeout=4 * BUILD_SECONDS)
    for index, outcome in zygote.call("build", [job for job, _ in missing], limits):
        job, key = missing[index]
        if outcome.kind == ENVIRONMENT:
            raise EnvironmentProblem(
                f"kernels cannot be built in {zygote.folder}: {outcome.message}"
            )
        if outcome.kind:
            raise BuildError(f"{_about(job)} does not compile: {outcome.message}")
        yield job, key, outcome.value


def _about(job: Job) -> str:
    if isinstance(job, FunctionJob):
        return job.symbol
    return f"{job.task.workload} by {job.task.algorithm_name}"


def _key(job: Job) -> str:
    if isinstance(job, FunctionJob):
        hashed = tvm_ffi.structural_hash(_nameless(job.func))
        text = hashlib.sha256(str(_nameless(job.func)).encode("utf8")).hexdigest()
        return key_of(symbol=job.symbol, target=repr(job.target), hash=hashed, text=text)
    task, decisions = job.task, job.decisions
    return key_of(
        symbol=job.symbol,
        workload=task.workload.key,
        algorithm=task.algorithm_name,
        target=repr(task.target),
        layout=task.layout,
        epilogue=task.epilogue,
        decisions=None if decisions is None else dict(decisions),
        compiler=cubin.compiler_identity() if task.target.kind == "cuda" else "",
    )


def _keep(cache: Cache, key: str, path: str, workspace: int) -> None:
    code, device = Path(path).read_bytes(), b"".join(device_code.read_beside([path]))
    cache.put(key, _HEAD.pack(workspace, len(code)) + code + device)


def _unpack(entry: bytes | None, path: str) -> int | None:
    """Write the files of an entry; its workspace, None without an entry."""
    if entry is None:
        return None
    workspace, length = _HEAD.unpack_from(entry)
    end = _HEAD.size + length
    Path(path).write_bytes(entry[_HEAD.size : end])
    if entry[end:]:
        device_code.write_beside(path, entry[end:])
    return int(workspace)
