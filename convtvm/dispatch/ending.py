"""The end of the interpreter while daemon threads compute.

Python ends such a thread where it next needs the interpreter, which is inside tvm_ffi after every
kernel. That unwinds the thread's stack through C++ code that lets nothing pass, and the process
aborts. So calls under way are waited for, and no other begins.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
from pathlib import Path

_HERE = str(Path(__file__).parent)
_PATIENCE = 30.0  # seconds for a call to end
_LOOK = 0.001


class _Ending:
    """Whether the interpreter ends: `begun`, which every call looks at."""

    def __init__(self) -> None:
        self.begun = False
        self._by = 0

    def begin(self) -> None:
        """Let no other thread begin a call, and return when none is in one."""
        self._by, self.begun = threading.get_ident(), True
        deadline = time.monotonic() + _PATIENCE
        while self._others_compute() and time.monotonic() < deadline:
            time.sleep(_LOOK)

    def hold(self) -> None:
        """Keep the calling thread for ever, unless it is the one that ends the interpreter."""
        if threading.get_ident() != self._by:
            threading.Event().wait()

    def _others_compute(self) -> bool:
        """Whether another thread runs code of this room, or what that has called in C."""
        frames = sys._current_frames().items()
        return any(f.f_code.co_filename.startswith(_HERE) for t, f in frames if t != self._by)


ending = _Ending()
atexit.register(ending.begin)
