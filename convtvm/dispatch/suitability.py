"""Whether this machine can run compiled code, asked before any of it runs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from convtvm.dispatch import gpu
from convtvm.errors import LibraryError
from convtvm.machine.cpu import missing_features


class Compiled(Protocol):
    """What code was compiled for: a target, and the CPU features that it uses."""

    @property
    def target(self) -> str: ...

    @property
    def features(self) -> tuple[str, ...]: ...

    @property
    def on_gpu(self) -> bool: ...


def check(targets: Sequence[Compiled], path: str | Path) -> None:
    """Raise LibraryError if this machine can run the code for none of the targets."""
    objections = [objection(compiled, path) for compiled in targets]
    if all(objections):
        raise LibraryError("; ".join(filter(None, objections)))


def objection(compiled: Compiled, path: str | Path = "the library") -> str:
    """Why this machine cannot run the code for one target; empty if it can."""
    target = compiled.target
    if compiled.on_gpu:
        return gpu.objection(target, path)
    machine = platform.machine()
    advice = "compile it here with --target native"
    if f"-mtriple={machine}" not in target:
        return f"{path} is compiled for {target!r}; this machine is {machine}; {advice}"
    missing = missing_features(compiled.features)
    if not missing:
        return ""
    lacks = f"this CPU lacks {', '.join(missing)}"
    return f"{path} is compiled for {target!r}; {lacks}; {advice}"
