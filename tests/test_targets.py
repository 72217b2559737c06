"""Targets: short names, TVM's texts and JSON, what is refused, and what a name says of the CPU."""

from __future__ import annotations

import json
import pickle
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
from support import without_torch
from tvm.target import Target

from convtvm.errors import TargetError
from convtvm.machine import gpu, targets
from convtvm.machine.targets import NAMED, CompileTarget, CudaTarget, resolve

X86 = "llvm -mtriple=x86_64-linux-gnu"
ARM = "llvm -mtriple=aarch64-linux-gnu"

on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the host is not an x86-64")


def spec(**entries: object) -> str:
    return json.dumps({"kind": "llvm", **entries})


# text, canonical name, lanes, registers
KNOWN = [
    ("avx2", f"{X86} -mcpu=x86-64-v3", 8, 16),
    ("avx512", f"{X86} -mcpu=x86-64-v4", 16, 32),
    ("aarch64", f"{ARM} -mattr=+neon", 4, 32),
    ("  avx2\n", f"{X86} -mcpu=x86-64-v3", 8, 16),
    ("llvm", X86, 4, 16),
    ("llvm -mcpu=generic", f"{X86} -mcpu=generic", 4, 16),
    ("llvm -mcpu=nehalem", f"{X86} -mcpu=nehalem", 4, 16),
    ("llvm -mcpu=haswell", f"{X86} -mcpu=haswell", 8, 16),
    ("llvm --mcpu=znver3", f"{X86} -mcpu=znver3", 8, 16),
    ("llvm  -mcpu=znver4  ", f"{X86} -mcpu=znver4", 16, 32),
    ("llvm -mcpu=sapphirerapids", f"{X86} -mcpu=sapphirerapids", 16, 32),
    (
        "llvm -mattr=-avx512f -mcpu=skylake-avx512",
        f"{X86} -mcpu=skylake-avx512 -mattr=-avx512f",
        8,
        16,
    ),
    ("llvm -mcpu=haswell -mattr=-avx2,+popcnt", f"{X86} -mcpu=haswell -mattr=-avx2,+popcnt", 4, 16),
    ("llvm -mcpu=haswell -mattr=+avx512f", f"{X86} -mcpu=haswell -mattr=+avx512f", 16, 32),
    ("llvm -mtriple=aarch64-linux-gnu", ARM, 4, 32),
    (f"{ARM} -mcpu=neoverse-n1", f"{ARM} -mcpu=neoverse-n1", 4, 32),
    # Attributes that TVM writes into its own JSON say nothing of the code.
    ("llvm -keys=cpu -mcpu=znver3 -num-cores=4", f"{X86} -mcpu=znver3", 8, 16),
    (spec(), X86, 4, 16),
    (spec(mcpu="znver3"), f"{X86} -mcpu=znver3", 8, 16),
    (spec(mcpu="x86-64-v4", keys=["cpu"], tag=""), f"{X86} -mcpu=x86-64-v4", 16, 32),
    (spec(mcpu="znver3", mattr=["-avx2", "-fma"]), f"{X86} -mcpu=znver3 -mattr=-avx2,-fma", 4, 16),
    (spec(mcpu="", mattr=[]), X86, 4, 16),
]


@pytest.mark.parametrize(("text", "name", "lanes", "registers"), KNOWN)
def test_known_target(text: str, name: str, lanes: int, registers: int) -> None:
    t = resolve(text, 3)
    assert (t.name, t.threads, t.lanes, t.registers) == (name, 3, lanes, registers)
    assert t.is_x86 == ("x86_64" in name)


@pytest.mark.parametrize("text", [text for text, *_ in KNOWN])
def test_the_name_says_it_all(text: str) -> None:
    t = resolve(text, 2)
    assert resolve(t.name, 2) == t == resolve(json.dumps(t.spec), 2)
    assert pickle.loads(pickle.dumps(t)) == t
    assert CompileTarget(t.name, 2, 0, 0, ()).spec == t.spec


@pytest.mark.parametrize("name", NAMED)
def test_short_names_do_not_change(name: str) -> None:
    before = json.dumps(NAMED[name])
    resolve(name, 1).spec["mcpu"] = "changed"
    assert json.dumps(NAMED[name]) == before


