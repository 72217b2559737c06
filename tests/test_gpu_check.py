"""scripts/gpu_check: what it keeps of steps that fail, how it divides its time, what it leaves."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from convtvm.cli import main
from convtvm.machine import gpu
from convtvm.problem.workload import ConvWorkload

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import gpu_carry  # noqa: E402
import gpu_check  # noqa: E402
from gpu_summary import print_summary  # noqa: E402


def fail() -> None:
    raise ValueError("the kernel is gone")


def test_a_step_that_fails_is_kept_and_the_next_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report = gpu_check.Report(path, math.inf)
    report.step("first", lambda: {"direct": {"wrong": {}}})
    assert report.is_good
    report.step("second", fail)
    found = json.loads(path.read_text())  # before the last step is done
    assert list(found) == ["first", "second"]
    assert 'raise ValueError("the kernel is gone")' in found["second"]["error"]
    report.step("third", lambda: None)
    assert list(json.loads(path.read_text())) == ["first", "second", "third"]
    assert not report.is_good


def test_a_wrong_kernel_is_no_good(tmp_path: Path) -> None:
    report = gpu_check.Report(tmp_path / "report.json", math.inf)
    report.step("numerics", lambda: {"direct float32": {"wrong": {"x": "wrong_answer"}}})
    assert not report.is_good


@pytest.mark.parametrize("spends", [0.0, 1.0, 1.5])
def test_every_precision_and_batch_has_its_share_of_the_time(
    spends: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one does not use goes to the others; what it uses too much is missing there."""
    now, given = [0.0], dict[tuple[str, int], float]()
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: now[0])

    def tune(precision: str, found: list[ConvWorkload], seconds: float, *_: Any) -> dict[str, Any]:
        given[precision, found[0].n] = seconds
        now[0] += spends * seconds
        return {}

    monkeypatch.setattr(gpu_check, "tune", tune)
    monkeypatch.setattr(gpu_check, "compare", lambda *_: {})
    (tmp_path / "tuning.jsonl").touch()
    arguments = argparse.Namespace(
        batches="1,16",
        precisions="fp32,tf32,fp16",
        sources="resnet50",
        folder=tmp_path,
        no_tuning=False,
    )
    report = gpu_check.Report(tmp_path / "report.json", 1000)
    gpu_check.layers(report, arguments, False)
    assert list(given) == [(p, n) for n in (1, 16) for p in ("fp32", "tf32", "fp16")]
    shares = [gpu_check.PRECISIONS[p][0] for p, _ in given]
    whole = gpu_check.LAYERS_END * 1000
    assert next(iter(given.values())) == pytest.approx(whole * shares[0] / sum(shares))
    if spends == 1.0:
        assert list(given.values()) == pytest.approx([whole * s / sum(shares) for s in shares])
    assert min(given.values()) >= 1.0
    assert (given["fp16", 16] > given["fp16", 1]) == (spends < 1)


def test_the_log_is_fit_to_come_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "devices", lambda: (gpu.Gpu("NVIDIA H200", "sm_90", 1 << 20),))
    log = tmp_path / "tuning.jsonl"
    shipped = (ROOT / "tuning_logs" / "sm_90" / "h200.jsonl").read_text()
    log.write_text(shipped)
    left = gpu_check.best_records(log)
    best = tmp_path / "sm_90" / "nvidia-h200.jsonl"
    assert left["file"] == str(best) and 0 < left["records"] <= len(shipped.splitlines())
    assert main(["log", "check", str(best)]) == 0


@pytest.mark.parametrize(("name", "any_records"), [("NVIDIA H200", True), ("GeForce", False)])
def test_a_new_log_begins_with_what_came_along_for_this_gpu(
    name: str, any_records: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "devices", lambda: (gpu.Gpu(name, "sm_90", 1 << 20),))
    log = tmp_path / "tuning.jsonl"
    gpu_check.begin(log)
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert bool(found) == any_records and all(record["device"] == name for record in found)
    log.write_text("kept\n")
    gpu_check.begin(log)
    assert log.read_text() == "kept\n"


def test_an_earlier_report_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text in ("a", "b", "c"):
        gpu_check.keep_earlier(path)
        path.write_text(text)
    texts = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert texts == {"report-1.json": "a", "report-2.json": "b", "report.json": "c"}


def layer(speed: float) -> dict[str, Any]:
    return {
        "chosen": "direct",
        "algorithms": {"direct": {"seconds": 1.0}},
        "without_bias": {"torch": {"seconds": speed / 2}, "torch-nhwc": {"seconds": speed}},
    }


def test_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    cell = {
        "tuning": {"trials": 90, "seconds": 30.0},
        "layers": [layer(2.0), layer(8.0)],
        "geomean": 4.0,
        "worst": 2.0,
        "best": 8.0,
    }
    nothing = {**cell, "layers": [], "geomean": None, "worst": None, "best": None}
    report = {
        "numerics": {"result": {"direct": {"kernels": 16, "wrong": {"x": "no"}}}},
        "fp32, batch 1": {"result": cell},
        "tf32, batch 1": {"result": nothing},
        "fp16, batch 1": {"error": "Traceback\nRuntimeError: out of memory\n"},
        "graphs": {"result": {"resnet50 fp16": {"wrong": {}, "ms": {"convtvm": 1.5}}}},
    }
    print_summary(report)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["numerics:", "16", "kernels,", "1", "wrong"] in lines
    assert ["fp32,", "batch", "1", "2", "4.00", "2.00", "8.00", "2.00", "90", "180"] in lines
    assert ["tf32,", "batch", "1", "0", "-", "-", "-", "-", "90", "180"] in lines
    assert ["graph", "resnet50", "fp16,", "ms:", "convtvm", "1.500"] in lines
    assert ["FAILED", "fp16,", "batch", "1:", "RuntimeError:", "out", "of", "memory"] in lines


def test_what_is_carried() -> None:
    """What the machine has is left out, and nothing that is not a dependency is named as left out;
    what is imported comes along."""
    locked = (ROOT / "requirements.lock").read_text()
    assert [name for name in gpu_carry.PRESENT if f"\n{name}==" not in locked] == []
    names = {pin.partition("==")[0] for pin in gpu_carry._requirements()}
    assert names == {"apache-tvm", "apache-tvm-ffi", "platformdirs", "xgboost-cpu"}
    kept = ("tvm/__init__.py", "xgboost/VERSION", "tvm_ffi/lib/libtvm_ffi_testing.so")
    left = ("tvm/src/a.cc", "tvm_ffi/3rdparty/x.py", "tvm_ffi/cython/core.pyx")
    assert [p for p in (*kept, *left) if gpu_carry._is_needed(Path(p))] == list(kept)


def test_the_checkout_leaves_room_for_what_is_carried() -> None:
    """TVM's compiler alone is some 50 MiB when it is compressed."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout of git")
    assert 2 << 20 < gpu_carry.tracked_bytes() < 8 << 20


def test_emulated_sizes_leave_padding_unread() -> None:
    """As the stride-2 layers of ResNet-50 do."""
    assert any(w.ph != w.ph_r for w in map(ConvWorkload.parse, gpu_check.TINY))
