"""Completion in bash, zsh and fish: what docs/command-line.md says to put into their files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from documents import ROOT, blocks_of

from convtvm.cli import main

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
DOCUMENTED = {
    block.text
    for block in blocks_of("", (ROOT / "docs" / "command-line.md").read_text("utf8"))
    if "_CONVTVM_COMPLETE" in block.text
}


@pytest.fixture
def convtvm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What the command prints to a shell that asks by environment variables."""

    def ask(instruction: str, **more: str) -> str:
        for name, value in {"_CONVTVM_COMPLETE": instruction, **more}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            main([])
        out, err = capsys.readouterr()
        assert not end.value.code and not err
        return out

    return ask


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(shell: str, convtvm: Callable[..., str], tmp_path: Path) -> None:
    if shell == "bash" and not shutil.which("bash"):
        pytest.skip("there is no bash")
    assert any(f"_CONVTVM_COMPLETE={shell}_source convtvm" in text for text in DOCUMENTED)
    script = convtvm(f"{shell}_source")
    assert f"_CONVTVM_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script, "utf8")
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


WORDS = [
    ("convtvm co", "compile"),
    ("convtvm log me", "merge"),
    ("convtvm tune --time", "--time-limit"),
    ("convtvm tune res", "resnet18"),
    ("convtvm compile x --keep p", "pareto"),
    ("convtvm bench mob", "mobilenet_v2"),
]


@pytest.mark.parametrize(("line", "expected"), WORDS)
def test_words(line: str, expected: str, convtvm: Callable[..., str]) -> None:
    words = line.split()
    place = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    assert f"plain,{expected}" in convtvm("bash_complete", **place).split()
    assert expected in convtvm("zsh_complete", **place).split("\n")
    place["COMP_CWORD"] = words[-1]
    assert any(
        row.startswith(f"plain,{expected}") for row in convtvm("fish_complete", **place).split("\n")
    )


@pytest.mark.parametrize(
    "line", ["convtvm tune mod", "convtvm run mod", "convtvm tune x --log mod"]
)
def test_files(line: str, convtvm: Callable[..., str]) -> None:
    place = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    assert convtvm("bash_complete", **place).split() == ["file,mod"]


def test_in_bash(tmp_path: Path) -> None:
    """The line of the documents in a real shell that then completes a line."""
    if not shutil.which("bash"):
        pytest.skip("there is no bash")
    (documented,) = (text for text in DOCUMENTED if "bash_source" in text)
    (tmp_path / "convtvm").write_text(f'#!/bin/sh\nexec {sys.executable} -m convtvm "$@"\n')
    (tmp_path / "convtvm").chmod(0o755)
    code = f"""{documented}
    complete -p convtvm
    COMP_WORDS=(convtvm tune vg) COMP_CWORD=2
    _convtvm_completion convtvm
    echo "${{COMPREPLY[@]}}"
    """
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "_convtvm_completion convtvm" in done.stdout and done.stdout.split()[-1] == "vgg16"
