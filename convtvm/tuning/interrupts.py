"""Ctrl-C while tuning: it ends the search, and nothing that was measured is lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from convtvm.tuning.progress import TuningSummary


@contextlib.contextmanager
def until_interrupted(summary: TuningSummary) -> Iterator[None]:
    """Ctrl-C ends what is within and is noted in the summary."""
    interrupts = _Interrupts()
    try:
        with interrupts:
            yield
    except KeyboardInterrupt:
        summary.stopped = "interrupted"
    except RuntimeError:
        # TVM turns a KeyboardInterrupt that lands in one of its callbacks into this.
        if not interrupts.seen:
            raise
        summary.stopped = "interrupted"


class _Interrupts:
    """Remembers whether Ctrl-C was pressed; outside the main thread it does nothing."""

    def __init__(self) -> None:
        self.seen = False
        self._before: Any = None

    def _note(self, number: int, frame: Any) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
