"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path


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
    # Not named after the file, whose name may be as long as names can be.
    partial = real.parent / f".convtvm-{secrets.token_hex(8)}"
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
