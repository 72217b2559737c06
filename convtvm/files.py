"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def write_whole(path: str | Path, content: bytes, mode: int = 0o644) -> None:
    """Put `content` at `path` in one step; a file that is replaced keeps its permissions.

    A new file gets `mode`, a link stays a link. Writers of one path do not disturb each other:
    one of them comes last. Raises OSError, and then leaves nothing behind.
    """
    real = Path(os.path.realpath(path))
    if real.exists():
        mode = stat.S_IMODE(real.stat().st_mode)
    handle, partial = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(partial, mode)
        os.replace(partial, real)
    except BaseException:
        os.unlink(partial)
        raise
