"""Targets: what a kernel is compiled for, from a short name, a TVM target string or JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm.target import Target, codegen

from convtvm.errors import TargetError, check_number
from convtvm.machine import cpu, gpu
from convtvm.machine.cpu import host_features, physical_cores

# Short name -> TVM target, for machines other than this one.
NAMED: dict[str, dict[str, Any]] = {
    "avx2": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
    "avx512": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v4"},
    "aarch64": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]},
}
_SPEC_KEYS = ("kind", "mtriple", "mcpu", "mattr")
MOST_THREADS = 1024  # as the launcher of parallel loops has workers for
_ARCHITECTURES = ("x86_64", "aarch64")
_X86_TRIPLE = "x86_64-linux-gnu"


# What LLVM is told of x86 CPUs besides their features. Its cost model likes gathers and scatters,
# which take as long as single elements on most of them: shuffles of whole vectors are faster.
_TUNING = ("+prefer-no-gather", "+prefer-no-scatter")

# What TVM itself writes into a CUDA target and what follows from the architecture anyway.
_CUDA_FACTS = {
    "keys",
    "tag",
    "host",
    "libs",
    "max_num_threads",
    "max_threads_per_block",
    "max_shared_memory_per_block",
    "thread_warp_size",
    "registers_per_block",
    "l2_cache_size_bytes",
}


@dataclass(frozen=True)
class CompileTarget:
    """A CPU to compile for, or by its subclass CudaTarget a GPU.

    `name` is the canonical text that logs and manifests carry; `features` are the CPU features that
    the compiled code may use, in LLVM's names; `lanes` counts fp32 lanes of a vector register.
    """

    name: str
    threads: int
    lanes: int
    registers: int
    features: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The kind of device, which decides about templates: `cpu` or `cuda`."""
        return "cpu"

    @property
    def spec(self) -> dict[str, Any]:
        """The TVM target as a dictionary, without host-specific attributes."""
        return _spec_of_name(self.name)

    @property
    def options(self) -> dict[str, Any]:
        """All that LLVM is told: `spec`, and how to choose among the instructions of its kind."""
        tuning = {"mattr": [*self.spec.get("mattr", ()), *_TUNING]} if self.is_x86 else {}
        return {**self.spec, **tuning}

    @property
    def tvm(self) -> Target:
        return Target({**self.options, "num-cores": self.threads})

    @property
    def host(self) -> Target:
        """The CPU that runs the code around the kernels: on a CPU the target itself."""
        return self.tvm

    def device_name(self) -> str:
        """What this machine has to run the code on, by its marketing name."""
        return cpu.device_name()

    @property
    def is_x86(self) -> bool:
        return self.spec["mtriple"].startswith("x86_64")


@dataclass(frozen=True)
class CudaTarget(CompileTarget):
    """NVIDIA GPUs to compile for, with machine code for each architecture of `arches`.

    The host code around the kernels needs no more than any CPU of its kind has. `threads` is 1:
    of the host's threads only the calling one works. `lanes` are the floats of the widest load.
    """

    arches: tuple[str, ...]

    @property
    def kind(self) -> str:
        return "cuda"

    def device_name(self) -> str:
        return gpu.devices()[0].name if gpu.devices() else "no GPU"

    @property
    def facts(self) -> gpu.Architecture:
        """What kernels may use: of several architectures the least."""
        return gpu.common(self.arches)

    @property
    def spec(self) -> dict[str, Any]:
        return {"kind": "cuda", "arch": self.arches[0]}

    @property
    def host(self) -> Target:
        return Target({"kind": "llvm", "mtriple": f"{platform.machine()}-linux-gnu"})

    @property
    def tvm(self) -> Target:
        limits = {
            "max_threads_per_block": self.facts.max_threads,
            "max_shared_memory_per_block": self.facts.shared_bytes,
            "thread_warp_size": self.facts.warp,
        }
        return Target({**self.spec, **limits}, host=self.host)


