"""`convtvm log`: what tuning logs hold, their best records, merging and checking them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtvm.cli.options import Group, examples, json_option
from convtvm.cli.output import (
    check_writable,
    ms,
    plural,
    print_json,
    print_table,
    short,
    text_of,
    warn,
    without_torch,
    write_whole,
)
from convtvm.errors import LogError, WorkloadError
from convtvm.problem.workload import ConvWorkload

if TYPE_CHECKING:
    from convtvm.logs.records import Standing, TuningRecord

_FOUND_PROBLEMS = 1

_files = click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path)
)


@dataclass(frozen=True)
class Line:
    """One line of a log: its text with its record, or the reason why it is not used."""

    path: Path
    number: int
    text: str
    record: TuningRecord | None
    reason: str = ""

    def problem(self, reason: str) -> dict[str, Any]:
        return {"path": str(self.path), "line": self.number, "reason": reason}


def read_lines(paths: Iterable[Path]) -> Iterator[Line]:
    """Every line of the files that is not empty. Raises LogError for an unreadable file."""
    from convtvm.logs.lines import numbered_lines
    from convtvm.logs.records import parse_line

    for path in paths:
        for number, raw in numbered_lines(path):
            text = raw.decode("utf8", errors="replace")
            try:
                yield Line(path, number, text, parse_line(raw.decode("utf8")))
            except UnicodeDecodeError:
                yield Line(path, number, "", None, "not text (binary garbage)")
            except ValueError as error:
                yield Line(path, number, text, None, str(error))


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def log(ctx: click.Context) -> None:
    """Look into tuning logs; merge and check them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


# ---- list ----------------------------------------------------------------------------------------


@log.command("list", epilog=examples("convtvm log list r18.jsonl"))
@_files
@json_option
@without_torch()
def list_(files: Sequence[Path], as_json: bool) -> None:
    """Show every task of the logs: trials, failures, best time and its decisions.

    A record that several files hold counts once.
    """
    from convtvm.logs import records
    from convtvm.logs.checking import stale

    lines = list(_distinct(_used(files)))
    tasks: dict[tuple[Any, ...], list[TuningRecord]] = {}
    for line in lines:
        assert line.record is not None
        record = line.record
        tasks.setdefault((*record.task_key, record.template), []).append(record)
    usable = [found for found in tasks.values() if not stale(found[0])]
    standings = records.standings(r for found in usable for r in found)
    entries = [_task_entry(found, standings.get(found[0].rivalry)) for found in tasks.values()]
    if as_json:
        print_json({"tasks": entries})
        return
    columns = ["workload", "algorithm", ">trials", ">failed", ">best ms", "best decisions"]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["target"], entry["threads"], entry["layout"]), []).append(entry)
    for (target, threads, layout), members in groups.items():
        title = f"{target}, threads {threads}, {layout}"
        print_table(title, columns, [_list_row(entry) for entry in members])
    click.echo(f"{plural(len(entries), 'task')}, {plural(len(lines), 'record')}")


def _task_entry(found: Sequence[TuningRecord], standing: Standing | None) -> dict[str, Any]:
    from convtvm.logs import records
    from convtvm.logs.checking import stale

    first, best = found[0], records.best(found, standing)
    if best is not None and standing is not None:
        best = standing.compared(best)
    return {
        "workload": first.workload,
        "algorithm": first.algorithm,
        "target": first.target,
        "threads": first.threads,
        "layout": first.layout,
        "devices": sorted({r.device for r in found}),
        "template": first.template,
        "stale": stale(first),
        "trials": sum(not r.confirmed for r in found),
        "failures": dict(Counter(_kind(r) for r in found if not r.run_secs)),
        "best_secs": best.seconds if best else None,
        "decisions": dict(best.decisions) if best else None,
    }


def _kind(record: TuningRecord) -> str:
    return str(record.error.get("kind", "unknown")) if isinstance(record.error, dict) else "unknown"


def _list_row(entry: dict[str, Any]) -> list[str]:
    decisions = " ".join(f"{k}={v}" for k, v in (entry["decisions"] or {}).items())
    return [
        _label(entry["workload"]),
        entry["algorithm"],
        text_of(entry["trials"]),
        text_of(sum(entry["failures"].values())),
        ms(entry["best_secs"]),
        f"({entry['stale']}) {decisions}" if entry["stale"] else decisions,
    ]


def _label(workload: str) -> str:
    try:
        return short(ConvWorkload.parse(workload))
    except WorkloadError:
        return workload


# ---- best ----------------------------------------------------------------------------------------


