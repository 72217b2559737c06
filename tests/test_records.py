"""The tuning log: what is written is read back, and what is damaged is named and left out."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, log_of, without_torch

from convtvm.errors import LogError
from convtvm.kernels.task import Task
from convtvm.logs import records
from convtvm.logs.records import FORMAT, LogWriter, TuningRecord
from convtvm.machine.targets import resolve
from convtvm.problem.workload import ConvWorkload

WORKLOAD = ConvWorkload.parse("mb1ic8ih6oc8oh6kh3ph1")


@cache
def task() -> Task:
    return Task(WORKLOAD, "direct", resolve("avx2", 1))


def record(secs: float | None = 1e-3, **changes: Any) -> TuningRecord:
    """A trial of the task's default decisions that took `secs`, or failed."""
    made = TuningRecord(
        workload=WORKLOAD.key,
        algorithm="direct",
        target=task().target.name,
        threads=1,
        layout="NCHW",
        device="a CPU",
        decisions=task().space.default,
        template=task().template_version,
        run_secs=[] if secs is None else [secs],
        error={"kind": "compile", "message": "no"} if secs is None else {},
        max_error=None if secs is None else 1e-7,
        workspace_bytes=4096,
        versions={"convtvm": "0.1.0", "tvm": "0.27.0"},
        time="2025-01-01T00:00:00+00:00",
    )
    return dataclasses.replace(made, **changes)


def line(without: str = "", **changes: Any) -> str:
    """The JSON line of a good record with changes, and without one of its fields."""
    entry = json.loads(record().to_line()) | changes
    entry.pop(without, None)
    return json.dumps(entry)


def written(path: Path, *lines: str | bytes, end: bytes = b"\n") -> Path:
    raw = [part.encode("utf8") if isinstance(part, str) else part for part in lines]
    path.write_bytes(b"\n".join(raw) + end)
    return path


def append(path: Path, *made: TuningRecord) -> None:
    writer = LogWriter(path)
    for one in made:
        writer.append(one)
    writer.close()


# ---- round trip ----------------------------------------------------------------------------------

ROUND_TRIP = {
    "fast": record(1e-7),
    "several samples": record(run_secs=[0.25, 1e-3, 3]),
    "failure": record(None),
    "failure with odd text": record(None, error={"kind": "crash", "message": 'a "b"\n\tc é 漢 \\'}),
    "no facts": record(max_error=None, workspace_bytes=None, versions={}, time=""),
    "no knobs": record(decisions={}),
    "odd device": record(device="CPU™ (2nd) \x7f \u2028"),
}


@pytest.mark.parametrize("made", ROUND_TRIP.values(), ids=ROUND_TRIP.keys())
def test_round_trip(tmp_path: Path, made: TuningRecord) -> None:
    log = tmp_path / "x.jsonl"
    append(log, made)
    text = log.read_bytes()
    assert text.count(b"\n") == 1 and text.endswith(b"\n")
    assert records.load([log]) == ([made], [])
    assert records.parse_line(made.to_line()) == made
    assert json.loads(text)["format"] == FORMAT


def test_no_infinity_in_a_log() -> None:
    with pytest.raises(ValueError):
        record(max_error=math.inf).to_line()


def test_seconds_is_the_median() -> None:
    assert record(run_secs=[5, 1, 3]).seconds == 3
    assert record(run_secs=[1, 3]).seconds == 2
    assert record(None).seconds == math.inf


def test_identity_is_task_and_decisions() -> None:
    one = record()
    assert one.identity == record(None, device="another", time="").identity
    assert record(decisions=dict(reversed(one.decisions.items()))).identity == one.identity
    others = [
        record(template=one.template + 1),
        record(threads=2),
        record(layout="NHWC"),
        record(decisions={**one.decisions, "tile_ow": 99}),
    ]
    assert len({one.identity, *(other.identity for other in others)}) == 5


def test_fields_of_later_versions_are_ignored() -> None:
    assert records.parse_line(line(mood="good")) == record()


def test_now_has_a_time_zone() -> None:
    assert records.now().endswith("+00:00")


# ---- damage --------------------------------------------------------------------------------------