def test_tvm_target_has_the_threads() -> None:
    made = resolve("avx512", 5).tvm
    assert isinstance(made, Target)
    assert made.attrs["num-cores"] == 5 and made.attrs["mcpu"] == "x86-64-v4"
    assert str(made.kind) == "llvm"


@pytest.mark.parametrize(
    ("text", "has", "lacks"),
    [
        ("avx2", {"avx2", "fma", "bmi2", "sse4.2"}, {"avx512f"}),
        ("avx512", {"avx2", "fma", "avx512f", "avx512vl"}, {"amx-tile"}),
        ("llvm -mcpu=haswell -mattr=-fma", {"avx2"}, {"fma"}),
        ("llvm", {"sse2"}, {"avx"}),
        ("aarch64", {"neon"}, {"sse2", "avx2"}),
    ],
)
def test_features(text: str, has: set[str], lacks: set[str]) -> None:
    features = resolve(text, 1).features
    assert has <= set(features) and not lacks & set(features)
    assert list(features) == sorted(features)
    assert all(type(f) is str for f in features)


# ---- native --------------------------------------------------------------------------------------


@on_x86
def test_native_is_this_cpu() -> None:
    t = resolve("native", 1)
    assert t == resolve(threads=1) and t.is_x86 and t.spec["mcpu"]
    offered = targets.host_features()
    assert [f for f in t.features if offered.get(f) is False] == []
    assert t.lanes == (16 if offered["avx512f"] else 8 if offered["avx2"] else 4)


