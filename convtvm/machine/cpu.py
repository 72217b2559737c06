"""The CPU underneath: its name, cores and features, read from the operating system."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

# LLVM's name of a feature -> the kernel's name in /proc/cpuinfo, for the instruction sets that
# compiled kernels may contain. Names that agree are not listed.
_KERNEL_NAMES = {
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "pclmul": "pclmulqdq",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avxvnni": "avx_vnni",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
}
_SAME_NAME = [
    "sse",
    "sse2",
    "ssse3",
    "sse4a",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "bmi2",
    "movbe",
    "popcnt",
    "adx",
    "vaes",
    "vpclmulqdq",
    "avx512f",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512vl",
    "avx512vbmi",
    "avx512ifma",
]

_KNOWN = {**{name: name for name in _SAME_NAME}, **_KERNEL_NAMES}
# The instruction sets that decide how fast a convolution can be, weakest first.
_DECISIVE = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512vl", "avx512bf16", "amx-bf16")


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf8", errors="replace")
    except OSError:
        return {}
    entries = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in entries}


def host_features() -> dict[str, bool]:
    """LLVM feature name -> whether this CPU has it, for the features that can be checked here."""
    flags = set(_cpuinfo().get("flags", "").split())
    if not flags:
        return {}
    return {llvm: kernel in flags for llvm, kernel in _KNOWN.items()}


def missing_features(required: tuple[str, ...] | list[str]) -> list[str]:
    """Those of `required` (LLVM names) that this CPU is known to lack."""
    offered = host_features()
    return [name for name in required if offered.get(name) is False]


def required_flags(required: Iterable[str]) -> list[str]:
    """The flags of /proc/cpuinfo by which a CPU shows those of `required` (LLVM names) that it can
    show."""
    return [_KNOWN[name] for name in required if name in _KNOWN]


def device_name() -> str:
    """Marketing name of this CPU with family and model, since virtual machines shorten the name."""
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in info:
        name += f" (family {info['cpu family']} model {info.get('model', '?')})"
    return name


def physical_cores() -> int:
    """Cores that this process may use, counting hyper-threads of one core once."""
    allowed = (
        os.sched_getaffinity(0)
        if hasattr(os, "sched_getaffinity")
        else set(range(os.cpu_count() or 1))
    )
    siblings = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text(encoding="ascii").strip())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))


def facts() -> dict[str, Any]:
    """What people who read a figure want to know: name, kind of machine, cores, instruction sets
    that decide how fast a convolution can be."""
    offered = host_features()
    return {
        "name": device_name(),
        "machine": platform.machine(),
        "cores": physical_cores(),
        "features": [name for name in _DECISIVE if offered.get(name)],
    }
