"""What `torch.compile(model, backend="convtvm", options={...})` and `optimize` can be told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from convtvm.dispatch.selection import POLICIES
from convtvm.errors import ConvtvmError

RESTS = ("inductor", "eager")
WORKERS = ("pytorch", "own")


@dataclass(frozen=True)
class Options:
    """How convolutions are compiled and chosen.

    `logs`: files of records, None for those that came with convtvm. `threads` of a kernel, None for
    as many as PyTorch uses. `max_error` (relative to the largest output), `workspace_limit` (bytes)
    and `policy` (logged, predicted or measure) as of `KernelLibrary.plan`. `tune_seconds`: how long
    the convolutions of a graph without records are tuned before they are compiled, 0 for never.
    `rest`: what runs all other operations, `inductor` or `eager`. `workers`: whose threads compute
    kernels on a CPU, `pytorch`, at most as many as it uses itself, or convtvm's `own`.
    """

    logs: tuple[str, ...] | None = None
    threads: int | None = None
    max_error: float | None = None
    workspace_limit: int | None = None
    policy: str = "logged"
    tune_seconds: float = 0
    rest: str = "inductor"
    workers: str = "pytorch"

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Options:
        """Checked options. Raises ConvtvmError, for an unknown name too."""
        if given is not None and not isinstance(given, Mapping):
            raise ConvtvmError(f"options is {given!r}, expected a dict")
        known = [f.name for f in fields(cls)]
        unknown = [name for name in given or {} if name not in known]
        if unknown:
            raise ConvtvmError(f"option {unknown[0]!r} is unknown, expected {', '.join(known)}")
        values = dict(given or {})
        values["logs"] = _paths(values.get("logs"))
        return cls(**values)

    def __post_init__(self) -> None:
        _check_number("threads", self.threads, int, 1)
        _check_number("workspace_limit", self.workspace_limit, int, 0)
        _check_number("max_error", self.max_error, (int, float), 0)
        _check_number("tune_seconds", self.tune_seconds, (int, float), 0)
        _check_one_of("policy", self.policy, POLICIES)
        _check_one_of("rest", self.rest, RESTS)
        _check_one_of("workers", self.workers, WORKERS)

    @property
    def keep(self) -> str:
        """Which candidates a library needs for the choice, as of `convtvm.compile`."""
        if self.policy == "measure":
            return "all"
        limited = self.max_error is not None or self.workspace_limit is not None
        return "pareto" if limited else "best"


def _paths(logs: Any) -> tuple[str, ...] | None:
    if logs is None:
        return None
    if isinstance(logs, (str, os.PathLike)):
        logs = [logs]
    if not isinstance(logs, (list, tuple)):
        raise ConvtvmError(f"logs is {logs!r}, expected a list of files")
    for log in logs:
        if not isinstance(log, (str, os.PathLike)) or not log:
            raise ConvtvmError(f"logs holds {log!r}, expected the path of a file")
    return tuple(str(Path(log)) for log in logs)


def _check_number(name: str, value: Any, kind: Any, least: int) -> None:
    if value is None and name != "tune_seconds":
        return
    # `not >=` refuses NaN too.
    if isinstance(value, bool) or not isinstance(value, kind) or not value >= least:
        what = "a whole number" if kind is int else "a number"
        raise ConvtvmError(f"{name} is {value!r}, expected {what} of {least} or more")


def _check_one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConvtvmError(f"{name} is {value!r}, expected one of {', '.join(known)}")
