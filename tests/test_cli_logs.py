"""`convtvm log` on hand-written records: torn lines, garbage, other versions, and merging."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from convtvm.cli import main
from convtvm.kernels.algorithms import ALGORITHMS
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.problem.workload import ConvWorkload

WORKLOAD = ConvWorkload.parse("mb1ic8ih6oc8oh6kh3ph1")
TODAY = int(ALGORITHMS["direct"].template.VERSION)
OTHER_FORMAT = '{"format":99,"what":"a later version wrote this"}'
TORN = '{"workload":"g1mb1ic8'


@cache
def task() -> Task:
    return Task(WORKLOAD, "direct", resolve("avx2", 1))


def line(ms: float | None = 1.0, **changes: Any) -> str:
    """A record of the task that took `ms`, or failed."""
    entry: dict[str, Any] = {
        "workload": WORKLOAD.key,
        "algorithm": "direct",
        "target": task().target.name,
        "threads": 1,
        "layout": "NCHW",
        "device": "a CPU",
        "decisions": task().space.default,
        "template": TODAY,
        "run_secs": [] if ms is None else [ms / 1e3],
        "error": {"kind": "build", "message": "no"} if ms is None else {},
        "max_error": None if ms is None else 1e-7,
        "format": 1,
    }
    return json.dumps({**entry, **changes})


class Shell:
    """Runs `convtvm log ...` in an empty folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def write(self, name: str, *lines: str, end: str = "\n") -> None:
        (self.folder / name).write_text("\n".join(lines) + end, encoding="utf8")

    def lines(self, name: str) -> list[str]:
        return (self.folder / name).read_text(encoding="utf8").splitlines()

    def __call__(self, *args: str) -> tuple[int, str, str]:
        return main(["log", *args]), *self.capsys.readouterr()


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)


@pytest.mark.parametrize("command", ["list", "best", "check", "merge"])
def test_unreadable_log_is_refused(shell: Shell, command: str) -> None:
    options = ["-o", "out.jsonl"] if command == "merge" else []
    status, out, err = shell(command, "no.jsonl", *options)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert "cannot read log no.jsonl: No such file" in err
    assert not (shell.folder / "out.jsonl").exists()


def test_list(shell: Shell) -> None:
    slow, fast, failed = line(2.0), line(1.5, threads=2), line(None)
    shell.write("a.jsonl", slow, failed, TORN, end="")
    shell.write("b.jsonl", slow, fast, line(0.5, template=TODAY - 1))
    status, out, err = shell("list", "a.jsonl", "b.jsonl")
    assert status == 0 and "3 tasks, 4 records" in out
    assert "threads 1" in out and "threads 2" in out and "stale" in out
    assert err.count("\n") == 1 and "a.jsonl:3: not a complete JSON line" in err
    status, out, _ = shell("list", "a.jsonl", "b.jsonl", "--json")
    first, second, third = json.loads(out)["tasks"]
    assert (first["trials"], first["failures"], first["best_secs"]) == (2, {"build": 1}, 0.002)
    assert second["threads"] == 2 and second["decisions"] == task().space.default
    assert third["stale"].startswith("stale: template version") and not first["stale"]


def test_best(shell: Shell) -> None:
    fast, other = line(1.0), line(3.0, layout="NHWC")
    unknown = line(0.1, algorithm="fft")
    shell.write("a.jsonl", line(2.0), fast, line(None), line(0.2, template=TODAY + 1), unknown)
    shell.write("b.jsonl", other)
    status, out, err = shell("best", "a.jsonl", "b.jsonl")
    assert status == 0 and out.splitlines() == [fast, other]
    assert "unknown algorithm 'fft'" in err and "stale" in err
    status, out, _ = shell("best", "a.jsonl", "b.jsonl", "-o", "best.jsonl")
    assert status == 0 and shell.lines("best.jsonl") == [fast, other] and "2 records" in out
    status, out, _ = shell("best", "a.jsonl", "--json")
    (record,) = json.loads(out)["records"]
    assert record["run_secs"] == [0.001] and record["workload"] == WORKLOAD.key


