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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs

from convtvm.files import write_whole

VARIABLE = "CONVTVM_CACHE"  # a folder, or one of _OFF
_OFF = ("", "0", "off", "none")
_LIMIT = 1 << 30  # bytes
_KEPT = 0.8  # of the limit, once it is exceeded: not every sweep after that finds it so again
_SUFFIX = ".entry"
_CODE = (
    "convtvm/problem",
    "convtvm/machine",
    "convtvm/dispatch",
    "convtvm/compute",
    "convtvm/kernels",
    "convtvm/logs",
    "convtvm/library",
    "schedules",
)


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
        path = self._path(key)
        with contextlib.suppress(OSError):
            self.folder.mkdir(0o700, parents=True, exist_ok=True)  # its code will run
            path.parent.mkdir(exist_ok=True)
            write_whole(path, zlib.crc32(content).to_bytes(4, "little") + content)

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

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in [] if self.folder is None else sorted(self.folder.glob(f"??/*{_SUFFIX}")):
            with contextlib.suppress(OSError):
                yield path, path.stat()

    def sweep(self) -> None:
        """Throw out what was not used for longest, if the entries exceed the limit."""
        entries = list(self._entries())
        size = sum(found.st_size for _, found in entries)
        if size <= self.limit:
            return
        for path, found in sorted(entries, key=lambda entry: entry[1].st_mtime):
            if size <= _KEPT * self.limit:
                return
            self._remove(path)
            size -= found.st_size

    @staticmethod
    def _remove(path: Path) -> bool:
        """Whether there was such an entry to remove."""
        try:
            path.unlink()
        except OSError:
            return False
        return True


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
