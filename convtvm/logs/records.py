"""Tuning records: one JSON line a trial, appended and flushed, never rewritten.

Lines identify themselves by content, so `cat`, copies and several writers are safe. A line that
cannot be used is named with file and line number; the others are used.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtvm import errors
from convtvm.errors import LogError
from convtvm.logs import fields
from convtvm.logs.lines import check_appendable, numbered_lines

if TYPE_CHECKING:  # reading a log needs no TVM
    from convtvm.kernels.task import Task

FORMAT = 1


@dataclass(frozen=True)
class TuningRecord:
    """One trial. `run_secs` are seconds a call, empty for a failure; then `error` says why.

    `max_error` is relative to the largest output; `template` is the version of the template. A
    `disturbed` time was taken while something else ran; a `confirmed` one in an exported library,
    called as a plan calls it, and counts instead of the one taken while tuning.
    """

    workload: str
    algorithm: str
    target: str
    threads: int
    layout: str
    device: str
    decisions: Mapping[str, int]
    template: int
    run_secs: Sequence[float] = ()
    error: Mapping[str, str] = field(default_factory=dict)
    max_error: float | None = None
    workspace_bytes: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    time: str = ""
    disturbed: bool = False
    confirmed: bool = False
    format: int = FORMAT

    @classmethod
    def of(
        cls,
        task: Task,
        decisions: Mapping[str, int],
        trial: Any,
        device: str,
        versions: Mapping[str, str],
        confirmed: bool = False,
    ) -> TuningRecord:
        """What became of a candidate of `task`, a Trial, on `device`, now, by these versions."""
        return cls(
            *task.key,
            device,
            decisions,
            task.template_version,
            trial.run_secs,
            {"kind": trial.kind, "message": trial.message} if trial.kind else {},
            trial.max_error,
            trial.workspace_bytes,
            versions,
            now(),
            trial.disturbed,
            confirmed,
        )

    @property
    def task_key(self) -> tuple[str, str, str, int, str]:
        return (self.workload, self.algorithm, self.target, self.threads, self.layout)

    @property
    def rivalry(self) -> tuple[str, str, int, str]:
        """What records have in common whose candidates compete: all of the task but the
        algorithm."""
        return (self.workload, self.target, self.threads, self.layout)

    @property
    def blames_environment(self) -> bool:
        """Whether it is a failure that says nothing about the candidate, as older versions wrote
        them: no room, no right to run code there."""
        return errors.blames_environment(str(self.error.get("message", "")))

    @property
    def seconds(self) -> float:
        """Median seconds a call; infinite for a failure."""
        return statistics.median(self.run_secs) if self.run_secs else float("inf")

    @property
    def identity(self) -> tuple[Any, ...]:
        """Task and decisions: two records that share it measured the same candidate."""
        return (*self.task_key, self.template, *sorted(self.decisions.items()))

    def to_line(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Problem:
    """A line of a log that is not used, and why."""

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}; line skipped"


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def parse_line(line: str) -> TuningRecord:
    """The record of one line. Raises ValueError with the reason if it is not one of this format."""
    try:
        entry = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("not a complete JSON line (torn or damaged)") from None
    if not isinstance(entry, dict):
        raise ValueError("not a tuning record: expected a JSON object")
    if entry.get("format") != FORMAT:
        raise ValueError(f"format {entry.get('format')!r}, this version reads {FORMAT}")
    known = TuningRecord.__dataclass_fields__
    try:
        record = TuningRecord(**{k: v for k, v in entry.items() if k in known})
        fields.check(record)
    except TypeError as error:
        raise ValueError(f"not a tuning record: {error}") from None
    return record


def load(paths: Iterable[str | Path]) -> tuple[list[TuningRecord], list[Problem]]:
    """All usable records of the files in order, and the lines that are not.

    Raises LogError for a file that cannot be read.
    """
    records: list[TuningRecord] = []
    problems: list[Problem] = []
    for path in paths:
        for number, raw in numbered_lines(path):
            try:
                records.append(parse_line(raw.decode("utf8")))
            except UnicodeDecodeError:
                problems.append(Problem(str(path), number, "not text (binary garbage)"))
            except ValueError as error:
                problems.append(Problem(str(path), number, str(error)))
    return records, problems


def as_paths(given: object) -> list[Path]:
    """The paths of logs that a caller means, one or several. Raises LogError."""
    if isinstance(given, (str, os.PathLike)):
        return [Path(given)]
    if isinstance(given, Iterable) and not isinstance(given, (bytes, bytearray)):
        paths = list(given)
        if all(isinstance(path, (str, os.PathLike)) for path in paths):
            return [Path(path) for path in paths]
    raise LogError(f"logs is {given!r}, expected paths of tuning logs")


def shipped_logs() -> list[Path]:
    """The tuning logs that came with convtvm."""
    found = resources.files("tuning_logs")
    return sorted(path for path in Path(str(found)).rglob("*.jsonl"))


class LogWriter:
    """Appends records to one file; every line is one write, so writers do not mix.

    A file that is deleted, renamed, truncated or replaced meanwhile gets the lines of this writer
    that it lacks again; `restored` counts them. Raises LogError if the file cannot be opened for
    appending.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.restored = 0
        self._lines: list[bytes] = []
        self._last = b"", 0  # what was written last, and where
        self._fd = self._open()
        try:
            self._check()
        except LogError:
            os.close(self._fd)
            raise

    def _open(self) -> int:
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            return os.open(self.path, flags, 0o666)
        except OSError as error:
            raise LogError(f"cannot write log {self.path}: {error.strerror}") from None
        except ValueError as error:  # a zero byte in the path
            raise LogError(f"cannot write log {self.path}: {error}") from None

    def _check(self) -> None:
        """Raise LogError if records cannot be written here: now, and not after the first trial."""
        kind = os.fstat(self._fd).st_mode
        if stat.S_ISREG(kind):
            check_appendable(self.path, os.pread(self._fd, 64, 0))
        elif stat.S_ISCHR(kind):  # such as /dev/full
            try:
                os.write(self._fd, b"\n")
            except OSError as error:
                raise LogError(f"cannot write log {self.path}: {error.strerror}") from None

    def append(self, record: TuningRecord) -> None:
        """Write a record, and those before it that were lost. Raises LogError."""
        self._lines.append(record.to_line().encode("utf8"))
        if self._is_ours():
            self._write(self._lines[-1])
        else:
            self.restored -= 1  # the new one is not among those that were lost
            self._restore()

    def _is_ours(self) -> bool:
        """Whether the path still leads to the file that was opened, with what was written last."""
        opened = os.fstat(self._fd)
        if not stat.S_ISREG(opened.st_mode):
            return True  # a pipe or a device keeps nothing
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        content, start = self._last
        same = os.path.samestat(opened, found)
        return same and os.pread(self._fd, len(content), start) == content

    def _restore(self) -> None:
        """Write what the file at the path lacks of this writer's lines."""
        try:
            fd = self._open()
        except LogError as error:
            raise LogError(f"{error}; {self._rescue()}") from None
        os.close(self._fd)
        self._fd = fd
        there = set(os.pread(fd, os.fstat(fd).st_size, 0).split(b"\n"))
        for line in (line for line in self._lines if line not in there):
            self._write(line)
            self.restored += 1

    def _rescue(self) -> str:
        """Put the lines into a file of their own; a text that says where they are."""
        lines, self._lines = self._lines, []
        try:
            fd, path = tempfile.mkstemp(prefix="convtvm-", suffix=".jsonl")
            with os.fdopen(fd, "wb") as file:
                file.writelines(line + b"\n" for line in lines)
        except OSError as error:
            return f"{len(lines)} records of this run are lost ({error.strerror})"
        return f"{len(lines)} records of this run are in {path}"

    def _write(self, line: bytes) -> None:
        size = os.fstat(self._fd).st_size
        torn = size and os.pread(self._fd, 1, size - 1) != b"\n"  # its writer was killed
        content = b"\n" * bool(torn) + line + b"\n"
        try:
            done = os.write(self._fd, content)
        except OSError as error:
            raise LogError(f"cannot write log {self.path}: {error.strerror}") from None
        if done < len(content):
            raise LogError(f"cannot write log {self.path}: {os.strerror(errno.ENOSPC)}")
        if stat.S_ISREG(os.fstat(self._fd).st_mode):
            self._last = content, os.lseek(self._fd, 0, os.SEEK_CUR) - done

    def close(self) -> None:
        """Raises LogError if lines were lost since the last one and cannot be written again."""
        try:
            if self._lines and not self._is_ours():
                self._restore()
        finally:
            os.close(self._fd)


