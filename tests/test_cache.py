"""The cache of compiled kernels: hits, misses, damage, several processes, bounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import without_torch

import convtvm
from convtvm.cli import main
from convtvm.dispatch import KernelLibrary
from convtvm.library import build, cache
from convtvm.library.build import compile
from convtvm.library.cache import VARIABLE, Cache, key_of, open_cache
from convtvm.measure.client import Zygote
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import ConvWorkload

W = ConvWorkload.parse("mb1ic5ih7oc6kh3ph1")
OTHER = ConvWorkload.parse("mb1ic6ih7oc5kh1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The symbols that the build helper was asked for, call by call."""
    asked: list[list[str]] = []

    class Watched(Zygote):
        def call(self, kind: str, jobs: list, limits: object) -> object:  # type: ignore[override]
            if jobs:
                asked.append([job.symbol for job in jobs])
            return super().call(kind, jobs, limits)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "Zygote", Watched)
    return asked


def remembered(*workloads: ConvWorkload, **options: object) -> KernelLibrary:
    settings = {"threads": 1, "logs": [], "algorithms": ["direct"], **options}
    return convtvm.compile(list(workloads), **settings)


def compiled(*workloads: ConvWorkload) -> KernelLibrary:
    return compile(workloads, threads=1, logs=[], algorithms=["direct"])


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.entry"))


def check(library: KernelLibrary, w: ConvWorkload = W) -> None:
    data, weight, bias = random_inputs(w, 0, kind="integer")
    out = library.plan(w, weight, bias)(data)
    np.testing.assert_array_equal(out, conv2d_reference(w, data, weight, bias))


def test_a_second_compile_builds_nothing(folder: Path, calls: list[list[str]]) -> None:
    first = compiled(W)
    assert [len(symbols) for symbols in calls] == [2] and len(entries(folder)) == 2
    again = compiled(W)
    assert len(calls) == 1  # the helper was not even started
    assert again.content == first.content
    check(again)
    both = compiled(OTHER, W)  # in another place of another library
    assert len(calls) == 2 and not set(calls[0]) & set(calls[1])
    check(both)
    check(both, OTHER)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone", "folder"])
