"""Files written whole: links, permissions, several writers of one path, nothing left behind."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from convtvm.files import write_whole


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_modes_and_links(tmp_path: Path) -> None:
    file, link = tmp_path / "x", tmp_path / "link"
    write_whole(file, b"one", mode=0o755)
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"one", 0o755)
    file.chmod(0o640)
    link.symlink_to(file)
    write_whole(link, b"two", mode=0o755)
    assert link.is_symlink() and file.read_bytes() == b"two"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_a_new_file_is_as_the_umask_has_it(tmp_path: Path, umask: int) -> None:
    """A file that is replaced is as it was."""
    before = os.umask(umask)
    try:
        for mode in (0o666, 0o777):
            file = tmp_path / f"{mode:o}"
            write_whole(file, b"one", mode)
            assert stat.S_IMODE(file.stat().st_mode) == mode & ~umask
            file.chmod(0o604)
            write_whole(file, b"two", mode)
            assert stat.S_IMODE(file.stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_the_longest_name(tmp_path: Path) -> None:
    write_whole(tmp_path / ("x" * 255), b"content")
    assert names(tmp_path) == ["x" * 255]


def test_writers_in_many_threads(tmp_path: Path) -> None:
    """Each reader sees one writer's content, never a mixture or a part."""
    contents = [bytes([n]) * 300_000 for n in range(8)]
    path, problems = tmp_path / "x", []

    def work(content: bytes) -> None:
        for _ in range(20):
            try:
                write_whole(path, content)
            except OSError as error:
                problems.append(str(error))
            if path.read_bytes() not in contents:
                problems.append("a mixture")

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [] and names(tmp_path) == ["x"]


def test_failures_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for bad in ("folder", "nowhere/x"):
        with pytest.raises(OSError):
            write_whole(tmp_path / bad, b"content")
    assert names(tmp_path) == ["folder"]