def grouped(records: Iterable[TuningRecord], key: str) -> dict[tuple[Any, ...], list[TuningRecord]]:
    """Records by a property of theirs, such as `task_key`, where many are asked for."""
    groups: dict[tuple[Any, ...], list[TuningRecord]] = {}
    for record in records:
        groups.setdefault(getattr(record, key), []).append(record)
    return groups


def usable(records: Iterable[TuningRecord], task: Task) -> list[TuningRecord]:
    """Records of `task` made by today's version of its template, with decisions it still accepts,
    but none that only says what the machine lacked."""
    found = [r for r in records if r.task_key == task.key and r.template == task.template_version]
    return [r for r in found if task.space.contains(r.decisions) and not r.blames_environment]


def judged(records: Iterable[TuningRecord]) -> list[TuningRecord]:
    """One record a candidate: the last that was confirmed, else the fastest."""
    chosen: dict[tuple[Any, ...], TuningRecord] = {}
    for record in records:
        if _outranks(record, chosen.setdefault(record.identity, record)):
            chosen[record.identity] = record
    return list(chosen.values())


def _outranks(a: TuningRecord, b: TuningRecord) -> bool:
    if a.confirmed or b.confirmed:
        return a.confirmed and (not b.confirmed or (a.time, -a.seconds) > (b.time, -b.seconds))
    return a.seconds < b.seconds