def test_best_within_a_ratio(shell: Shell) -> None:
    """Of one layer and layout those that take no more; other layouts have winners of their own."""
    others = [Task(WORKLOAD, name, task().target) for name in ("im2col", "winograd:2")]
    near, far = (
        line(ms, algorithm=t.algorithm_name, template=t.template_version, decisions=t.space.default)
        for t, ms in zip(others, (1.5, 1.6), strict=True)
    )
    fast, wide = line(1.0), line(9.0, layout="NHWC")
    shell.write("a.jsonl", far, fast, near, wide)
    assert shell("best", "a.jsonl", "--within", "1.5")[1].splitlines() == [fast, near, wide]
    assert shell("best", "a.jsonl", "--within", "1")[1].splitlines() == [fast, wide]
    status, _, err = shell("best", "a.jsonl", "--within", "0.9")
    assert status == 2 and "0.9 is not in the range x>=1" in err


def test_best_goes_by_the_exported_library(shell: Shell) -> None:
    """As `compile` does: there a candidate may take longer than another did while tuning."""
    points = task().space.points
    lucky, steady = (line(ms, decisions=points[i]) for i, ms in enumerate((1.0, 1.1)))
    again = [line(ms, decisions=points[i], confirmed=True) for i, ms in enumerate((1.5, 1.2))]
    shell.write("a.jsonl", lucky, steady, *again)
    status, out, _ = shell("best", "a.jsonl")
    assert (status, out.splitlines()) == (0, [again[1]])


def test_best_is_not_crowned_without_a_race(shell: Shell) -> None:
    """The best of a task is by what races did to others of its workload, so its own poor race may
    lose to a trial; and `list` shows times that compare."""
    points = task().space.points
    im2col = {"algorithm": "im2col", "template": ALGORITHMS["im2col"].template.VERSION}
    other = [line(2.0, **im2col), line(2.2, **im2col, confirmed=True)]
    raced = [line(5.0, decisions=points[0]), line(6.0, decisions=points[0], confirmed=True)]
    hope = line(2.5, decisions=points[1])
    shell.write("a.jsonl", *other, *raced, hope)
    status, out, _ = shell("best", "a.jsonl")
    assert (status, out.splitlines()) == (0, [other[1], hope])
    status, out, _ = shell("list", "a.jsonl", "--json")
    shown = {t["algorithm"]: t["best_secs"] for t in json.loads(out)["tasks"]}
    assert shown == {"im2col": 2.2e-3, "direct": pytest.approx(2.5e-3 * 1.15)}


def test_best_of_nothing_is_refused(shell: Shell) -> None:
    shell.write("a.jsonl", line(None), TORN)
    status, out, err = shell("best", "a.jsonl", "-o", "best.jsonl")
    assert (status, out) == (2, "") and "no successful record" in err
    assert not (shell.folder / "best.jsonl").exists()


def test_every_command_reads_every_form_of_text(shell: Shell) -> None:
    """`merge` makes a plain log of them."""
    first, second = line(1.0), line(2.0)
    text = f"{first}\r\n\r\n{second}\r\n"
    for encoding in ("utf-8-sig", "utf-16"):
        (shell.folder / "a.jsonl").write_bytes(text.encode(encoding))
        for command in ("list", "check"):
            status, out, err = shell(command, "a.jsonl")
            assert (status, err) == (0, ""), out
        assert shell("best", "a.jsonl")[:2] == (0, first + "\n")
        assert shell("merge", "a.jsonl", "-o", "plain.jsonl")[0] == 0
        assert shell.lines("plain.jsonl") == [first, second]


def test_merge_keeps_every_distinct_record(shell: Shell) -> None:
    records = [line(float(i)) for i in range(1, 5)]
    shell.write("a.jsonl", records[0], records[1], TORN, end="")
    shell.write("b.jsonl", records[1], "", OTHER_FORMAT, records[2])
    (shell.folder / "c.jsonl").write_bytes(b"\xff\xfe\x00\n" + records[3].encode())
    status, out, err = shell("merge", "a.jsonl", "b.jsonl", "c.jsonl", "-o", "all.jsonl")
    assert status == 0 and "5 records, 1 repeated" in out
    assert shell.lines("all.jsonl") == [*records[:2], OTHER_FORMAT, *records[2:]]
    assert "a.jsonl:3: not a complete JSON line (torn or damaged); line dropped" in err
    assert "b.jsonl:3: format 99, this version reads 1; line kept" in err
    assert "c.jsonl:1: not text (binary garbage); line dropped" in err
    assert sorted(p.name for p in shell.folder.iterdir()) == [
        "a.jsonl",
        "all.jsonl",
        "b.jsonl",
        "c.jsonl",
    ]


