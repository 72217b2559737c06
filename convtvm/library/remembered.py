"""`convtvm.compile`: the library that the same call made before, in any process, or a new one.

Imports no compiler: a library that is remembered is there in the time that it takes to read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtvm.dispatch import KernelLibrary, manifest
from convtvm.errors import LibraryError
from convtvm.kernels.cuda.cubin import compiler_identity
from convtvm.library.cache import key_of, open_cache
from convtvm.machine import gpu
from convtvm.machine.cpu import device_name, host_features, physical_cores
from convtvm.problem.sources import Workloads, as_names, as_workloads
from convtvm.problem.workload import ConvWorkload

if TYPE_CHECKING:
    from convtvm.machine.targets import CompileTarget

_LENGTH = 8  # bytes of the number that says how long the text of problems is


def compile(
    workloads: Workloads,
    target: str | CompileTarget | Sequence[str | CompileTarget] = "native",
    threads: int | None = None,
    logs: str | Path | Iterable[str | Path] | None = None,
    layout: str = "NCHW",
    keep: str = "pareto",
    algorithms: str | Iterable[str] | None = None,
    epilogues: str | Iterable[str] | Mapping[ConvWorkload, Sequence[str]] = (),
) -> KernelLibrary:
    """Compile every workload by its best recorded decisions, else by the default ones.

    `workloads` are one or several, each a ConvWorkload, or text or a path as a SOURCE of the
    command line. `target` is one or, for CPUs of one kind of machine, several such as
    `avx2,avx512`: the library then has kernels of each, and the CPU decides when it is loaded.
    `logs` are files of records; without any, those that came with convtvm are used, and with an
    empty list none. `keep` says which candidates go in: `best` (the fastest), `pareto` (those that
    some limit on workspace or error could make the choice) or `all`. `epilogues` are compiled for
    every kernel besides the plain one: `clip` (ReLU and other bounds), `add` (a residual, then
    bounds), a function such as `silu` (see `convtvm.problem.activations`), `add+silu`; a mapping
    says which for each workload.

    A task without records takes the decisions of the nearest one that has: of the same workload on
    a target with as wide vectors and as many registers, or else of a similar workload; its time is
    then a prediction. What was compiled before comes from the cache (`convtvm info` shows it).
    Raises LogError if the logs hold records for foreign targets only, BuildError if a kernel does
    not compile.
    """
    chosen = as_workloads(workloads)
    fused = epilogues if isinstance(epilogues, Mapping) else as_names(epilogues, "epilogues")
    paths = list(logs) if isinstance(logs, Iterable) and not isinstance(logs, str) else logs
    options: dict[str, Any] = {
        "layout": layout,
        "keep": keep,
        "algorithms": as_names(algorithms, "algorithms"),
        "epilogues": fused or [],
    }
    cache = open_cache()
    key = _key(chosen, target, threads, paths, options) if cache.folder else None
    found = _read(cache.get(key)) if key else None
    if found is not None:
        return found
    from convtvm.library import build  # imports TVM

    made = build.compile(chosen, target, threads, paths, **options)
    if key:
        problems = json.dumps(made.problems).encode()
        cache.put(key, len(problems).to_bytes(_LENGTH, "little") + problems + made.content)
        cache.sweep()
    return made


def _read(entry: bytes | None) -> KernelLibrary | None:
    """The library of an entry; None without one, or if its form is of another version."""
    if entry is None:
        return None
    start = _LENGTH + int.from_bytes(entry[:_LENGTH], "little")
    try:
        library = KernelLibrary(*manifest.parse(entry[start:], "the cached library"))
        library.problems = json.loads(entry[_LENGTH:start])
    except (LibraryError, ValueError):
        return None
    return library


def _key(
    workloads: Sequence[ConvWorkload], target: Any, threads: Any, logs: Any, options: dict[str, Any]
) -> str | None:
    """What the library depends on; None for whatever `build.compile` may have to refuse."""
    where, read = place(target, threads), log_digests(logs)
    if where is None or read is None:
        return None
    fused = options["epilogues"]
    if isinstance(fused, Mapping):
        fused = {workload.key: list(names) for workload, names in fused.items()}
    return key_of(
        workloads=[(w.key, w.name) for w in workloads],
        place=where,
        logs=read,
        options={**options, "epilogues": fused},
    )


def place(target: Any, threads: int | None) -> Any:
    """What a target and its default number of threads depend on here; None for TVM's own forms."""
    if not isinstance(target, str) or target.strip().startswith("{"):
        return None
    here = device_name(), sorted(host_features().items())
    if not target.strip().startswith("cuda"):
        return target, threads or physical_cores(), *here
    compiler = compiler_identity()
    # Plain `cuda` is the GPU here.
    return (target, threads, *here, [g.arch for g in gpu.devices()], compiler) if compiler else None


def log_digests(logs: Any) -> list[Any] | None:
    """What these logs hold, those that came with convtvm for None; None if one cannot be read."""
    named = [logs] if isinstance(logs, (str, Path)) else logs
    paths = shipped_logs() if named is None else named
    try:
        read = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    except (OSError, TypeError, ValueError):
        return None
    return read if named is None else list(zip(map(str, paths), read, strict=True))


def shipped_logs() -> list[Path]:
    """Those that came with convtvm."""
    return sorted(Path(str(resources.files("tuning_logs"))).rglob("*.jsonl"))
