"""Where a graph's convolutions get their kernels: libraries, compiled when a graph needs them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convtvm.dispatch import KernelLibrary, Plan, SlicedPlan
from convtvm.dispatch.copies import Shared
from convtvm.errors import ConvtvmError, NoCandidate, UnknownWorkload
from convtvm.library.remembered import compile, log_digests, place, shipped_logs
from convtvm.problem.activations import Activation
from convtvm.problem.dtypes import numpy_dtype
from convtvm.problem.workload import LAYOUTS, ConvWorkload, channel_block
from convtvm.torch.options import Options
from convtvm.torch.team import pytorchs

AnyPlan = Plan | SlicedPlan
# What a kernel in TF32 may lose where PyTorch permits cuDNN to use it.
_TF32_ERROR = 2e-3


@dataclass(frozen=True)
class Need:
    """What a convolution of a graph asks of a kernel; `activation` as of `KernelLibrary.plan`.

    With a `dynamic` batch the workload's is the one that the graph was captured with. The pixels of
    a linear layer are `rows`: those of all images are one image's, unless the batch is dynamic.
    """

    workload: ConvWorkload
    layout: str
    device: str = "cpu"
    activation: str | tuple[float, float] | None = None
    adds: bool = False
    dynamic: bool = False
    rows: bool = False

    @property
    def workloads(self) -> list[ConvWorkload]:
        """Those to compile: for a dynamic batch one image too, which any batch can be cut into."""
        single = replace(self.workload, n=1)
        return list(dict.fromkeys([self.workload, *([single] if self.dynamic else [])]))

    @property
    def merges(self) -> bool:
        """Whether all images are one row of pixels."""
        return self.rows and not self.dynamic

    @property
    def is_blocked(self) -> bool:
        """Whether the output is in blocks of channels."""
        return channel_block(self.layout) > 0

    @property
    def epilogue(self) -> str:
        return Activation.of(self.activation).epilogue(self.adds)


class Kernels(Shared):
    """The libraries for one set of options; with a `library` given, that one and no other.

    A copy is the same one; a pickle has the libraries, or for those that graphs of a process share
    the options.
    """

    def __init__(self, options: Options, library: KernelLibrary | None = None) -> None:
        self.options, self._closed = options, library is not None
        self.libraries: list[KernelLibrary] = []
        if library is not None:
            self._add(library)
        self._epilogues: dict[tuple[KernelLibrary, ConvWorkload], set[str]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        if _shared.get(self.options) is self:
            return shared, (self.options,)
        return _unpickled, (self.options, self.libraries, self._epilogues, self._closed)

    def provide(self, needs: Iterable[Need]) -> None:
        """Compile what is missing. Raises ConvtvmError."""
        if self._closed:
            return
        with self._lock:
            missing = [need for need in needs if not self._has(need)]
            for device, layout in dict.fromkeys((n.device, n.layout) for n in missing):
                self._compile([n for n in missing if (n.device, n.layout) == (device, layout)])

    def close(self) -> None:
        """Compile nothing from now on."""
        self._closed = True

    @property
    def is_open(self) -> bool:
        """Whether what is missing is compiled."""
        return not self._closed

    @property
    def threads(self) -> int:
        """Of a kernel for the CPU."""
        return self.options.threads or torch.get_num_threads()

    def target(self, device: str) -> tuple[str, int | None]:
        """What to compile for, and for how many threads."""
        return ("cuda", None) if device == "cuda" else ("native", self.threads)

    @property
    def logs(self) -> list[str]:
        """The files of records that there are, with our own of what was tuned."""
        given = shipped_logs() if self.options.logs is None else self.options.logs
        own = _own_log() if self.options.tune_seconds > 0 else ""
        return [str(path) for path in given] + [own] * bool(own and Path(own).exists())

    def identity(self, devices: frozenset[str]) -> Any:
        """What a graph's kernels depend on, as JSON values; None if that cannot be told."""
        options, facts = self.options, list[Any]()
        if self._closed:
            contents = [getattr(library, "content", None) for library in self.libraries]
            facts = [content and sha256(content).hexdigest() for content in contents]
        else:
            facts = [place(*self.target(device)) for device in sorted(devices)]
            facts.append(log_digests(self.logs if options.tune_seconds > 0 else options.logs))
        if None in facts:
            return None
        limits = options.max_error, options.workspace_limit, options.policy, options.tune_seconds
        return [*facts, *limits, "cuda" in devices and _permits_tf32()]

    def plan(self, need: Need, n: int, weight: Any, bias: Any) -> tuple[AnyPlan, str]:
        """A plan for a batch of `n`, and its layout. Raises UnknownWorkload or NoCandidate."""
        workload = replace(need.workload, n=n)
        problem: ConvtvmError = UnknownWorkload(f"no library has kernels for {workload}")
        for library in self._fitting(need, workload):
            for max_error in self._errors(need):
                try:
                    made = library.plan(
                        workload,
                        weight,
                        bias,
                        workspace_limit=self.options.workspace_limit,
                        max_error=max_error,
                        activation=need.activation,
                        residual=need.adds,
                        policy=self.options.policy,
                    )
                    return made, library.layout
                except (NoCandidate, UnknownWorkload) as error:
                    problem = error
        raise problem

    def fuses(self, need: Need) -> bool:
        """Whether kernels end with a function as the need's; bounds can follow any kernel."""
        if not Activation.of(need.activation).function:
            return True
        return any(
            kernel.workload == need.workload.key and need.epilogue in kernel.epilogues
            for library in self._fitting(need, need.workload)
            for kernel in library.manifest.kernels
        )

    def objection(self, need: Need) -> str:
        """Why no kernel serves the need; empty if one does."""
        try:
            dtype = numpy_dtype(need.workload.dtype)
            weight = np.zeros(need.workload.weight_shape, dtype)
            self.plan(need, need.workload.n, weight, None)
        except (NoCandidate, UnknownWorkload) as error:
            return str(error)
        return ""

    def _fitting(self, need: Need, workload: ConvWorkload) -> list[KernelLibrary]:
        """Libraries that may serve it: of this very batch first, of the same layout before others
        (of rows and in blocks of channels no other), the newest before older ones."""
        either = need.layout in LAYOUTS and not need.rows
        layouts = LAYOUTS if either else (need.layout,)
        found = [
            library
            for library in reversed(self.libraries)
            if library.manifest.on_gpu == (need.device == "cuda") and library.layout in layouts
        ]
        return sorted(
            found, key=lambda lib: (workload not in lib.workloads, lib.layout != need.layout)
        )

    def _errors(self, need: Need) -> Sequence[float | None]:
        """The limits on the error to try, the widest first."""
        on_gpu = need.device == "cuda" and need.workload.dtype == "float32"
        if self.options.max_error is None and on_gpu and _permits_tf32():
            return (_TF32_ERROR, None)
        return (self.options.max_error,)

    def _has(self, need: Need) -> bool:
        on_gpu = need.device == "cuda"
        return any(
            library.layout == need.layout
            and library.manifest.on_gpu == on_gpu
            and all(need.epilogue in self._epilogues.get((library, w), ()) for w in need.workloads)
            for library in self.libraries
        )

    def _compile(self, needs: Sequence[Need]) -> None:
        """One library for needs of one device and layout."""
        epilogues: dict[ConvWorkload, set[str]] = {}
        for need in needs:
            for w in need.workloads:
                epilogues.setdefault(w, {"none"}).add(need.epilogue)
        workloads = list(epilogues)
        options, layout = self.options, needs[0].layout
        target, threads = self.target(needs[0].device)
        tuned = options.tune_seconds > 0
        library = compile(
            workloads,
            target,
            threads=threads,
            logs=self._tuned(workloads, target, layout) if tuned else options.logs,
            layout=layout,
            keep=options.keep,
            epilogues={w: sorted(names) for w, names in epilogues.items()},
        )
        self._add(library)
        if options.logs is not None:
            for problem in library.problems:
                warnings.warn(f"convtvm: {problem}", stacklevel=2)
        for w in workloads:
            self._epilogues[library, w] = epilogues[w]

    def _add(self, library: KernelLibrary) -> None:
        team = pytorchs() if self.options.workers == "pytorch" else None
        if team is not None and not library.manifest.on_gpu:
            library.join(team)
        self.libraries.append(library)

    def _tuned(self, workloads: list[ConvWorkload], target: str, layout: str) -> list[str]:
        """Logs that hold trials of these workloads too."""
        from convtvm.kernels.task import tasks_of
        from convtvm.logs import records
        from convtvm.machine.targets import resolve
        from convtvm.tuning.tuner import tune

        resolved = resolve(target, None if target == "cuda" else self.threads)
        known, _ = records.load(self.logs)
        recorded = {record.task_key for record in known if not record.error}
        missing = [
            w
            for w in workloads
            if recorded.isdisjoint(task.key for task in tasks_of([w], resolved, layout))
        ]
        if missing:
            tune(
                missing,
                resolved,
                time_limit=self.options.tune_seconds,
                log=_own_log(),
                layout=layout,
            )
        return self.logs


def _own_log() -> str:
    """The log of what was tuned for PyTorch's graphs."""
    import platformdirs

    return str(platformdirs.user_data_path("convtvm", ensure_exists=True) / "torch.jsonl")


def _permits_tf32() -> bool:
    """Whether PyTorch's own convolutions may use TF32 at this moment."""
    # `allow_tf32` raises an error where it was set by the newer name for convolutions only.
    return torch.backends.cudnn.conv.fp32_precision == "tf32"


_shared: dict[Options, Kernels] = {}


def shared(options: Options) -> Kernels:
    """The process's kernels for these options: graphs of one process share what is compiled."""
    options = replace(options, threads=options.threads or torch.get_num_threads())
    return _shared.setdefault(options, Kernels(options))


def _unpickled(
    options: Options,
    libraries: Sequence[KernelLibrary],
    epilogues: Mapping[tuple[KernelLibrary, ConvWorkload], set[str]],
    closed: bool,
) -> Kernels:
    """The same in another process. Raises LibraryError for libraries of other machines."""
    made = Kernels(options)
    for library in libraries:
        made._add(library)
    made._epilogues.update(epilogues)
    made._closed = closed
    return made
