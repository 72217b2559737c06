"""The run time: load a kernel library, choose a kernel within limits, run it.

Needs apache-tvm-ffi and libtvm_runtime.so only; imports no compiler, compute, schedule or tuner.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import platform
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

from convtvm import manifest as manifests
from convtvm.cpu import missing_features
from convtvm.errors import (
    ArrayError,
    EnvironmentProblem,
    LibraryError,
    NoCandidate,
    UnknownWorkload,
)
from convtvm.manifest import Kernel, Manifest
from convtvm.reference import aligned_empty
from convtvm.workload import ConvWorkload


@dataclass(frozen=True)
class Candidate:
    """One way the library can compute a workload; times in seconds, error relative to the largest
    output, both None if they were never measured."""

    algorithm: str
    workspace_bytes: int
    run_secs: float | None
    max_error: float | None
    decisions: str

    def __str__(self) -> str:
        time = "never measured" if self.run_secs is None else f"{self.run_secs * 1e3:.4g} ms"
        error = "unknown" if self.max_error is None else f"{self.max_error:.1e}"
        return f"{self.algorithm} ({time}, workspace {self.workspace_bytes} B, error {error})"


def load(path: str | Path, threads: int | None = None) -> KernelLibrary:
    """Open the library at `path`; `threads` defaults to the number it was compiled for.

    Raises LibraryError for a file that is not an intact library or needs CPU features that this
    machine lacks, before any of its code runs.
    """
    content, manifest = manifests.read(path)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise LibraryError(f"threads is {threads!r}, expected a whole number of 1 or more")
    machine = platform.machine()
    if f"-mtriple={machine}" not in manifest.target:
        raise LibraryError(
            f"{path} is compiled for {manifest.target!r}; this machine is {machine}; "
            "compile it here with --target native"
        )
    missing = missing_features(manifest.features)
    if missing:
        raise LibraryError(
            f"{path} is compiled for {manifest.target!r}; this CPU lacks {', '.join(missing)}; "
            "compile it here with --target native"
        )
    return KernelLibrary(content, manifest, threads)


class KernelLibrary:
    """Compiled kernels of several workloads in one file."""

    def __init__(self, content: bytes, manifest: Manifest, threads: int | None = None) -> None:
        self._content, self.manifest = content, manifest
        self.threads = threads or manifest.threads
        self.problems: list[str] = []
        _start_runtime(self.threads)
        # A private copy in memory: the file may be replaced while loaded, and the dynamic loader
        # would answer a second load of the same path with the old code.
        self._memory = os.memfd_create("convtvm-library")
        with os.fdopen(os.dup(self._memory), "wb") as file:
            file.write(content)
        loader = tvm_ffi.get_global_func("ffi.Module.load_from_file.so")
        try:
            self._module = loader(f"/proc/self/fd/{self._memory}", "so")
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1:]
            raise LibraryError(f"the library cannot be loaded: {''.join(reason)}") from None
        self._kernels: dict[ConvWorkload, list[Kernel]] = {}
        for key, name in manifest.workloads.items():
            found = [k for k in manifest.kernels if k.workload == key]
            self._kernels[ConvWorkload.parse(f'{key}n"{name}"' if name else key)] = found

    def __del__(self) -> None:
        if hasattr(self, "_module"):
            del self._module
        if hasattr(self, "_memory"):
            os.close(self._memory)

    @property
    def layout(self) -> str:
        """NCHW or NHWC, of data and output."""
        return self.manifest.layout

    @property
    def target(self) -> str:
        return self.manifest.target

    @property
    def workloads(self) -> list[ConvWorkload]:
        return list(self._kernels)

    def export(self, path: str | Path) -> None:
        """Write the library file, whole or not at all. Raises LibraryError if that is
        impossible."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_bytes(self._content)
            shutil.copymode(path, partial) if path.exists() else partial.chmod(0o755)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True) if partial.parent.is_dir() else None
            raise LibraryError(f"cannot write library {path}: {error.strerror}") from None

    def candidates(self, workload: ConvWorkload) -> list[Candidate]:
        """All compiled ways to compute `workload`, best first. Raises UnknownWorkload."""
        return [_candidate(k) for k in self._find(workload)]

    def plan(
        self,
        workload: ConvWorkload,
        weight: Any,
        bias: Any = None,
        algorithm: str | None = None,
        workspace_limit: int | None = None,
        max_error: float | None = None,
    ) -> Plan:
        """Choose a kernel and pack `weight` [oc, ic/groups, kh, kw] for it, once.

        The fastest measured kernel within `workspace_limit` bytes and `max_error` (relative to the
        largest output); an unmeasured error counts as no promise. `algorithm` restricts the choice
        to a name or family. `bias` is [oc]. Raises UnknownWorkload, NoCandidate or ArrayError.
        """
        kernels = self._find(workload)
        within = [k for k in kernels if _within(k, algorithm, workspace_limit, max_error)]
        if not within:
            limits = [
                f"{name} {value}"
                for name, value in (
                    ("algorithm", algorithm),
                    ("workspace limit", workspace_limit),
                    ("max error", max_error),
                )
                if value is not None
            ]
            offers = "; ".join(str(_candidate(k)) for k in kernels)
            raise NoCandidate(
                f"no kernel of {workload} meets {', '.join(limits)}; there are: {offers}"
            )
        return Plan(self, workload, within[0], weight, bias)

    def _find(self, workload: ConvWorkload) -> list[Kernel]:
        found = self._kernels.get(workload)
        if found is None:
            nearest = min(self._kernels, key=lambda w: _distance(w, workload), default=None)
            hint = f"; the nearest it has is {nearest}" if nearest else ""
            raise UnknownWorkload(f"the library has no kernel for {workload}{hint}")
        return found

    def _function(self, name: str) -> Any:
        return self._module[name]


