"""What commands print and write: refused before any work if it cannot be; narrow terminals."""

from __future__ import annotations

import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import log_of, record_of

from convtvm import files
from convtvm.cli import main
from convtvm.cli.output import print_table
from convtvm.kernels.task import Task
from convtvm.library.build import compile
from convtvm.machine.targets import resolve
from convtvm.problem.workload import ConvWorkload

W = ConvWorkload.parse("mb1ic4ih5oc4oh5kh3ph1")
LONG = "n" * 256
LONGEST = "n" * 249 + ".x.npz"  # 255 bytes, as many as a name can have


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where there is a file, a folder, links to nowhere and to themselves, a log, and a library."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere/x")
    (tmp_path / "circle").symlink_to("circle")
    log_of(tmp_path / "x.jsonl", record_of(Task(W, "direct", resolve("native", 1)), 1e-3))
    (tmp_path / "x.so").write_bytes(b"no library: nobody gets as far as reading it")
    return tmp_path


UNWRITABLE = {
    LONG: "File name too long",
    "nowhere/x": "no folder nowhere|No such file or directory",
    "file/x": "Not a directory",
    "folder": "plain file|is a directory|Is a directory",
    "dangling": "no folder .*nowhere|No such file",
    "circle": "Too many levels of symbolic links|File exists",
    "/proc/x": "cannot write in folder /proc|No such file|Permission denied",
    "/dev/full": "plain file|No space left",
    "folder/" + LONG: "File name too long",
    "/".join(["a" * 200] * 30): "File name too long",
}
COMMANDS: dict[str, list[str]] = {
    "compile": ["compile", str(W), "--threads", "1", "-o"],
    "run": ["run", "x.so", "--outputs"],
    "best": ["log", "best", "x.jsonl", "-o"],
    "merge": ["log", "merge", "x.jsonl", "-o"],
    "tune": ["tune", str(W), "--threads", "1", "--algorithms", "direct", "--log"],
    "events": ["tune", str(W), "--threads", "1", "--algorithms", "direct", "--events"],
}


@pytest.mark.parametrize(("path", "words"), UNWRITABLE.items(), ids=[p[:12] for p in UNWRITABLE])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_what_cannot_be_written_costs_no_work(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    path: str,
    words: str,
) -> None:
    if command[-1] == "--events" and path == "/dev/full":
        pytest.skip("told with the first event")

    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr("convtvm.measure.client.Zygote.__init__", work)
    monkeypatch.setattr("convtvm.dispatch.library.load", work)
    before = sorted(folder.rglob("*"))
    assert main([*command, path]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.search(words, err), err
    assert [p for p in sorted(folder.rglob("*")) if p not in before] in ([], [folder / "x.jsonl"])


@pytest.mark.parametrize("path", [LONG, "file/x", "file", "/proc/x", "circle"])
def test_deploy_to_where_it_cannot(
    folder: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    compile(W, threads=1, logs=[], algorithms=["direct"]).export("x.so")
    before = sorted(folder.rglob("*"))
    assert main(["deploy", "x.so", "-o", path]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "cannot write" in err
    assert sorted(folder.rglob("*")) == before


def test_the_longest_names(folder: Path) -> None:
    """255 bytes are a name, and 252 leave no room for a longer one beside it."""
    compile(W, threads=1, logs=[], algorithms=["direct"]).export("x.so")
    assert main(["run", "x.so", "--outputs", LONGEST]) == 0
    assert np.load(LONGEST)["out"].shape == W.out_shape()
    assert main(["log", "merge", "x.jsonl", "-o", "n" * 255]) == 0
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_objections(folder: Path) -> None:
    assert files.objection("new") == files.objection("file") == ""
    (folder / "link").symlink_to("folder/new")
    assert files.objection("link") == ""
    (folder / "file").chmod(0o444)
    if os.geteuid():
        assert files.objection("file") == "no permission to replace it"
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o444
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


def test_events_on_a_full_disk(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--threads", "1", "--algorithms", "direct", "--trials", "1", "--no-confirm"]
    status = main(
        ["tune", str(W), *options, "--log", "y.jsonl", "--events", "/dev/full", "--quiet"]
    )
    assert status == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot write events to /dev/full: No space left" in err


# ---- tables --------------------------------------------------------------------------------------

COLUMNS = ["workload", "algorithm", ">default ms", ">tuned ms", ">in library ms", ">failed"]
ROWS = [["conv1 of the net", "direct:pointwise", "1.234", "0.987", "1.002", "17"]]


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    print_table("title", COLUMNS, ROWS)
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


@pytest.mark.parametrize("columns", ["0", "1", "5", "20", "40", "60", "79", "", "many", "-3"])
@pytest.mark.parametrize("settings", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": ""}])
def test_no_column_vanishes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
    settings: dict[str, str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stdout for a terminal
    for name, value in {"COLUMNS": columns, **settings}.items():
        monkeypatch.setenv(name, value)
    text = printed(capsys)
    for column, cell in zip(COLUMNS, ROWS[0], strict=True):
        for whole in (column[1:], cell) if column.startswith(">") else (*column.split(),):
            assert whole in text, text
    squeezed = "".join(text.split())
    for letter in "direct:pointwise":
        assert letter in squeezed


def test_a_file_is_not_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    _, head, _, row, *_ = printed(capsys).splitlines()
    assert head.split()[-1] == "failed" and row.startswith("conv1 of the net   direct:pointwise")


def test_on_a_narrow_terminal(folder: Path) -> None:
    """A real one, of 20 columns."""
    ours, theirs = pty.openpty()
    env = dict(os.environ, COLUMNS="20", TERM="xterm")
    command = [sys.executable, "-m", "convtvm", "log", "list", "x.jsonl"]
    child = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=env)
    os.close(theirs)
    text = b""
    try:
        while more := os.read(ours, 4096):
            text += more
    except OSError:  # the other end was closed
        pass
    assert child.wait() == 0, child.communicate()
    for part in (b"trials", b"failed", b"best ms", b"decisions", b"tile_oc"):
        assert part in text, text
