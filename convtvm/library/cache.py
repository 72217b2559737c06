"""What was compiled before, by content: kernels and whole libraries, for every later process.

An entry's key says everything that its content depends on, the code that makes it among it, so an
entry never goes out of date; it is only thrown out to make room. Processes share the folder: an
entry appears whole or not at all, and one that is damaged, or gone in the meantime, is as if it had
never been there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs

from convtvm.errors import LibraryError
from convtvm.files import write_whole

VARIABLE = "CONVTVM_CACHE"  # a folder, or one of _OFF
_OFF = ("", "0", "off", "none")
_LIMIT = 1 << 30  # bytes
_KEPT = 0.8  # of the limit, once it is exceeded: not every sweep after that finds it so again
_GROWTH = 1 / 64  # of the limit, that one process may add before it looks at all entries again
_SUFFIX = ".entry"
_CODE = (
    "convtvm/problem",
    "convtvm/machine",
    "convtvm/dispatch",
    "convtvm/compute",
    "convtvm/kernels",
    "convtvm/logs",
    "convtvm/library",
    "convtvm/models",
    "schedules",
)


# Bytes that this process has put into a folder since it last looked at all entries.
_added: dict[Path, int] = {}


@dataclass(frozen=True)
class Cache:
    """Entries in `folder`, of at most `limit` bytes together; without a folder, none ever."""

    folder: Path | None
    limit: int = _LIMIT

    def get(self, key: str) -> bytes | None:
        """The content of an entry, None if there is none."""
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            stored = path.read_bytes()
            os.utime(path)  # used just now
        except OSError:
            return None
        content = stored[4:]
        return content if zlib.crc32(content).to_bytes(4, "little") == stored[:4] else None

    def put(self, key: str, content: bytes) -> None:
        """Keep an entry, where the folder allows it."""
        if self.folder is None or len(content) > self.limit:
            return
        with contextlib.suppress(OSError):
            write_whole(self._made(key), zlib.crc32(content).to_bytes(4, "little") + content)
            self._count(len(content))

    def find(self, key: str) -> Path | None:
        """The file of an entry that `add` made, which checks its content itself; None if there is
        none."""
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            os.utime(path)
        except OSError:
            return None
        return path

    def add(self, key: str, size: int, write: Callable[[Path], None]) -> None:
        """Let `write` make the file of an entry, whole or not at all, unless its `size` is more
        than half of what the cache may hold."""
        if self.folder is None or size > self.limit // 2:
            return
        with contextlib.suppress(OSError, LibraryError):
            write(self._made(key))
            self._count(size)

    def clear(self) -> int:
        """Remove every entry; their number."""
        return sum(self._remove(path) for path, _ in self._entries())

    def size(self) -> tuple[int, int]:
        """Entries, and their bytes."""
        sizes = [found.st_size for _, found in self._entries()]
        return len(sizes), sum(sizes)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def _made(self, key: str) -> Path:
        """The path of an entry, whose folder is there. Raises OSError."""
        assert self.folder is not None
        self.folder.mkdir(0o700, parents=True, exist_ok=True)  # its code will run
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        return path

    def _count(self, size: int) -> None:
        if self.folder in _added:
            _added[self.folder] += size

    def _entries(self) -> Iterator[tuple[str, os.stat_result]]:
        # Thousands: `Path.glob` takes twice as long.
        folders = [] if self.folder is None else _listed(self.folder)
        for entry in (e for folder in folders if len(folder.name) == 2 for e in _listed(folder)):
            with contextlib.suppress(OSError):
                if entry.name.endswith(_SUFFIX):
                    yield entry.path, entry.stat()

    def sweep(self) -> None:
        """Throw out what was not used for longest, if the entries exceed the limit; nothing where
        this process has looked and added little since."""
        if self.folder is None or _added.get(self.folder, self.limit) < _GROWTH * self.limit:
            return
        _added[self.folder] = 0
        entries = list(self._entries())
        size = sum(found.st_size for _, found in entries)
        if size <= self.limit:
            return
        for path, found in sorted(entries, key=lambda entry: (entry[1].st_mtime, entry[0])):
            if size <= _KEPT * self.limit:
                return
            self._remove(path)
            size -= found.st_size

    @staticmethod
    def _remove(path: str) -> bool:
        """Whether there was such an entry to remove."""
        try:
            os.unlink(path)
        except OSError:
            return False
        return True


def _listed(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing of one that cannot be read."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def open_cache() -> Cache:
    """The user's: in the folder that the environment variable CONVTVM_CACHE names, else in the
    usual one for caches; `off` means none."""
    named = os.environ.get(VARIABLE)
    if named is not None and named.strip().lower() in _OFF:
        return Cache(None)
    return Cache(Path(named) if named else platformdirs.user_cache_path("convtvm"))


def key_of(**facts: Any) -> str:
    """The key of an entry that depends on these facts, JSON values, and on our code."""
    text = json.dumps({**facts, "code": _code()}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf8")).hexdigest()


@cache
def _code() -> str:
    """A digest of all that turns records into libraries: our sources, TVM's version."""
    digest = hashlib.sha256(metadata.version("apache-tvm").encode())
    home = Path(__file__).parents[2]
    schedules = importlib.util.find_spec("schedules")
    assert schedules is not None and schedules.origin is not None
    for name in _CODE:
        folder = Path(schedules.origin).parent if name == "schedules" else home / name
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.ll")]):
            digest.update(f"{name}/{path.relative_to(folder)}".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
