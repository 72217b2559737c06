"""Where what helpers build is put: the first folder that can be written, has room and lets code
run."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from convtvm.errors import EnvironmentProblem

ROOM = 32 << 20  # bytes: the kernels of some batches, and a library
_TRIED = 1 << 20  # bytes that are written to see whether a quota has room


def workplace(room: int = ROOM) -> Path:
    """A new folder with `room` bytes for objects and arrays, in memory if that has them.

    Raises EnvironmentProblem, with what is wrong with each place, if none is fit.
    """
    objections = []
    for place in _places():
        try:
            folder = Path(tempfile.mkdtemp(prefix="convtvm-", dir=place))
        except OSError as error:
            objections.append(f"{place}: {error.strerror}")
            continue
        objection = _objection(folder, room)
        if not objection:
            return folder
        folder.rmdir()
        objections.append(f"{place}: {objection}")
    raise EnvironmentProblem(
        f"no folder for kernels that are built ({'; '.join(objections)}); set TMPDIR to one that "
        f"can be written, has {room >> 20} MiB of room and is not mounted noexec"
    )


def _places() -> Iterator[Path]:
    """Memory, what is meant for temporary files, the user's cache; each once, as far as it is."""
    named = [os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP")]
    usual = ["/tmp", "/var/tmp", "/usr/tmp"]
    paths = [Path("/dev/shm"), *map(Path, filter(None, [*named, *usual]))]
    yield from dict.fromkeys(path for path in paths if path.is_dir())
    cache = platformdirs.user_cache_path("convtvm")
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    yield cache


def _objection(folder: Path, room: int) -> str:
    """Why an empty folder is not fit, empty if it is."""
    file = folder / "probe"
    try:
        found = os.statvfs(folder)
        free = found.f_bavail * found.f_frsize
        if free < room:
            return f"{free >> 20} MiB of room, {room >> 20} needed"
        file.write_bytes(bytes(_TRIED))
        with file.open("rb") as opened:
            code = mmap.PROT_READ | mmap.PROT_EXEC
            mmap.mmap(opened.fileno(), mmap.PAGESIZE, mmap.MAP_PRIVATE, code).close()
    except OSError as error:
        noexec = file.exists() and file.stat().st_size == _TRIED
        return "no code can run there (noexec)" if noexec else str(error.strerror)
    finally:
        file.unlink(missing_ok=True)
    return ""