GOOD = line()
DAMAGE: dict[str, tuple[str | bytes, str]] = {
    "torn": (GOOD[: len(GOOD) // 2], "torn or damaged"),
    "torn to one byte": ("{", "torn or damaged"),
    "no JSON": ("hello", "torn or damaged"),
    "two in one line": (GOOD + GOOD, "torn or damaged"),
    "binary": (b"\x00\xff\xfe\x80garbage", "not text (binary garbage)"),
    "zeros": (b"\0" * 64, "torn or damaged"),
    "deep": ("[" * 100_000, "torn or damaged"),
    "list": ("[1, 2]", "expected a JSON object"),
    "number": ("17", "expected a JSON object"),
    "null": ("null", "expected a JSON object"),
    "text": ('"text"', "expected a JSON object"),
    "newer format": (line(format=FORMAT + 1), f"format {FORMAT + 1}, this version reads {FORMAT}"),
    "newer format of another kind": ('{"format": "x2"}', "format 'x2', this version reads"),
    "no format": (line(without="format"), "format None, this version reads"),
    "empty object": ("{}", "format None"),
    "field missing": (line(without="decisions"), "missing 1 required positional argument"),
    "workload no text": (line(workload=3), "workload is not text"),
    "target no text": (line(target=None), "target is not text"),
    "layout no text": (line(layout=["NCHW"]), "layout is not text"),
    "time no text": (line(time=5), "time is not text"),
    "device no text": (line(device={}), "device is not text"),
    "threads text": (line(threads="1"), "threads is not an integer"),
    "threads real": (line(threads=1.0), "threads is not an integer"),
    "threads truth": (line(threads=True), "threads is not an integer"),
    "template null": (line(template=None), "template is not an integer"),
    "decisions list": (line(decisions=[1]), "decisions do not map names to integers"),
    "decisions text": (line(decisions={"tile_ow": "4"}), "decisions do not map"),
    "decisions real": (line(decisions={"tile_ow": 4.0}), "decisions do not map"),
    "decisions truth": (line(decisions={"tile_ow": True}), "decisions do not map"),
    "run_secs number": (line(run_secs=1e-3), "run_secs is not a list of positive seconds"),
    "run_secs text": (line(run_secs=["1"]), "run_secs is not a list"),
    "run_secs zero": (line(run_secs=[0.0]), "run_secs is not a list of positive"),
    "run_secs negative": (line(run_secs=[1e-3, -1e-3]), "run_secs is not a list of positive"),
    "run_secs NaN": (line(run_secs=[math.nan]), "run_secs is not a list of positive"),
    "run_secs infinite": (line(run_secs=[math.inf]), "run_secs is not a list of positive"),
    "neither time nor error": (line(run_secs=[]), "expected either run_secs or error"),
    "both": (line(error={"kind": "crash", "message": ""}), "expected either run_secs or error"),
    "error text": (line(run_secs=[], error="it broke"), "error is not an object"),
    "versions list": (line(versions=[]), "versions is not an object"),
    "max_error text": (line(max_error="small"), "max_error is not a positive number"),
    "max_error negative": (line(max_error=-1e-9), "max_error is not a positive number"),
    "max_error NaN": (line(max_error=math.nan), "max_error is not a positive number"),
    "workspace text": (line(workspace_bytes="1 kB"), "workspace_bytes is not a count"),
    "workspace endless": (line(workspace_bytes=10**400), "workspace_bytes is not a count"),
    "threads endless": (line(threads=10**400), "threads is not an integer"),
    "decisions endless": (line(decisions={"tile_ow": 10**400}), "decisions do not map"),
    "workspace negative": (line(workspace_bytes=-1), "workspace_bytes is not a count"),
}


@pytest.mark.parametrize(("bad", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_line_is_named_and_the_others_are_used(
    tmp_path: Path, bad: str | bytes, reason: str
) -> None:
    first, last = record(1.0), record(2.0)
    log = written(tmp_path / "x.jsonl", first.to_line(), bad, last.to_line())
    found, (problem,) = records.load([log])
    assert found == [first, last]
    assert str(problem).startswith(f"{log}:2: ") and str(problem).endswith("; line skipped")
    assert reason in problem.reason and "\n" not in str(problem)


@pytest.mark.parametrize("separator", ["\n", "\n\n", "\r\n", "\n  \t\n"])
def test_empty_lines_and_carriage_returns(tmp_path: Path, separator: str) -> None:
    log = tmp_path / "x.jsonl"
    log.write_bytes(separator.join([GOOD, GOOD, ""]).encode())
    assert records.load([log]) == ([record()] * 2, [])


@pytest.mark.parametrize("kept", [0, 1, 40, len(GOOD) - 1, len(GOOD)])
def test_appending_after_a_torn_line(tmp_path: Path, kept: int) -> None:
    """Whatever part of its last line a killed writer left, the next record is on its own line."""
    log = written(tmp_path / "x.jsonl", GOOD, GOOD[:kept], end=b"")
    append(log, record(2.0), record(3.0))
    found, problems = records.load([log])
    whole = kept == len(GOOD)
    assert found == [record()] * (1 + whole) + [record(2.0), record(3.0)]
    assert [p.line for p in problems] == ([] if kept == 0 or whole else [2])


def test_nothing_is_ever_rewritten(tmp_path: Path) -> None:
    log = written(tmp_path / "x.jsonl", b"\xff\x00", "{", GOOD[:30], end=b"")
    before = log.read_bytes()
    append(log, record(2.0))
    assert log.read_bytes().startswith(before)


# ---- files ---------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"cannot read log .*no\.jsonl: No such file"):
        records.load([written(tmp_path / "x.jsonl", GOOD), tmp_path / "no.jsonl"])


@pytest.mark.parametrize("path", [".", "folder/x.jsonl", "file/x.jsonl"])
def test_unwritable_path(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogError, match="cannot write log"):
        LogWriter(tmp_path / path)
    with pytest.raises(LogError, match="cannot read log"):
        records.load([tmp_path / path])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk() -> None:
    """Before any work, not after the first trial."""
    with pytest.raises(LogError, match="No space left"):
        LogWriter("/dev/full")


def renamed(log: Path) -> None:
    log.rename(log.with_name("old.jsonl"))


def replaced(log: Path) -> None:
    """As an editor saves it, with one record less."""
    lines = log.read_bytes().splitlines(keepends=True)
    log.with_name("new").write_bytes(b"".join(lines[:-1]))
    log.with_name("new").replace(log)


def rewritten(log: Path) -> None:
    """In place, by something as long."""
    log.write_bytes(b"x" * log.stat().st_size + b"\n")


LOSSES: list[Callable[[Path], object]] = [
    Path.unlink,
    renamed,
    replaced,
    rewritten,
    lambda log: os.truncate(log, 0),
    lambda log: os.truncate(log, log.stat().st_size - 20),
    lambda log: shutil.copyfile(os.devnull, log),
]


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("more", [0, 1, 3])
def test_what_a_log_loses_meanwhile_is_written_again(
    tmp_path: Path, lose: Callable[[Path], object], more: int
) -> None:
    """With another record or at the end; nothing twice that is still there."""
    log = written(tmp_path / "x.jsonl", GOOD)
    writer, made = LogWriter(log), [record(time=str(i)) for i in range(4 + more)]
    for one in made[:4]:
        writer.append(one)
    lose(log)
    for one in made[4:]:
        writer.append(one)
    writer.close()
    found, _ = records.load([log])
    assert sorted(r.time for r in found if r in made) == [str(i) for i in range(4 + more)]
    assert 1 <= writer.restored <= 4


def test_what_others_append_is_no_loss(tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    first, second = LogWriter(log), LogWriter(log)
    for i in range(6):
        (first, second)[i % 2].append(record(time=str(i)))
    first.close()
    second.close()
    found, problems = records.load([log])
    assert [r.time for r in found] == list("012345") and not problems
    assert first.restored == second.restored == 0


def test_a_log_that_cannot_be_restored_is_rescued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "folder").mkdir()
    writer, made = LogWriter(tmp_path / "folder" / "x.jsonl"), [record(time=str(i)) for i in "12"]
    writer.append(made[0])
    shutil.rmtree(tmp_path / "folder")
    with pytest.raises(LogError, match=r"No such file.*; 2 records of this run are in .*\.jsonl"):
        writer.append(made[1])
    (rescued,) = tmp_path.glob("*.jsonl")
    assert records.load([rescued]) == (made, [])


def test_new_file_is_created_in_place(tmp_path: Path) -> None:
    LogWriter(tmp_path / "x.jsonl").close()
    assert records.load([tmp_path / "x.jsonl"]) == ([], [])


WRITER = """
import dataclasses, sys
from convtvm.logs.records import LogWriter, parse_line
path, name = sys.argv[1:]
record = parse_line(sys.stdin.readline())
writer = LogWriter(path)
print("ready", flush=True)
sys.stdin.readline()
for i in range(500):
    writer.append(dataclasses.replace(record, device=name * 300, time=str(i)))
"""


def test_two_processes_at_once(tmp_path: Path) -> None:
    log = written(tmp_path / "x.jsonl", GOOD[:50], end=b"")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(log), name],
            env=without_torch(ROOT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    for text, answer in ((GOOD, "ready\n"), ("go", "")):
        for writer in writers:
            assert writer.stdin
            writer.stdin.write(text + "\n")
            writer.stdin.flush()
        for writer in writers:
            assert writer.stdout and writer.stdout.readline() == answer
    assert [writer.wait() for writer in writers] == [0, 0]
    found, problems = records.load([log])
    assert [p.line for p in problems] == [1]
    for name in "ab":
        times = [r.time for r in found if r.device == name * 300]
        assert times == [str(i) for i in range(500)]
    assert len(found) == 1000


MARK = codecs.BOM_UTF8
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "mark": lambda text: MARK + text,
    "mark before a space": lambda text: MARK + b" \n" + text,
    "marks in the middle": lambda text: MARK + text.replace(b"\n", b"\n" + MARK),
    "windows": lambda text: MARK + text.replace(b"\n", b"\r\n"),
    "utf-16": lambda text: text.decode().encode("utf-16"),
    "utf-16 big": lambda text: codecs.BOM_UTF16_BE + text.decode().encode("utf-16-be"),
    "utf-16 windows": lambda text: text.decode().replace("\n", "\r\n").encode("utf-16"),
    "utf-32": lambda text: text.decode().encode("utf-32"),
    "empty lines": lambda text: b"\n\n \t\r\n" + text.replace(b"\n", b"\n\n") + b"\n \n",
    "no last line end": lambda text: text.rstrip(),
    "gzip": lambda text: gzip.compress(text),
    "two gzips": lambda text: gzip.compress(text[:900]) + gzip.compress(text[900:]),
    "gzip of utf-16": lambda text: gzip.compress(text.decode().encode("utf-16")),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_forms_of_text(tmp_path: Path, form: Callable[[bytes], bytes]) -> None:
    """As editors, shells and archives leave a log: no record is lost."""
    made = [record(1.0), record(2.0, device="ünïcode ☃"), record(3.0)]
    log = tmp_path / "x.jsonl"
    text = "".join(r.to_line() + "\n" for r in made).encode()
    log.write_bytes(form(text))
    assert records.load([log]) == (made, [])
    damaged = form(text + b"{torn\n")
    log.write_bytes(damaged)
    found, problems = records.load([log])
    assert found == made and len(problems) == 1 and "torn or damaged" in str(problems[0])


@pytest.mark.parametrize("form", ["utf-16", "utf-32", "gzip"])
def test_nothing_is_appended_to_what_is_no_utf8(tmp_path: Path, form: str) -> None:
    log = tmp_path / "x.jsonl"
    log.write_bytes(FORMS[form](record().to_line().encode() + b"\n"))
    before = log.read_bytes()
    with pytest.raises(LogError, match=r"cannot append to log .* it is .*; write a plain one by"):
        LogWriter(log)
    assert log.read_bytes() == before


@pytest.mark.parametrize("form", ["mark", "windows", "empty lines", "no last line end"])
def test_what_is_utf8_goes_on(tmp_path: Path, form: str) -> None:
    log = tmp_path / "x.jsonl"
    log.write_bytes(FORMS[form](record(1.0).to_line().encode() + b"\n"))
    log_of(log, record(2.0))
    assert records.load([log]) == ([record(1.0), record(2.0)], [])


def test_what_is_no_log_at_all(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(record().to_line().encode())[:-20])
    for path, words in (
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
        (tmp_path / "cut.gz", "its compressed data is damaged"),
        (tmp_path / "a\0b", "null byte"),
        (Path("/dev/zero"), "it is a device, expected a file"),
    ):
        with pytest.raises(LogError, match=f"cannot read log .*{words}") as error:
            records.load([path])
        assert "\n" not in str(error.value)
    assert records.load([os.devnull]) == ([], [])


# ---- choice --------------------------------------------------------------------------------------


def test_best_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    fastest = record(run_secs=[1e-6, 2e-6, 9.0])
    parts = [
        [record(3e-6), record(None), record(run_secs=[1e-9, 1.0, 1.0])],
        [fastest, record(4e-6)],
        [record(None)],
    ]
    logs = [written(tmp_path / f"{i}", *(r.to_line() for r in p)) for i, p in enumerate(parts)]
    for order in itertools.permutations(logs):
        assert records.best(records.load(order)[0]) == fastest
        merged = tmp_path / "merged.jsonl"
        merged.write_bytes(b"".join(path.read_bytes() for path in order))
        assert records.best(records.load([merged])[0]) == fastest


def test_best_of_nothing() -> None:
    assert records.best([]) is None
    assert records.best([record(None), record(None)]) is None


def foreign(**changes: Any) -> TuningRecord:
    return record(1e-9, **changes)


FOREIGN = {
    "workload": foreign(workload=ConvWorkload.parse("mb1ic8ih7oc8oh7kh3ph1").key),
    "algorithm": foreign(algorithm="winograd:2"),
    "target": foreign(target=resolve("avx512", 1).name),
    "threads": foreign(threads=2),
    "layout": foreign(layout="NHWC"),
    "older template": foreign(template=task().template_version - 1),
    "newer template": foreign(template=task().template_version + 1),
    "unknown knob": foreign(decisions={**task().space.default, "tile_zz": 1}),
    "knob missing": foreign(decisions=dict(list(task().space.default.items())[1:])),
    "value outside": foreign(decisions={**task().space.default, "tile_ow": 10_000}),
    "combination outside": foreign(
        decisions={name: max(values) for name, values in task().space.knobs.items()}
    ),
}


SPOILT = [
    "RuntimeError: /dev/shm/convtvm-x/3.so: failed to map segment from shared object",
    "BuildError: ld failed: ld: final link failed: No space left on device",
    "killed by SIGABRT: LLVM ERROR: IO failure on output stream: No space left on device",
    "OSError: [Errno 122] Disk quota exceeded: 'x.o'",
    "OSError: [Errno 24] Too many open files",
    "BlockingIOError: [Errno 11] Resource temporarily unavailable",
    "the build helper died",
    "killed by SIGKILL",
]
TRUE = [
    "killed by SIGSEGV",
    "MemoryError: no message",
    "no library after 30 s",
    "3 sessions with devices were lost: killed by SIGKILL",
    "relative error 1.0e+00, at most 1e-05 is accepted",
]


def test_usable_leaves_out_failures_of_the_environment() -> None:
    """A log that older versions wrote in a container does not count them."""
    made = [
        record(None, error={"kind": "crash", "message": text}, time=text)
        for text in [*SPOILT, *TRUE]
    ]
    assert [r.time for r in records.usable(made, task())] == TRUE


@pytest.mark.parametrize("made", FOREIGN.values(), ids=FOREIGN.keys())
def test_usable_leaves_out_what_is_foreign(made: TuningRecord) -> None:
    own = [record(1.0), record(None), record(2.0, device="another CPU", versions={})]
    assert records.usable([made, *own, made], task()) == own


# ---- anything ------------------------------------------------------------------------------------


def mutilated(text: bytes, draw: random.Random) -> bytes:
    """`text` with a few bytes changed, left out or doubled."""
    raw = bytearray(text)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(raw))
        kind = draw.randrange(3)
        if kind == 0:
            raw[at] = draw.randrange(256)
        elif kind == 1:
            del raw[at : at + draw.randint(1, 20)]
        else:
            raw[at:at] = raw[at : at + 10]
    return bytes(raw)


def test_no_damage_breaks_the_reader(tmp_path: Path) -> None:
    draw = random.Random(1)
    log = tmp_path / "x.jsonl"
    good = "\n".join(r.to_line() for r in ROUND_TRIP.values()).encode() + b"\n"
    for _ in range(300):
        log.write_bytes(mutilated(good, draw))
        found, problems = records.load([log])
        assert len(found) + len(problems) >= len(ROUND_TRIP) - 4
        assert all(isinstance(r.decisions, Mapping) for r in found)
        records.usable(found, task())
        records.best(found)


def test_confirmed_times_count_instead() -> None:
    """The fastest in an exported library wins, whatever is promised by a trial."""
    slow = record(3e-6, decisions={"tile": 1})
    fast = record(1e-6, decisions={"tile": 2})
    fast_again = replace(fast, run_secs=[5e-6], confirmed=True)
    slow_again = replace(slow, run_secs=[4e-6], confirmed=True)
    middle = record(2e-6, decisions={"tile": 3})
    found = [slow, fast, fast_again, slow_again]
    for order in itertools.permutations(found):
        assert records.best(order) == slow_again
        assert {r.confirmed for r in records.judged(order)} == {True}
    assert records.best([*found, middle]) == slow_again
    assert records.best([*found, record(1e-9, decisions={"tile": 4})]) == slow_again
    assert records.best([fast, middle, fast_again]) == fast_again
    failed = replace(fast, run_secs=[], error={"kind": "crash", "message": ""}, confirmed=True)
    assert records.best([fast, middle, failed]) == middle
    assert records.best([fast_again]) == fast_again


def test_standing() -> None:
    """Races took 1.5, 2 and 4 times as long as trials: whoever did not race is expected to take
    twice as long, and never to be as fast as the winner."""
    tried = [record(ms * 1e-3, decisions={"tile": i}) for i, ms in enumerate((2.0, 3.0, 1.0))]
    raced = [
        replace(r, run_secs=[r.seconds * factor], confirmed=True)
        for r, factor in zip(tried, (1.5, 2.0, 4.0), strict=True)
    ]
    for order in (tried + raced, raced + tried):
        standing = records.Standing.of(order)
        assert standing == records.Standing(pytest.approx(3e-3), pytest.approx(2.0))
    slow, fast = record(4e-3, decisions={"tile": 8}), record(1e-3, decisions={"tile": 9})
    assert standing.seconds(slow) == pytest.approx(8e-3)
    assert standing.seconds(fast) > 3e-3 and standing.seconds(fast) == pytest.approx(3e-3)
    assert standing.seconds(raced[2]) == pytest.approx(4e-3)
    assert standing.compared(raced[2]) is raced[2]
    assert standing.compared(slow) == replace(slow, run_secs=[standing.seconds(slow)])
    assert math.isinf(standing.seconds(record(None)))


def test_standing_without_races() -> None:
    tried = [record(2e-3), record(None, decisions={"tile": 1})]
    crashed = record(None, confirmed=True)
    for made in ([], tried, [*tried, crashed]):
        standing = records.Standing.of(made)
        assert standing == records.Standing() and standing.seconds(tried[0]) == 2e-3
    # A race whose trial is not in the log, as in those that `log best` writes.
    only = records.Standing.of([record(3e-3, decisions={"tile": 2}, confirmed=True), tried[0]])
    assert only == records.Standing(3e-3, 1.0) and only.seconds(tried[0]) > 3e-3


def test_best_of_a_task_by_the_standing_of_its_workload() -> None:
    """Its own race was poor; its other candidate is expected to take 2 ms, after 3 ms by another
    algorithm, and does not win for all that."""
    poor = record(3e-3, decisions={"tile": 1}, confirmed=True)
    hope = record(1e-3, decisions={"tile": 2})
    standing = records.Standing(1.5e-3, 2.0)
    assert records.best([poor, hope]) == poor
    assert records.best([poor, hope], standing) == hope
    assert records.best([poor, hope], records.Standing(1.5e-3, 4.0)) == poor
    keys = [r.rivalry for r in (poor, replace(hope, algorithm="im2col"), replace(hope, threads=2))]
    assert keys[0] == keys[1] != keys[2]
    assert set(records.standings([poor, replace(hope, threads=2)])) == {keys[0], keys[2]}