@log.command(epilog=examples("convtvm log best r18.jsonl -o best.jsonl"))
@_files
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    help="File to write.  [default: stdout]",
)
@click.option(
    "--within",
    type=click.FloatRange(min=1),
    metavar="RATIO",
    help="Leave out those that take more than RATIO times the fastest of their layer and layout.",
)
@json_option
@without_torch()
def best(files: Sequence[Path], out: Path | None, within: float | None, as_json: bool) -> None:
    """Print the record of every task that `compile` goes by as a tuning log, or write it to a
    file: the fastest of those that raced in an exported library, if any of the workload did.

    Records that today's templates cannot use are left out and named.
    """
    from convtvm.logs.checking import stale

    if out is not None:
        check_writable(out)
    usable: dict[tuple[Any, ...], list[Line]] = {}
    unusable: Counter[str] = Counter()
    for line in _used(files):
        record = line.record
        assert record is not None
        reason = stale(record)
        if reason:
            unusable[f"{record.algorithm}: {reason}"] += 1
        else:
            usable.setdefault(record.task_key, []).append(line)
    for reason, count in unusable.items():
        warn(f"{plural(count, 'record')} left out, {reason}")
    kept = _best(usable.values())
    if within is not None:
        kept = _within(kept, within)
    if not kept:
        raise LogError(f"{', '.join(map(str, files))}: no successful record that can be used")
    if out is not None:
        write_whole(out, _content(kept))
    if as_json:
        chosen = [asdict(line.record) for line in kept if line.record is not None]
        print_json({"out": str(out) if out else None, "records": chosen})
    elif out is None:
        click.echo(_content(kept), nl=False)
    else:
        click.echo(f"{out}: {plural(len(kept), 'record')}")


def _best(tasks: Iterable[Sequence[Line]]) -> list[Line]:
    """The line of every task's best record; none where all have failed."""
    from convtvm.logs import records

    groups = list(tasks)
    made = [[line.record for line in lines if line.record is not None] for lines in groups]
    standings = records.standings(record for found in made for record in found)
    best = [records.best(found, standings[found[0].rivalry]) for found in made]
    return [
        next(line for line in lines if line.record is record)
        for lines, record in zip(groups, best, strict=True)
        if record is not None
    ]


def _within(lines: Sequence[Line], ratio: float) -> list[Line]:
    """Those that take at most `ratio` times the fastest of the same workload and layout."""
    fastest: dict[Any, float] = {}
    for line in lines:
        assert line.record is not None
        rivals = line.record.rivalry
        fastest[rivals] = min(line.record.seconds, fastest.get(rivals, math.inf))
    return [x for x in lines if x.record and x.record.seconds <= ratio * fastest[x.record.rivalry]]


# ---- merge ---------------------------------------------------------------------------------------


@log.command(epilog=examples("convtvm log merge one.jsonl two.jsonl -o both.jsonl"))
@_files
@click.option(
    "-o",
    "--output",
    "out",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write, whole or not at all; it may be one of the inputs.",
)
@json_option
@without_torch()
def merge(files: Sequence[Path], out: Path, as_json: bool) -> None:
    """Write every distinct record of the logs to one file, in order.

    Records in the format of another version are kept as they are, damaged lines are dropped; both
    are named. Nothing else may append to OUT meanwhile.
    """
    check_writable(out)
    kept: list[Line] = []
    for line in read_lines(files):
        other = line.record is None and _is_other_format(line.text)
        if line.reason:
            warn(f"{line.path}:{line.number}: {line.reason}; line {'kept' if other else 'dropped'}")
        if line.record is not None or other:
            kept.append(line)
    if not kept:
        raise LogError(f"{', '.join(map(str, files))}: no record; {out} is not written")
    distinct = list(_distinct(kept))
    write_whole(out, _content(distinct))
    repeated = len(kept) - len(distinct)
    if as_json:
        print_json({"out": str(out), "records": len(distinct), "repeated": repeated})
    else:
        click.echo(f"{out}: {plural(len(distinct), 'record')}, {repeated} repeated left out")


def _is_other_format(text: str) -> bool:
    """Whether a line that is not used is an intact record of another version."""
    from convtvm.logs.records import FORMAT

    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(entry, dict) and type(entry.get("format")) is int and entry["format"] != FORMAT
    )


# ---- check ---------------------------------------------------------------------------------------


@log.command(epilog=examples("convtvm log check r18.jsonl"))
@_files
@json_option
@click.pass_context
@without_torch()
def check(ctx: click.Context, files: Sequence[Path], as_json: bool) -> None:
    """Name every line that cannot be used: torn, of another version, stale, or out of its space.

    Exit status 1 if there is any.
    """
    from convtvm.logs.checking import Checker

    checker = Checker()
    problems: list[dict[str, Any]] = []
    count = 0
    for line in read_lines(files):
        count += 1
        reason = line.reason if line.record is None else checker.reason(line.record)
        if reason:
            problems.append(line.problem(reason))
            if not as_json:
                click.echo(f"{line.path}:{line.number}: {reason}")
    if as_json:
        print_json({"lines": count, "problems": problems})
    else:
        click.echo(f"{plural(count, 'line')}, {plural(len(problems), 'problem')}")
    if problems:
        ctx.exit(_FOUND_PROBLEMS)


# ---- shared --------------------------------------------------------------------------------------


def _used(files: Sequence[Path]) -> Iterator[Line]:
    """The lines that are records; the others are named on stderr."""
    for line in read_lines(files):
        if line.record is None:
            warn(f"{line.path}:{line.number}: {line.reason}; line skipped")
        else:
            yield line


def _distinct(lines: Iterable[Line]) -> Iterator[Line]:
    """The first line of each content."""
    seen: set[str] = set()
    for line in lines:
        if line.text not in seen:
            seen.add(line.text)
            yield line


def _content(lines: Iterable[Line]) -> bytes:
    return "".join(f"{line.text}\n" for line in lines).encode("utf8")
