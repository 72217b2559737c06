"""One library for several CPUs: which kernels it has, and which of them a CPU gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import log_of, record_of

from convtvm.dispatch import KernelLibrary, load, manifest, runtime
from convtvm.errors import LibraryError, LogError, TargetError
from convtvm.kernels.task import Task
from convtvm.library.build import compile
from convtvm.machine import cpu
from convtvm.machine.targets import resolve, resolve_several
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import ConvWorkload

W = ConvWorkload.parse('mb1ic5ih7oc17oh7kh3ph1n"layer"')
AVX2, AVX512 = resolve("avx2", 1), resolve("avx512", 1)
ALGORITHMS = ["direct", "mec:b"]

needs_avx2 = pytest.mark.skipif(
    not resolve("native").is_x86 or bool(cpu.missing_features(AVX2.features)),
    reason="needs a CPU with AVX2",
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    library = compile([W], "avx2,avx512", threads=1, logs=[], algorithms=ALGORITHMS)
    library.export(folder / "x.so")
    return folder / "x.so"


def pretend(monkeypatch: pytest.MonkeyPatch, *lacking: str) -> None:
    """This CPU lacks these features and has all others."""
    features = {*AVX2.features, *AVX512.features}
    monkeypatch.setattr(cpu, "host_features", lambda: {f: f not in lacking for f in features})


def test_kernels_of_each(path: Path) -> None:
    _, found = manifest.read(path)
    assert [m.target for m in found] == [AVX512.name, AVX2.name]
    names = [{k.function for k in m.kernels} | {k.pack for k in m.kernels} for m in found]
    assert not names[0] & names[1]
    assert all({k.algorithm for k in m.kernels} == {*ALGORITHMS} for m in found)
    assert {m.kernels[0].packed_shape[-1] for m in found} == {8, 16}


@needs_avx2
def test_lesser_cpu_gets_its_kernels(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "avx512f")
    library = load(path)
    assert library.target == AVX2.name and library.workloads == [W]
    data, weight, bias = random_inputs(W, 0, "NCHW", "integer")
    for candidate in library.candidates(W):
        plan = library.plan(W, weight, bias, algorithm=candidate.algorithm)
        assert np.array_equal(plan(data), conv2d_reference(W, data, weight, bias, "NCHW"))


def test_better_cpu_gets_the_wider_ones(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    # This machine may not run them.
    monkeypatch.setattr(runtime, "Image", lambda content, threads: {})
    assert load(path).target == AVX512.name


def test_cpu_with_neither_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any code of the library is loaded."""

    def opened(*_: Any) -> None:
        raise AssertionError("the code was opened")

    pretend(monkeypatch, "avx512f", "avx2")
    monkeypatch.setattr(runtime, "Image", opened)
    with pytest.raises(LibraryError) as caught:
        load(path)
    wide, narrow = str(caught.value).split("; compile it here with --target native")[:2]
    assert f"for '{AVX512.name}'; this CPU lacks avx2, avx512f" in wide
    assert f"for '{AVX2.name}'; this CPU lacks avx2" in narrow


@needs_avx2
def test_known_times_go_before_wide_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target that was never tuned is no better for its vectors; each has its own records."""
    pretend(monkeypatch)
    made = [record_of(Task(W, "direct", AVX2), 1e-3)]
    monkeypatch.setattr("convtvm.logs.records.shipped_logs", lambda: [tmp_path / "x.jsonl"])
    log = log_of(tmp_path / "x.jsonl", *made)
    options: dict[str, Any] = {"threads": 1, "keep": "best", "algorithms": ["direct"]}
    library = compile([W], ["avx512", "avx2"], **options)
    assert [m.target for m in library.manifests] == [AVX2.name, AVX512.name]
    assert (library.target, library.candidates(W)[0].run_secs) == (AVX2.name, 1e-3)
    log = log_of(log, record_of(Task(W, "direct", AVX512), 5e-4))
    library = compile([W], "avx2,avx512", logs=[log], **options)
    assert [m.kernels[0].run_secs for m in library.manifests] == [5e-4, 1e-3]
    assert isinstance(library, KernelLibrary) and library.target == AVX512.name


def test_each_target_needs_its_records(tmp_path: Path) -> None:
    log = log_of(tmp_path / "x.jsonl", record_of(Task(W, "direct", AVX2), 1e-3))
    with pytest.raises(LogError, match=r"no record for .*x86-64-v4"):
        compile([W], "avx2,avx512", threads=1, logs=[log])


def test_which_targets_go_together() -> None:
    assert resolve_several("avx2, avx512", 2) == [resolve("avx512", 2), resolve("avx2", 2)]
    assert resolve_several([AVX2, "avx2"], 1) == [AVX2] == resolve_several(AVX2)
    assert len(resolve_several("cuda:sm_80,sm_90")) == 1
    assert resolve_several("llvm -mcpu=haswell -mattr=-bmi,-bmi2", 1)[0].lanes == 8
    bad: list[Any] = ["avx2,aarch64", [AVX2, resolve("avx512", 2)], ["avx2", "cuda:sm_90"], []]
    bad.append(["cuda:sm_80", "cuda:sm_90"])
    for wanted in bad:
        with pytest.raises(TargetError, match=r"targets of one library: found .*; expected CPUs"):
            resolve_several(wanted, 1)
    with pytest.raises(TargetError, match="unknown target 'avx2,toaster'"):
        resolve_several("avx2,toaster")
