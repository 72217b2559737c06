"""What figures depend on besides the code: the machine, versions, and what else ran meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from convtvm import __version__
from convtvm.machine import cpu
from convtvm.version import versions

PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "ncnn", "MNN")  # of peers
OTHERS = 0.05  # of the cores' time that others may take and figures still count
_SHORTEST = 0.2  # seconds, below which the kernel's clock ticks say nothing


def conditions(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """`machine` and `versions` as JSON documents have them; of `packages` those that are here."""
    found = versions(__version__, packages)
    return {"machine": cpu.facts(), "versions": {k: v for k, v in found.items() if v}}


def lines(found: dict[str, Any]) -> list[str]:
    """The conditions as a person reads them."""
    machine = found["machine"]
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    parts = (machine["name"], cores, " ".join(machine["features"]) or machine["machine"])
    return [
        f"machine   {', '.join(parts)}",
        f"versions  {', '.join(f'{name} {v}' for name, v in found['versions'].items())}",
    ]


class Neighbours:
    """How much of the machine others have taken since this was made."""

    def __init__(self) -> None:
        self._began = self._now()

    def share(self) -> float | None:
        """Of the time of all cores, also what the host of a virtual machine took away; None where
        the kernel does not say, or too little time has passed."""
        (since, before, mine), (now, busy, own) = self._began, self._now()
        if before is None or busy is None or now - since < _SHORTEST:
            return None
        taken = (busy - before) - (own - mine)
        return max(0.0, taken) / ((now - since) * (os.cpu_count() or 1))

    @staticmethod
    def _now() -> tuple[float, float | None, float]:
        """Seconds: of the clock, in which the cores did anything, and for this process and all that
        come from it."""
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        for child in psutil.Process().children(recursive=True):  # that still live
            try:
                own += sum(child.cpu_times()[:4])
            except psutil.Error:
                continue
        return time.perf_counter(), _busy(), own


def _busy() -> float | None:
    """Seconds in which the cores were not idle since the machine was started."""
    try:
        ticks = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks)
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