def resolve(text: str = "native", threads: int | None = None) -> CompileTarget:
    """The target that `text` names: native, a name of `NAMED`, `llvm -mcpu=...`, `cuda`,
    `cuda:sm_80,sm_90`, or TVM's JSON.

    Plain `cuda` is the GPU here; without one, all architectures of `gpu.COMMON`. Raises TargetError
    for a target that is unknown, of another kind or not built into this TVM.
    """
    threads = physical_cores() if threads is None else threads
    threads = check_number("threads", threads, least=1, whole=True, kind=TargetError)
    if threads > MOST_THREADS:
        raise TargetError(f"threads is {threads}, expected 1 to {MOST_THREADS}")
    if not isinstance(text, str):
        raise TargetError(f"target is {text!r}, expected text such as native or avx2")
    arches = _cuda_arches(text.strip())
    if arches:
        return _cuda(arches)
    spec = _parse(text.strip())
    spec.setdefault("mtriple", _X86_TRIPLE)
    processor, triple = spec.get("mcpu", ""), spec["mtriple"]
    if triple.split("-")[0] not in _ARCHITECTURES:  # LLVM aborts on one that it does not know
        known = ", ".join(f"{name}-..." for name in _ARCHITECTURES)
        raise TargetError(f"target {text!r}: unsupported triple {triple!r}, expected {known}")
    if processor and not codegen.llvm_is_valid_cpu(processor, triple):
        raise TargetError(
            f"target {text!r}: unknown CPU {processor!r} for {triple}; `llc -mcpu=help` lists them"
        )
    _check_attributes(text, spec)
    features = _features(spec)
    lanes, registers = _vector_unit(features, triple)
    return CompileTarget(_name_of_spec(spec), threads, lanes, registers, features)


def resolve_several(
    wanted: str | CompileTarget | Sequence[str | CompileTarget], threads: int | None = None
) -> list[CompileTarget]:
    """The targets of one library, the widest vectors first; as text, short names with commas.

    Raises TargetError as `resolve` does, and if they are not CPUs of one kind of machine.
    """
    if isinstance(wanted, str):
        names = [name.strip() for name in wanted.split(",")]
        wanted = names if {*names} <= {"native", *NAMED} else [wanted]
    elif isinstance(wanted, CompileTarget):
        wanted = [wanted]
    found = [t if isinstance(t, CompileTarget) else resolve(t, threads) for t in wanted]
    found = list({t.name: t for t in found}.values())
    machines = {(t.kind, t.spec.get("mtriple"), t.threads) for t in found}
    if not found or len(machines) > 1 or (len(found) > 1 and found[0].kind != "cpu"):
        listed = "; ".join(f"{t.name} with {t.threads} threads" for t in found) or "none"
        raise TargetError(
            f"targets of one library: found {listed}; expected CPUs of one kind of machine with "
            "one number of threads, such as avx2,avx512"
        )
    return sorted(found, key=lambda t: (t.lanes, t.registers, len(t.features)), reverse=True)


def is_near(name: str, target: CompileTarget) -> bool:
    """Whether decisions tuned for the target called `name` suit `target`: both are of one kind,
    with vectors as wide and as many registers. What is no target here is not near."""
    return _family(name) == (target.kind, target.lanes, target.registers)


@cache
def _family(name: str) -> tuple[str, int, int] | None:
    try:
        found = resolve(name, threads=1)
    except TargetError:
        return None
    return found.kind, found.lanes, found.registers


def _features(spec: dict[str, Any]) -> tuple[str, ...]:
    """The CPU features of a target in LLVM's names."""
    return tuple(sorted(str(f) for f in codegen.llvm_get_cpu_features(Target(spec))))


def _check_attributes(text: str, spec: dict[str, Any]) -> None:
    """Refuse features that LLVM does not know: it would ignore them with a warning."""
    attributes = spec.get("mattr", [])
    if not attributes:
        return
    signed = [a for a in attributes if a[:1] not in "+-" or len(a) < 2]
    names = [a[1:] for a in attributes]
    bare = {"kind": "llvm", "mtriple": spec["mtriple"], "mattr": [f"+{n}" for n in names]}
    unknown = signed or sorted(set(names) - set(_features(bare)))
    if unknown:
        raise TargetError(
            f"target {text!r}: unknown feature {unknown[0]!r} for {spec['mtriple']}, expected "
            "+name or -name; `llc -mattr=help` lists them"
        )


def _cuda_arches(text: str) -> list[str]:
    """The architectures that a CUDA target names, in its order; empty for any other target."""
    if text == "cuda":
        return [gpu.devices()[0].arch] if gpu.devices() else list(gpu.COMMON)
    if text.startswith("cuda:"):
        return text.removeprefix("cuda:").split(",")
    if text.split(" ")[0] == "cuda":
        spec = _spec_of_name(text)
    else:
        try:
            spec = json.loads(text) if text.startswith("{") else {}
        except json.JSONDecodeError:
            return []  # for the general complaint
        if spec.get("kind") != "cuda":
            return []
    unknown = sorted(set(spec) - {"kind", "arch"} - _CUDA_FACTS)
    if unknown:
        raise TargetError(f"target {text!r}: unknown attribute {unknown[0]!r}; expected arch")
    arch = spec.get("arch", "")
    if not isinstance(arch, str) or not arch:
        raise TargetError(f"target {text!r}: arch is {arch!r}, expected text such as sm_90")
    return arch.split(",")


