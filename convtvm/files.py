"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path


def objection(path: str | Path) -> str:
    """Why no file can be made or replaced at `path`; empty if one can. Leaves nothing behind."""
    real = Path(os.path.realpath(path))
    folder = real.parent if os.path.islink(path) else Path(path).parent  # as the caller calls it
    try:
        mode = real.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as error:  # a name that is too long, a file where a folder should be
        return str(error.strerror)
    if not stat.S_ISREG(mode):
        return "it exists and is not a plain file"
    if not folder.is_dir():
        return f"there is no folder {folder}"
    if real.exists() and not os.access(real, os.W_OK):
        return "no permission to replace it"
    partial = _partial(folder)
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        os.unlink(partial)
    except OSError as error:
        return f"cannot write in folder {folder}: {error.strerror}"
    return ""


def _partial(folder: Path) -> Path:
    """A new name, and not after the file, whose name may be as long as names can be."""
    return folder / f".convtvm-{secrets.token_hex(8)}"


def write_whole(
    path: str | Path, content: bytes | Iterable[bytes | memoryview], mode: int = 0o666
) -> None:
    """Put `content`, or its pieces one after the other, at `path` in one step; a file that is
    replaced keeps its permissions.

    A new file gets `mode` less what the umask takes away, a link stays a link. Writers of one path
    do not disturb each other: one of them comes last. Raises OSError, and then leaves nothing
    behind.
    """
    real = Path(os.path.realpath(path))
    kept = stat.S_IMODE(real.stat().st_mode) if real.exists() else None
    mode = mode if kept is None else kept
    partial = _partial(real.parent)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        if kept is not None:
            os.chmod(partial, kept)
        os.replace(partial, real)
    except BaseException:
        os.unlink(partial)
        raise