@on_x86
def test_native_leaves_out_what_the_machine_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a virtual machine that offers a known CPU without some of its features."""
    hidden = {"avx512f": False, "avx2": False, "fma": False}
    monkeypatch.setattr(targets, "host_features", lambda: hidden)
    t = resolve("native", 1)
    assert not set(hidden) & set(t.features)
    assert (t.lanes, t.registers) == (4, 16)
    if "fma" in resolve(f"llvm -mcpu={t.spec['mcpu']}", 1).features:
        assert "-fma" in t.spec["mattr"]
    assert resolve(t.name, 1) == t


def test_native_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.platform, "machine", lambda: "aarch64")
    assert resolve("native", 1) == resolve("aarch64", 1)
    monkeypatch.setattr(targets.platform, "machine", lambda: "sparc")
    with pytest.raises(TargetError, match="no native target for machine 'sparc'; name one"):
        resolve("native", 1)


# ---- CUDA ----------------------------------------------------------------------------------------

# text, the architectures that it means
CUDA = [
    ("cuda:sm_90", ("sm_90",)),
    ("cuda:sm_90,sm_80,sm_90", ("sm_80", "sm_90")),
    ("cuda -arch=sm_80", ("sm_80",)),
    ("cuda -keys=cuda,gpu -arch=sm_100,sm_90", ("sm_90", "sm_100")),
    ('{"kind": "cuda", "arch": "sm_89"}', ("sm_89",)),
    (json.dumps({"kind": "cuda", "arch": "sm_90", "thread_warp_size": 32}), ("sm_90",)),
]


@pytest.mark.parametrize(("text", "arches"), CUDA)
def test_cuda(text: str, arches: tuple[str, ...]) -> None:
    t = resolve(text)
    assert isinstance(t, CudaTarget) and (t.kind, t.threads, t.features) == ("cuda", 1, ())
    assert (t.name, t.arches) == (f"cuda -arch={','.join(arches)}", arches)
    assert t == resolve(t.name) == pickle.loads(pickle.dumps(t)) == resolve(text, 4)
    assert t.tvm.kind.name == "cuda" and t.tvm.host.kind.name == "llvm"
    assert (str(t.tvm.attrs["arch"]), int(t.tvm.attrs["thread_warp_size"])) == (arches[0], 32)


def test_cuda_facts_are_what_all_architectures_have() -> None:
    small, large = gpu.ARCHITECTURES["sm_80"], gpu.ARCHITECTURES["sm_90"]
    both = resolve("cuda:sm_80,sm_90")
    assert (
        isinstance(both, CudaTarget)
        and both.facts == replace(small, l2_words=large.l2_words) != large
    )
    assert int(both.tvm.attrs["max_shared_memory_per_block"]) == 163 * 1024
    least = gpu.common(["sm_89", "sm_80"])
    assert least == gpu.Architecture(108, 99 * 1024, 100 * 1024, 1536, 64, 512, 4.0)


def test_cuda_means_the_gpu_here_or_the_common_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "devices", lambda: ())
    assert resolve("cuda").name == "cuda -arch=sm_80,sm_90"
    monkeypatch.setattr(gpu, "devices", lambda: (gpu.Gpu("a card", "sm_89", 1),))
    assert resolve("cuda").name == "cuda -arch=sm_89"


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("toaster", "unknown target 'toaster'; expected native, avx2, avx512, aarch64, cuda:sm_90"),
        ("", "unknown target ''; expected native"),
        ("avx3", "unknown target 'avx3'"),
        ("AVX2", "unknown target 'AVX2'"),
        ("-mcpu=znver3", "unknown target '-mcpu=znver3'"),
        ("[1]", "unknown target '[1]'"),
        ("cuda:sm_1", "unknown CUDA architecture 'sm_1'; expected one of sm_75, sm_80"),
        ("cuda:", "unknown CUDA architecture ''"),
        ("cuda:sm_90,sm_90a", "unknown CUDA architecture 'sm_90a'"),
        ("cuda -mcpu=sm_90", "unknown attribute 'mcpu'; expected arch"),
        ("cuda -arch", "target 'cuda -arch': cannot read '-arch', expected -key=value"),
        ("llvm mcpu=znver3", "target 'llvm mcpu=znver3': cannot read 'mcpu=znver3', expected -key"),
        ("llvm -mcpu", "target 'llvm -mcpu': cannot read '-mcpu', expected -key=value"),
        ("llvm -mcpu=", "target 'llvm -mcpu=': cannot read '-mcpu='"),
        ("llvm -kind=cuda", "target kind 'cuda' is not supported; expected 'llvm' (a CPU)"),
        ("llvm -mcpu=nonsense", "unknown CPU 'nonsense' for x86_64-linux-gnu"),
        ("llvm -mattr=+avx2,-avx3", "unknown feature 'avx3' for x86_64-linux-gnu"),
        ("llvm -mattr=avx2", "unknown feature 'avx2' for x86_64-linux-gnu"),
        (f"{ARM} -mattr=+avx2", "unknown feature 'avx2' for aarch64-linux-gnu"),
        (f"{ARM} -mcpu=znver3", "unknown CPU 'znver3' for aarch64-linux-gnu"),
        (f"{X86} -mcpu=neoverse-n1", "unknown CPU 'neoverse-n1' for x86_64-linux-gnu"),
        ("llvm -opt-level=3", "unknown attribute 'opt-level'; expected ('kind', 'mtriple', 'mcpu'"),
        ('{"kind":', "target is not valid JSON (Expecting value: line 1 column 9 (char 8)):"),
        ("{}", "target kind None is not supported; expected 'llvm' (a CPU)"),
        ('{"kind": "cuda"}', "arch is '', expected text such as sm_90"),
        ('{"kind": "cuda", "arch": 90}', "arch is 90, expected text such as sm_90"),
        ('{"kind": "rocm"}', "target kind 'rocm' is not supported"),
        (spec(vscale=2), "unknown attribute 'vscale'"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(TargetError) as caught:
        resolve(text, 1)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entries",
    [{"mcpu": 3}, {"mcpu": ["znver3"]}, {"mtriple": 3}, {"mattr": "-avx2"}, {"mattr": [1]}],
    ids=str,
)
def test_refused_types(entries: dict[str, object]) -> None:
    with pytest.raises(TargetError):
        resolve(spec(**entries), 1)


TRIPLE = """
from convtvm.errors import TargetError
from convtvm.machine.targets import resolve
try:
    resolve("llvm -mtriple=toaster-linux-gnu", 1)
except TargetError as error:
    print(error)
"""


def test_unknown_triple() -> None:
    command = [sys.executable, "-c", TRIPLE]
    done = subprocess.run(command, env=without_torch(), capture_output=True, text=True)
    assert done.returncode == 0 and "toaster" in done.stdout, done.stderr


@pytest.mark.parametrize("threads", [0, -1])
def test_refused_threads(threads: int) -> None:
    with pytest.raises(TargetError, match=f"threads is {threads}, expected a whole number"):
        resolve("avx2", threads)


# ---- threads -------------------------------------------------------------------------------------


def test_threads_are_the_physical_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "physical_cores", lambda: 7)
    assert resolve("avx2").threads == 7