def _cuda(arches: list[str]) -> CudaTarget:
    for arch in arches:
        if arch not in gpu.ARCHITECTURES:
            known = ", ".join(gpu.ARCHITECTURES)
            raise TargetError(f"unknown CUDA architecture {arch!r}; expected one of {known}")
    ordered = tuple(sorted(set(arches), key=gpu.age))
    facts = gpu.common(ordered)
    return CudaTarget(f"cuda -arch={','.join(ordered)}", 1, 4, facts.registers, (), ordered)


def _parse(text: str) -> dict[str, Any]:
    if text == "native":
        return _native()
    if text in NAMED:
        return dict(NAMED[text])
    known = "native, " + ", ".join(NAMED) + ", cuda:sm_90"
    if text.startswith("{"):
        try:
            spec = json.loads(text)
        except json.JSONDecodeError as error:
            raise TargetError(f"target is not valid JSON ({error}): {text}") from None
    elif text.split(" ")[0] == "llvm":
        spec = _spec_of_name(text)
    else:
        raise TargetError(
            f"unknown target {text!r}; expected {known}, 'llvm -mcpu=NAME' or TVM's JSON"
        )
    if spec.get("kind") != "llvm":
        raise TargetError(
            f"target kind {spec.get('kind')!r} is not supported; expected 'llvm' (a CPU) or 'cuda'"
        )
    unknown = sorted(set(spec) - {*_SPEC_KEYS, "num-cores", "keys", "tag"})
    if unknown:
        raise TargetError(
            f"target {text!r}: unknown attribute {unknown[0]!r}; expected {_SPEC_KEYS}"
        )
    kinds = {"mattr": list}
    for key in (k for k in _SPEC_KEYS if spec.get(k)):
        value = spec[key]
        words = value if isinstance(value, list) else [value]
        if not isinstance(value, kinds.get(key, str)) or not all(isinstance(w, str) for w in words):
            raise TargetError(f"target {text!r}: {key} is {value!r}, expected text in TVM's form")
    return {k: spec[k] for k in _SPEC_KEYS if spec.get(k)}


def _native() -> dict[str, Any]:
    """This CPU by LLVM's name, minus the features that the kernel or hypervisor hides."""
    machine = platform.machine()
    if machine == "aarch64":
        return dict(NAMED["aarch64"])
    if machine != "x86_64":
        raise TargetError(f"no native target for machine {machine!r}; name one with --target")
    cpu = str(codegen.llvm_get_system_cpu())
    spec: dict[str, Any] = {"kind": "llvm", "mtriple": _X86_TRIPLE, "mcpu": cpu}
    offered = host_features()
    hidden = sorted(
        f for f in codegen.llvm_get_cpu_features(Target(spec)) if offered.get(str(f)) is False
    )
    if hidden:
        spec["mattr"] = [f"-{f}" for f in hidden]
    return spec


def _name_of_spec(spec: dict[str, Any]) -> str:
    parts = [spec["kind"]]
    parts += [f"-{key}={spec[key]}" for key in ("mtriple", "mcpu") if spec.get(key)]
    if spec.get("mattr"):
        parts.append("-mattr=" + ",".join(spec["mattr"]))
    return " ".join(parts)


def _spec_of_name(name: str) -> dict[str, Any]:
    """The inverse of `_name_of_spec`; TVM 0.27 itself no longer reads this form."""
    kind, *options = name.split()
    attributes: dict[str, str] = {}
    for option in options:
        key, separator, value = option.lstrip("-").partition("=")
        if not option.startswith("-") or not separator or not value:
            raise TargetError(f"target {name!r}: cannot read {option!r}, expected -key=value")
        attributes[key] = value
    spec: dict[str, Any] = {"kind": kind, **attributes}
    if "mattr" in attributes:
        spec["mattr"] = attributes["mattr"].split(",")
    return spec


def _vector_unit(features: tuple[str, ...], triple: str) -> tuple[int, int]:
    """(fp32 lanes, vector registers) of a CPU with these features."""
    if triple.startswith("aarch64"):
        return 4, 32
    if "avx512f" in features:
        return 16, 32
    return (8, 16) if "avx2" in features else (4, 16)
