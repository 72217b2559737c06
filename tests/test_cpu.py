"""The CPU underneath, from planted /proc and /sys files."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from convtvm.machine import cpu

AMD = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
flags\t\t: fpu sse sse2 pni sse4_1 sse4_2 abm bmi1 bmi2 fma avx avx2 pclmulqdq

processor\t: 1
model name\t: another one
flags\t\t: avx512f
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n"

Plant = Callable[[str | None], None]


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plant:
    """Replace /proc/cpuinfo by a text, or by nothing."""
    uncached = cpu._cpuinfo.__wrapped__

    def plant(text: str | None) -> None:
        path = tmp_path / "cpuinfo"
        if text is not None:
            path.write_text(text, encoding="utf8")
        monkeypatch.setattr(cpu, "Path", lambda _: path)
        monkeypatch.setattr(cpu, "_cpuinfo", uncached)

    return plant


def test_features_are_the_first_processors_in_llvms_names(cpuinfo: Plant) -> None:
    cpuinfo(AMD)
    features = cpu.host_features()
    has = {name for name, there in features.items() if there}
    expected = "sse sse2 sse3 sse4.1 sse4.2 lzcnt bmi bmi2 fma avx avx2 pclmul"
    assert sorted(has) == sorted(expected.split(" "))
    assert features["avx512f"] is False and features["avx512vnni"] is False


@pytest.mark.parametrize("text", [None, "", ARM], ids=["no file", "empty file", "no flags"])
def test_features_that_cannot_be_checked(cpuinfo: Plant, text: str | None) -> None:
    cpuinfo(text)
    assert cpu.host_features() == {}
    assert cpu.missing_features(["avx512f"]) == []


def test_missing_features(cpuinfo: Plant) -> None:
    cpuinfo(AMD)
    required = ("64bit", "avx2", "avx512f", "fast-gather", "avx512_never", "amx-tile", "sse4.2")
    # In the order asked; names that cannot be checked are no reason to refuse.
    assert cpu.missing_features(required) == ["avx512f", "amx-tile"]
    assert cpu.missing_features(["avx2"]) == cpu.missing_features([]) == []


def test_device_name(cpuinfo: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo(AMD)
    assert cpu.device_name() == "AMD EPYC (family 25 model 1)"
    cpuinfo("model name\t: Some CPU\n")
    assert cpu.device_name() == "Some CPU"
    cpuinfo(ARM)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert cpu.device_name() == "aarch64"


def test_bytes_that_are_no_text(cpuinfo: Plant, tmp_path: Path) -> None:
    cpuinfo(None)
    (tmp_path / "cpuinfo").write_bytes(b"model name\t: \xff\xfe CPU\nflags\t: avx2\n")
    assert cpu.host_features()["avx2"] and cpu.device_name().endswith("CPU")


@pytest.mark.parametrize(
    ("allowed", "siblings", "cores"),
    [
        ({0, 1, 2, 3}, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, 2),
        ({0, 1, 2, 3}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, 2),
        ({1}, {0: "0-1", 1: "0-1"}, 1),
        ({0, 1}, {}, 2),  # no such files, as in some containers
        ({5}, {}, 1),
    ],
)
def test_physical_cores(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    allowed: set[int],
    siblings: dict[int, str],
    cores: int,
) -> None:
    for number, text in siblings.items():
        (tmp_path / f"cpu{number}").write_text(f"{text}\n", encoding="ascii")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    monkeypatch.setattr(cpu, "Path", lambda path: tmp_path / path.split("/")[5])
    assert cpu.physical_cores() == cores


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo")
def test_this_machine() -> None:
    assert cpu.device_name().strip()
    assert 1 <= cpu.physical_cores() <= (os.cpu_count() or 1)
    if platform.machine() == "x86_64":
        assert cpu.host_features()["sse2"] and cpu.missing_features(["sse2", "sse3"]) == []
