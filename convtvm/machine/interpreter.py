"""This Python once more, as a child process that imports nothing from the current folder.

`python -m` and `python -c` put that folder first on the path: whatever lies there under the name of
a module, as random.py, would be run.
"""

from __future__ import annotations

import sys

_LEAVE = "import sys\nif not getattr(sys.flags, 'safe_path', False):\n    del sys.path[0]\n"


def command(code: str, *arguments: str) -> list[str]:
    """The command line that runs `code` with the arguments in sys.argv[1:]."""
    return [sys.executable, "-c", _LEAVE + code, *arguments]