class Plan:
    """A chosen kernel with its packed weight; call it with data, from any number of threads."""

    def __init__(
        self, library: KernelLibrary, workload: ConvWorkload, kernel: Kernel, weight: Any, bias: Any
    ) -> None:
        self.library, self.workload, self._kernel = library, workload, kernel
        self._data_shape = workload.data_shape(library.layout)
        self._out_shape = workload.out_shape(library.layout)
        self._data_bytes = 4 * math.prod(self._data_shape)
        self._out_bytes = 4 * math.prod(self._out_shape)
        self._run = library._function(kernel.function)
        weights = _as_array(weight, workload.weight_shape, "weight")
        self._packed_array = aligned_empty(kernel.packed_shape, np.float32)
        self._packed = tvm_ffi.from_dlpack(self._packed_array)
        _pool.use(library.threads)
        library._function(kernel.pack)(tvm_ffi.from_dlpack(weights), self._packed)
        zeros = np.zeros(workload.oc, np.float32)
        self._bias_array = zeros if bias is None else _as_array(bias, (workload.oc,), "bias").copy()
        self._bias = tvm_ffi.from_dlpack(self._bias_array)

    @property
    def algorithm(self) -> str:
        return self._kernel.algorithm

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of a call, in bytes; TVM's pool keeps it for the next call."""
        return self._kernel.workspace_bytes

    @property
    def run_secs(self) -> float | None:
        """Seconds a call, as measured while tuning."""
        return self._kernel.run_secs

    @property
    def max_error(self) -> float | None:
        return self._kernel.max_error

    def __call__(self, data: Any, out: Any = None) -> Any:
        """The convolution of `data`, as the same kind of tensor; with `out`, into it, allocating
        nothing.

        Raises ArrayError if a shape, dtype or device does not fit.
        """
        if isinstance(data, np.ndarray):
            source = _as_array(data, self._data_shape, "data")
            result = np.empty(self._out_shape, np.float32) if out is None else out
            tensor = tvm_ffi.from_dlpack(source)
        else:
            tensor = _as_tensor(data, self._data_shape, "data")
            result = _empty_like(data, self._out_shape) if out is None else out
        target = _writable(result, self._out_shape)
        if out is not None:
            _check_apart(tensor, target, self._data_bytes, self._out_bytes)
        _pool.use(self.library.threads)
        self._run(tensor, self._packed, self._bias, target)
        return result


# ---- choice --------------------------------------------------------------------------------------


def _candidate(k: Kernel) -> Candidate:
    return Candidate(k.algorithm, k.workspace_bytes, k.run_secs, k.max_error, k.decisions)


def _within(
    kernel: Kernel, algorithm: str | None, workspace_limit: int | None, max_error: float | None
) -> bool:
    if algorithm is not None and algorithm not in (
        kernel.algorithm,
        kernel.algorithm.partition(":")[0],
    ):
        return False
    if workspace_limit is not None and kernel.workspace_bytes > workspace_limit:
        return False
    return max_error is None or (kernel.max_error is not None and kernel.max_error <= max_error)


def _distance(a: ConvWorkload, b: ConvWorkload) -> float:
    """How different two problems are: sizes count by ratio, a different kernel or stride counts
    most."""
    fields = ("n", "ic", "ih", "iw", "oc")
    sizes = sum(abs(math.log2(getattr(a, f) / getattr(b, f))) for f in fields)
    shape = ("kh", "kw", "sh", "sw", "dh", "dw", "groups", "ph", "pw")
    return sizes + 4.0 * sum(getattr(a, f) != getattr(b, f) for f in shape)


# ---- tensors -------------------------------------------------------------------------------------


def _check_shape(found: Sequence[int], expected: Sequence[int], name: str) -> None:
    if tuple(found) != tuple(expected):
        raise ArrayError(f"{name} has shape {tuple(found)}, expected {tuple(expected)}")


