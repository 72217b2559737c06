"""Every block of README and docs is run, in order, in a new folder for each page.

A block with `<!-- not run: REASON -->` before it is not; of its commands it is tested that they
exist and take these options. `<!-- given: CODE -->` is run before a block, to make what it names.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from documents import PAGES, ROOT, Block, blocks_of, name_of
from support import LONG, without_torch
from warm import serving

from convtvm.cli import commands

BLOCKS = {name_of(page): blocks_of(name_of(page), page.read_text("utf8")) for page in PAGES}
EVERY = [block for blocks in BLOCKS.values() for block in blocks]
RUN = {"sh", "python"}
NOT_CODE = {"text", "json", "zsh", "fish"}  # zsh and fish: tests/test_completion.py
TORCH = re.compile(r"^\s*(import torch|from torch)", re.M)


# ---- those that run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """PATH with `convtvm` and `python`, which finds no PyTorch: no block asks it for that."""
    folder = tmp_path_factory.mktemp("bin")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    with serving(str(folder / "socket"), environment=environment) as warm:
        for name, command in {
            "convtvm": warm,
            "python": ["env", f"PYTHONPATH={without_torch(ROOT)['PYTHONPATH']}", sys.executable],
        }.items():
            (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
            (folder / name).chmod(0o755)
        yield f"{folder}{os.pathsep}{os.environ['PATH']}"


def run_shell(block: Block, folder: Path, path: str) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * LONG,  # some of them tune
    )
    assert done.returncode == 0, f"{block}\n{block.text}\n{done.stdout}\n{done.stderr}"


class Interpreter:
    """A Python that keeps what the blocks of a page defined."""

    def __init__(self, page: str, folder: Path, path: str) -> None:
        self._errors = folder / "errors.txt"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                ["convtvm", "--python", page],
                cwd=folder,
                env={**os.environ, "PATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def run(self, block: Block) -> None:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        for line, code in ((0, block.given), (block.line, block.text)):
            process.stdin.write(json.dumps([line, code]) + "\n")
            process.stdin.flush()
            said = iter(process.stdout.readline, "")
            assert "done\n" in said, f"{block}\n{self._errors.read_text()}"

    def end(self) -> None:
        self._process.communicate()


@pytest.mark.parametrize("page", [p for p, blocks in BLOCKS.items() if blocks])
def test_blocks_run(page: str, path: str, tmp_path: Path) -> None:
    for name in ("scripts", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = Interpreter(page, tmp_path, path)
    for block in BLOCKS[page]:
        if block.not_run or block.language not in RUN:
            continue
        if TORCH.search(block.given + block.text):
            pytest.importorskip("torch")
            pytest.importorskip("onnx")
        if block.language == "sh":
            run_shell(block, tmp_path, path)
        else:
            python.run(block)
    python.end()


# ---- those that do not ---------------------------------------------------------------------------


@pytest.mark.parametrize("block", EVERY, ids=str)
def test_every_block_is_of_a_kind_that_is_tested(block: Block) -> None:
    assert block.language in RUN | NOT_CODE, "say `sh`, `python` or `text` behind the fence"
    assert not block.not_run or len(block.not_run.split()) > 2, "say why it is not run"


def test_code_stands_in_fences() -> None:
    """An indented block would escape these tests."""
    indented = [
        f"{name}:{number}"
        for page in PAGES
        for name in [name_of(page)]
        for number, line, before in _outside_fences(page.read_text("utf8"))
        if line.startswith("    ") and not before.strip()
    ]
    assert indented == []


def _outside_fences(text: str) -> Iterator[tuple[int, str, str]]:
    from documents import lines_of

    before = ""
    for line in lines_of(text):
        if line.fence is None:
            yield line.number, line.text, before
        before = line.text


# Why a block is not run: a device, other machines, minutes, a machine at rest, files, the past.
REASONS = re.compile(
    r"GPU|other machines|minute|an hour|hours|seconds each|at rest|every tile size"
    r"|no longer in TVM|are run there"
)


def test_blocks_that_are_not_run_are_few_and_say_why() -> None:
    skipped = [block for block in EVERY if block.not_run]
    assert [str(b) for b in skipped if not REASONS.search(b.not_run)] == []
    print(*(f"{b}: {b.not_run}" for b in skipped), sep="\n")
    run = [b for b in EVERY if not b.not_run and b.language in RUN]
    assert len(run) >= 25


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of each command line, without comments, redirections and variables before it."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            del words[0]
        if words:
            yield words[: words.index(">")] if ">" in words else words


COMMANDS = [
    pytest.param(words, id=f"{block} {' '.join(words)[:60]}")
    for block in EVERY
    if block.not_run and block.language == "sh"
    for words in commands_in(block.text)
]


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_that_are_not_run_exist(words: list[str]) -> None:
    if words[0] == "convtvm":
        parse(words[1:])
        return
    if words[0] == "python" and words[1] != "-m":
        words = words[1:]
    if words[0].startswith("scripts/"):
        script = ROOT / words[0]
        assert script.is_file()
        source = script.read_text("utf8")
        if (ROOT / f"{words[0]}.py").is_file():
            source += (ROOT / f"{words[0]}.py").read_text("utf8")
        absent = [w for w in words if w.startswith("--") and f'"{w}"' not in source]
        assert absent == []
        return
    assert words[0] in ("pip", "ssh", "python"), words


def parse(args: list[str]) -> click.Context:
    """The arguments as convtvm takes them, with nothing run. Raises click.ClickException."""
    group: click.Command = commands
    ctx = click.Context(commands, info_name="convtvm")
    while isinstance(group, click.Group):
        name, command, args = group.resolve_command(ctx, args)
        assert name and command
        group, ctx = command, click.Context(command, info_name=name, parent=ctx)
    return group.make_context(ctx.info_name, list(args), parent=ctx.parent)


def leaves(group: click.Group, *names: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, *names, name)
        else:
            yield " ".join((*names, name)), command


@pytest.mark.parametrize(("name", "command"), [*leaves(commands)], ids=lambda v: str(v))
def test_help_has_examples_that_parse(name: str, command: click.Command) -> None:
    shown = command.get_help(click.Context(command, info_name=f"convtvm {name}"))
    examples = shown.partition("Examples:\n")[2].strip().splitlines()
    assert examples, "give the command an epilog=examples(...)"
    for line in examples:
        words = shlex.split(line)
        assert words[0] == "convtvm" and " ".join(words[1:]).startswith(name)
        parse(words[1:])


# ---- commands within sentences -------------------------------------------------------------------

NAMED = sorted(
    {
        (name_of(page), command)
        for page in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")
        for command in re.findall(r"`convtvm ([a-z][^`]*)`", page.read_text("utf8"))
    }
)


@pytest.mark.parametrize(("page", "named"), NAMED)
def test_commands_in_sentences_exist(page: str, named: str) -> None:
    words = named.split()
    command: click.Command = commands
    while isinstance(command, click.Group) and words:
        command = command.commands[words.pop(0)]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    asked = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert asked <= known | {"--help"}
