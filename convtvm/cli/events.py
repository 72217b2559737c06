"""What happens while tuning, for machines: one JSON object a line, written as it happens."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtvm.cli.output import finite
from convtvm.errors import LogError

if TYPE_CHECKING:
    from convtvm.logs.records import TuningRecord
    from convtvm.tuning.progress import TaskProgress


class Events:
    """Writes events to a file, `/dev/stderr` included. Raises LogError if it cannot be opened.

    Each has `event` and `time`, seconds since the epoch; docs/events.md lists the others.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("a", encoding="utf8")
        except OSError as error:
            raise LogError(f"cannot write events to {path}: {error.strerror}") from None

    def trial(
        self,
        progress: TaskProgress,
        record: TuningRecord,
        totals: tuple[int, int],
        eta: float | None,
    ) -> None:
        """`totals` are the trials done and wanted of all tasks, `eta` the seconds left."""
        done, wanted = totals
        best, default = progress.best, progress.default
        self._write(
            "confirmed" if record.confirmed else "trial",
            **_task(progress),
            decisions=dict(record.decisions),
            secs=record.seconds,
            error=dict(record.error),
            best_secs=best.seconds if best else None,
            default_secs=default.seconds if default else None,
            done=done,
            wanted=wanted,
            eta_secs=eta,
        )

    def task(self, progress: TaskProgress) -> None:
        self._write("ended", **_task(progress), reason=progress.ended)

    def summary(self, document: dict[str, Any]) -> None:
        self._write("summary", **document)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # said when it was written
            self._file.close()

    def _write(self, event: str, **facts: Any) -> None:
        line = json.dumps(finite({"event": event, "time": time.time(), **facts}), allow_nan=False)
        try:
            self._file.write(f"{line}\n")
            self._file.flush()
        except OSError as error:
            raise LogError(f"cannot write events to {self._path}: {error.strerror}") from None


def _task(progress: TaskProgress) -> dict[str, Any]:
    task = progress.task
    return {
        "workload": task.workload.key,
        "name": task.workload.name,
        "algorithm": task.algorithm_name,
        "trials": progress.done,
    }