def test_a_damaged_entry_is_none(folder: Path, calls: list[list[str]], damage: str) -> None:
    compiled(W)
    for path in entries(folder):
        content = bytearray(path.read_bytes())
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "gone":
            content[len(content) // 2] ^= 1
            cut = {"cut": content[:-9], "flipped": content, "empty": b""}[damage]
            path.write_bytes(bytes(cut))
    check(compiled(W))
    assert len(calls) == 2


def test_a_whole_library_is_remembered(
    folder: Path, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "x.jsonl"
    log.write_text("torn\n")
    first = remembered(W, logs=[log])
    monkeypatch.setattr(build, "compile", None)  # not called again
    again = remembered(W, logs=iter([log]))
    assert again.content == first.content and again.problems == first.problems != []
    check(again)
    with pytest.raises(TypeError):  # whatever it depends on has changed: None is called
        remembered(OTHER, logs=[log])
    changed = [{"keep": "all"}, {"threads": 2}, {"layout": "NHWC"}, {"epilogues": ["clip"]}]
    for options in (*changed, {"epilogues": {W: ["clip"]}}):
        with pytest.raises(TypeError):
            remembered(W, logs=[log], **options)
    log.write_text("torn otherwise\n")
    with pytest.raises(TypeError):
        remembered(W, logs=[log])


def test_a_library_for_gpus_is_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = remembered(W, target="cuda:sm_80", threads=None)
    monkeypatch.setattr(build, "compile", None)
    again = remembered(W, target="cuda:sm_80", threads=None)
    assert again.content == first.content
    for target in ("cuda:sm_90", "cuda:sm_80,sm_90", "cuda"):
        with pytest.raises(TypeError):
            remembered(W, target=target, threads=None)
    monkeypatch.setenv("CONVTVM_NVCC", __file__)  # another compiler
    with pytest.raises(TypeError):
        remembered(W, target="cuda:sm_80", threads=None)


def test_a_remembered_library_needs_no_compiler(folder: Path) -> None:
    remembered(W)
    code = (
        "import convtvm, sys; from convtvm import ConvWorkload;"
        f"lib = convtvm.compile([ConvWorkload.parse({W.key!r})], threads=1, logs=[],"
        "algorithms=['direct']); lib.open(); assert 'tvm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=without_torch())


def test_what_makes_other_code_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"symbol": "a", "decisions": {"tile": 1}}
    keys = {key_of(**facts), key_of(**{**facts, "symbol": "b"})}
    keys.add(key_of(**{**facts, "decisions": {"tile": 2}}))
    monkeypatch.setattr(cache, "_code", lambda: "other sources")
    keys.add(key_of(**facts))
    assert len(keys) == 4
    assert key_of(a=1, b=2) == key_of(b=2, a=1)


def test_threads_targets_and_epilogues_do_not_mix(folder: Path, calls: list[list[str]]) -> None:
    compiled(W)
    for options in ({"threads": 2}, {"target": "avx2", "threads": 1}, {"layout": "NHWC"}):
        compile([W], logs=[], algorithms=["direct"], **{"threads": 1, **options})  # type: ignore
    library = compile([W], threads=1, logs=[], algorithms=["direct"], epilogues=["clip"])
    assert len(calls[-1]) == 1  # the kernel with bounds; the plain one and the packing were there
    check(library)


@pytest.mark.parametrize("value", ["off", "0", "", "none", " OFF "])
def test_it_can_be_disabled(
    value: str, monkeypatch: pytest.MonkeyPatch, calls: list[list[str]]
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert open_cache().folder is None
    compiled(W)
    compiled(W)
    assert len(calls) == 2 and open_cache().size() == (0, 0)


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    check(compiled(W))


def test_it_is_bounded_and_the_oldest_go_first(tmp_path: Path) -> None:
    small = Cache(tmp_path, limit=1000)
    keys = [key_of(number=number) for number in range(10)]
    for age, key in enumerate(keys):
        small.put(key, bytes(200))
        (path,) = tmp_path.rglob(f"{key}.entry")
        os.utime(path, (1000 + age, 1000 + age))
    assert small.get(keys[0]) is not None  # used just now
    small.sweep()
    kept = [key for key in keys if small.get(key) is not None]
    assert kept == [keys[0], *keys[-2:]]
    small.put(keys[0], bytes(2000))  # more than the whole cache may hold
    assert small.get(keys[0]) == bytes(200)


def test_not_all_is_looked_at_after_every_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process that has done so before: only after a 64th of what the cache may hold."""
    looks, entries_of = [0], Cache._entries

    def look(cache: Cache) -> Any:
        looks[0] += 1
        return entries_of(cache)

    monkeypatch.setattr(Cache, "_entries", look)
    for number in range(21):
        Cache(tmp_path, limit=64_000).put(key_of(number=number), bytes(300))
        Cache(tmp_path, limit=64_000).sweep()
    assert looks == [6]


def test_threads_share_it(tmp_path: Path) -> None:
    shared, key = Cache(tmp_path, limit=50_000), key_of(a=1)

    def work(number: int) -> set[bytes | None]:
        seen = set()
        for turn in range(50):
            shared.put(key_of(number=number, turn=turn), bytes(1000))
            shared.put(key, b"the same")
            shared.sweep()
            seen.add(shared.get(key))
        return seen

    with ThreadPoolExecutor(4) as pool:
        found = set().union(*pool.map(work, range(4)))
    assert found <= {b"the same", None}
    assert shared.size()[1] <= 50_000 + 4 * 1004


def test_processes_share_it(folder: Path) -> None:
    code = (
        "from convtvm.library.build import compile; from convtvm.problem.workload import *;"
        f"compile([ConvWorkload.parse({W.key!r})], threads=1, logs=[], algorithms=['direct'])"
    )
    command, environment = [sys.executable, "-c", code], without_torch()
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(entries(folder)) == 2 and not list(folder.rglob(".*"))


def test_the_command_line_shows_and_clears_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(*args: str) -> str:
        assert main(args) == 0
        return capsys.readouterr().out

    compiled(W)
    size = sum(path.stat().st_size for path in entries(folder))
    facts = json.loads(printed("info", "--json"))["cache"]
    assert facts == {"folder": str(folder), "entries": 2, "bytes": size}
    cleared = json.loads(printed("cache", "clear", "--json"))
    assert cleared == {"folder": str(folder), "removed": 2}
    assert entries(folder) == []
    assert "0 entries" in printed("cache", "clear")