def _as_array(value: Any, shape: Sequence[int], name: str) -> np.ndarray:
    """`value` as a contiguous, aligned float32 array, itself if it is one already."""
    if not isinstance(value, np.ndarray):
        try:
            value = np.from_dlpack(value.detach() if hasattr(value, "detach") else value)
        except (AttributeError, TypeError, BufferError, RuntimeError) as error:
            raise ArrayError(f"{name} is no array: {error}") from None
    _check_shape(value.shape, shape, name)
    if value.dtype.kind != "f":
        raise ArrayError(f"{name} has dtype {value.dtype}, expected float32")
    array = np.require(value, np.float32, ("C_CONTIGUOUS", "ALIGNED"))
    # DLPack exports only writable arrays; the kernel reads this one.
    return array if array.flags.writeable else array.copy()


def _as_tensor(value: Any, shape: Sequence[int], name: str) -> Any:
    """`value`, a DLPack tensor on the CPU, as a tvm_ffi tensor; copied only if it is not
    contiguous."""
    if not hasattr(value, "__dlpack__"):
        raise ArrayError(
            f"{name} is a {type(value).__name__}, expected an array or a DLPack tensor"
        )
    _check_shape(value.shape, shape, name)
    try:
        if hasattr(value, "is_contiguous") and not value.is_contiguous():
            value = value.contiguous()
        if hasattr(value, "detach"):
            value = value.detach()
        tensor = tvm_ffi.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise ArrayError(f"{name} cannot be exported by DLPack: {''.join(reason)}") from None
    if str(tensor.dtype) != "float32":
        raise ArrayError(f"{name} has dtype {tensor.dtype}, expected float32")
    if tensor.device.dlpack_device_type() != 1:
        raise ArrayError(f"{name} is on device {tensor.device}, expected the CPU")
    return tensor


def _writable(value: Any, shape: Sequence[int]) -> Any:
    """`out` as a tvm_ffi tensor over the caller's memory; never a copy."""
    if isinstance(value, np.ndarray):
        _check_shape(value.shape, shape, "out")
        flags = value.flags
        if value.dtype != np.float32 or not (
            flags.c_contiguous and flags.aligned and flags.writeable
        ):
            raise ArrayError(
                f"out is {value.dtype} with strides {value.strides}, expected a writable, "
                "C-contiguous float32 array"
            )
        return tvm_ffi.from_dlpack(value)
    if hasattr(value, "is_contiguous") and not value.is_contiguous():
        raise ArrayError("out is not contiguous, expected a contiguous float32 tensor")
    return _as_tensor(value, shape, "out")


def _check_apart(source: Any, target: Any, source_bytes: int, target_bytes: int) -> None:
    """Refuse an output that a kernel would write while it still reads the data."""
    start, goal = source.data_ptr(), target.data_ptr()
    if start < goal + target_bytes and goal < start + source_bytes:
        raise ArrayError("out overlaps data, expected memory of its own")


def _empty_like(data: Any, shape: Sequence[int]) -> Any:
    """An uninitialised float32 tensor of the same library as `data`."""
    if hasattr(data, "new_empty"):  # PyTorch
        return data.new_empty(tuple(shape))
    namespace = getattr(data, "__array_namespace__", None)
    if namespace is not None:
        return namespace().empty(tuple(shape), dtype=namespace().float32)
    raise ArrayError(f"cannot allocate a {type(data).__name__}; pass out=")


# ---- the TVM run time ----------------------------------------------------------------------------


@cache
def _load_runtime() -> None:
    """Make libtvm_runtime.so's symbols visible; kernels bind to them when they load."""
    spec = importlib.util.find_spec("tvm")
    folders = [os.environ.get("CONVTVM_RUNTIME_DIR", "")]
    if spec is not None and spec.origin:
        folders.append(str(Path(spec.origin).parent / "lib"))
    for folder in filter(None, folders):
        path = Path(folder) / "libtvm_runtime.so"
        if path.is_file():
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            return
    raise EnvironmentProblem(
        "libtvm_runtime.so not found; install apache-tvm==0.27.0.post1 or set CONVTVM_RUNTIME_DIR"
    )


def _start_runtime(threads: int) -> None:
    """Load the run time such that its pools can grow to `threads` threads."""
    # TVM reads this when a pool starts, and a pool never grows past the number it started with.
    wanted = max(threads, os.cpu_count() or 1, int(os.environ.get("TVM_NUM_THREADS", "0") or 0))
    os.environ["TVM_NUM_THREADS"] = str(wanted)
    _load_runtime()


class _Pool(threading.local):
    """The calling thread's pool of workers: TVM keeps one for every thread that runs kernels."""

    def __init__(self) -> None:
        self._threads = 0

    def use(self, threads: int) -> None:
        """Let parallel kernels of this thread run on `threads` threads."""
        if threads != self._threads:
            all_cores = 0  # TVM's affinity mode that prefers big cores
            tvm_ffi.get_global_func("runtime.config_threadpool")(all_cores, threads)
            self._threads = threads


_pool = _Pool()