@dataclass(frozen=True)
class Standing:
    """How the candidates of one workload compare, on one target, threads and layout.

    Times of trials and of races do not: a trial is shorter, alone, and no plan calls it. Where
    candidates raced, `raced` is the fastest of these times and `drift` what races made of a
    trial's, as a factor. A candidate that did not race counts with its trial's time by that factor,
    and never as faster than all that did. `raced` is None where nobody has raced.
    """

    raced: float | None = None
    drift: float = 1.0

    @classmethod
    def of(cls, records: Iterable[TuningRecord]) -> Standing:
        made = list(records)
        tried = {r.identity: r.seconds for r in judged(r for r in made if not r.confirmed)}
        raced = [r for r in judged(made) if r.confirmed and r.run_secs]
        if not raced:
            return cls()
        both = [(r.seconds, tried.get(r.identity, math.inf)) for r in raced]
        drifts = [after / before for after, before in both if math.isfinite(before)]
        return cls(min(r.seconds for r in raced), statistics.median(drifts) if drifts else 1.0)

    def seconds(self, record: TuningRecord) -> float:
        """Seconds of a candidate as they compare with those of its rivals."""
        if record.confirmed or self.raced is None:
            return record.seconds
        return max(self.drift * record.seconds, math.nextafter(self.raced, math.inf))

    def compared(self, record: TuningRecord) -> TuningRecord:
        """`record` with its time as it compares with those of its rivals."""
        seconds = self.seconds(record)
        return record if seconds == record.seconds else replace(record, run_secs=[seconds])


def best(records: Iterable[TuningRecord], standing: Standing | None = None) -> TuningRecord | None:
    """The fastest successful candidate, the same one in whichever order.

    `standing` is of all records of the workload, where these are only some of them, as those by one
    algorithm.
    """
    made = list(records)
    known = Standing.of(made) if standing is None else standing
    done = [r for r in judged(made) if r.run_secs]
    return min(done, key=lambda r: (known.seconds(r), repr(r.identity)), default=None)


def standings(records: Iterable[TuningRecord]) -> dict[tuple[Any, ...], Standing]:
    """The standing of each workload by `rivalry`."""
    return {key: Standing.of(made) for key, made in grouped(records, "rivalry").items()}
