"""Object files of kernels, compiled side by side, or as the cache holds them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from convtvm.errors import BuildError, EnvironmentProblem
from convtvm.kernels.cuda import cubin, device_code
from convtvm.library.cache import Cache, key_of, open_cache
from convtvm.machine.cpu import physical_cores
from convtvm.measure.client import BUILD_SECONDS, Zygote
from convtvm.measure.jobs import BuildJob, Limits

_HEAD = struct.Struct("<qq")  # workspace in bytes, length of the object file
Compiled = Callable[[BuildJob], None]


def compile_objects(
    zygote: Zygote, jobs: Sequence[BuildJob], compiled: Compiled = lambda job: None
) -> dict[str, int]:
    """Make the object file of every job; workspace bytes by symbol.

    `compiled` is called for each that is ready. Raises BuildError for the first failure.
    """
    cache = open_cache()
    keys = [_key(job) for job in jobs]
    workspaces: dict[str, int] = {}
    missing = []
    for job, key in zip(jobs, keys, strict=True):
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


def _built(
    zygote: Zygote, missing: Sequence[tuple[BuildJob, str]]
) -> Iterator[tuple[BuildJob, str, int]]:
    """Each of these as it is compiled, with its workspace."""
    limits = Limits(workers=physical_cores(), timeout=4 * BUILD_SECONDS)
    jobs = [job for job, _ in missing]
    for index, outcome in zygote.call("build", jobs, limits) if jobs else ():
        job, key = missing[index]
        if outcome.kind:
            raise BuildError(
                f"{job.task.workload} by {job.task.algorithm_name} does not compile: "
                f"{outcome.message}"
            )
        yield job, key, outcome.value


def _key(job: BuildJob) -> str:
    task, decisions = job.task, job.decisions
    return key_of(
        symbol=job.symbol,
        workload=task.workload.key,
        algorithm=task.algorithm_name,
        target=repr(task.target),
        layout=task.layout,
        epilogue=task.epilogue,
        decisions=None if decisions is None else dict(decisions),
        compiler=_cuda_compiler() if task.target.kind == "cuda" else "",
    )


def _cuda_compiler() -> str:
    with suppress(EnvironmentProblem):
        return cubin.find_compiler().identity
    return ""


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