def test_merge_into_an_input(shell: Shell) -> None:
    shell.write("a.jsonl", line(1.0))
    shell.write("b.jsonl", line(2.0))
    (shell.folder / "a.jsonl").chmod(0o640)
    (shell.folder / "link.jsonl").symlink_to("a.jsonl")
    status, out, _ = shell("merge", "link.jsonl", "b.jsonl", "-o", "link.jsonl", "--json")
    assert (status, json.loads(out)) == (0, {"out": "link.jsonl", "records": 2, "repeated": 0})
    assert shell.lines("a.jsonl") == [line(1.0), line(2.0)]
    assert (shell.folder / "link.jsonl").is_symlink()
    assert (shell.folder / "a.jsonl").stat().st_mode & 0o777 == 0o640


def test_merge_of_garbage_leaves_the_output_alone(shell: Shell) -> None:
    shell.write("a.jsonl", "garbage")
    status, _, err = shell("merge", "a.jsonl", "-o", "a.jsonl")
    assert status == 2 and "no record" in err and shell.lines("a.jsonl") == ["garbage"]


@pytest.mark.parametrize("command", ["best", "merge"])
@pytest.mark.parametrize(
    ("out", "part"), [("nowhere/x.jsonl", "no folder nowhere"), ("/dev/null", "plain file")]
)
def test_unwritable_output_is_refused(shell: Shell, command: str, out: str, part: str) -> None:
    shell.write("a.jsonl", line())
    status, stdout, err = shell(command, "a.jsonl", "-o", out)
    assert (status, stdout) == (2, "") and err.count("\n") == 1 and part in err


def test_check_of_a_clean_log(shell: Shell) -> None:
    shell.write("a.jsonl", line(), line(None), "", line(2.0))
    assert shell("check", "a.jsonl") == (0, "3 lines, 0 problems\n", "")
    status, out, _ = shell("check", "a.jsonl", "--json")
    assert (status, json.loads(out)) == (0, {"lines": 3, "problems": []})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (TORN, "not a complete JSON line (torn or damaged)"),
        ("[1]", "not a tuning record"),
        (OTHER_FORMAT, "format 99, this version reads 1"),
        (line(run_secs=[-1.0]), "run_secs is not a list of positive seconds"),
        (line(template=TODAY + 1), f"stale: template version {TODAY + 1}, today's is {TODAY}"),
        (line(algorithm="fft"), "unknown algorithm 'fft'"),
        (line(decisions={"tile_oc": 1}), "decisions {'tile_oc': 1} are not in the template's"),
        (line(workload="mb1ic8ihx"), "token 'ih'"),
        (line(workload="mb1ic8ih6oc8kh3ph1"), "not written as its key"),
        (line(target="toaster"), "unknown target"),
        (line(target="avx2"), "not written as its name"),
        (line(layout="CHWN"), "unknown layout 'CHWN'"),
        (line(max_error=0.5), "max_error 5.0e-01 is above direct's limit"),
        (line(max_error=float("nan")), "max_error is not a positive number"),
    ],
)
def test_check_names_the_line(shell: Shell, bad: str, reason: str) -> None:
    shell.write("a.jsonl", line(), bad, line())
    status, out, err = shell("check", "a.jsonl")
    problem, total = out.splitlines()
    assert (status, err, total) == (1, "", "3 lines, 1 problem")
    assert problem.startswith("a.jsonl:2: ") and reason in problem
    status, out, _ = shell("check", "a.jsonl", "--json")
    (entry,) = json.loads(out)["problems"]
    assert status == 1 and (entry["path"], entry["line"]) == ("a.jsonl", 2)
    assert reason in entry["reason"]


def test_check_finds_an_inapplicable_algorithm(shell: Shell) -> None:
    template = int(ALGORITHMS["winograd:2"].template.VERSION)
    key = ConvWorkload.parse("mb1ic8ih6oc8kh1").key
    shell.write("a.jsonl", line(algorithm="winograd:2", template=template, workload=key))
    status, out, _ = shell("check", "a.jsonl")
    assert status == 1 and "winograd:2 cannot compute this workload: kernel is 1x1" in out


def test_text_that_the_terminal_lacks_is_escaped(shell: Shell) -> None:
    shell.write("a.jsonl", line(algorithm="\ud800"))
    status, out, _ = shell("check", "a.jsonl")
    assert status == 1 and "unknown algorithm" in out
