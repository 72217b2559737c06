"""A kernel library: loaded from one file after everything about it is checked."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from convtvm.dispatch import gpu, runtime, selection, suitability
from convtvm.dispatch import manifest as manifests
from convtvm.dispatch.copies import Shared
from convtvm.dispatch.manifest import Kernel, Manifest
from convtvm.dispatch.plan import Code, Plan, SlicedPlan
from convtvm.dispatch.selection import Candidate, Choice, Wish
from convtvm.dispatch.threads import Team
from convtvm.errors import (
    ConvtvmError,
    LibraryError,
    NoCandidate,
    UnknownWorkload,
    WorkloadError,
    check_number,
)
from convtvm.files import write_whole
from convtvm.problem.activations import Activation
from convtvm.problem.reference import random_inputs
from convtvm.problem.workload import ConvWorkload

_MEASURED = 4  # candidates that policy `measure` times


def load(path: str | Path, threads: int | None = None) -> KernelLibrary:
    """Open the library at `path`; its kernels run on at most `threads` threads, by default the
    number it was compiled for. One compiled for a single thread stays on that.

    Of several targets the first that this machine can run counts. Raises LibraryError for a file
    that is not an intact library or needs CPU features that this machine lacks, before any of its
    code runs.
    """
    if threads is not None:
        threads = check_number("threads", threads, least=1, whole=True, kind=LibraryError)
    content, targets = manifests.read(path)
    suitability.check(targets, path)
    library = KernelLibrary(content, targets, threads)
    library.open()
    return library


class KernelLibrary(Shared):
    """Compiled kernels of several workloads in one file, for one target or several.

    `manifests` are those of the targets, the best first; `manifest` is the first that this machine
    can run. The code is opened when first needed, so a library for another machine can be made and
    exported.
    """

    def __init__(
        self, content: bytes, targets: Sequence[Manifest], threads: int | None = None
    ) -> None:
        self._content, self.manifests = content, list(targets)
        self.manifest = manifest = next(
            (m for m in targets if not suitability.objection(m)), targets[0]
        )
        self.threads = 1 if manifest.threads == 1 else threads or manifest.threads
        self.problems: list[str] = []
        self._measured: dict[str, float] = {}  # function -> seconds, by policy `measure`
        self._kernels: dict[ConvWorkload, list[Kernel]] = {}
        for key, name in manifest.workloads.items():
            found = [k for k in manifest.kernels if k.workload == key]
            self._kernels[ConvWorkload.parse(f'{key}n"{name}"' if name else key)] = found

    @property
    def content(self) -> bytes:
        """The library file."""
        return self._content

    def __reduce__(self) -> tuple[Any, ...]:
        # The file's content, nothing that was loaded; the other process checks it as `load` does.
        return _unpickled, (self._content, self.manifests, self.threads, self.problems)

    def open(self) -> None:
        """Load the code. Raises LibraryError if this machine cannot run it."""
        self._image  # noqa: B018

    @cached_property
    def _image(self) -> runtime.Image:
        suitability.check(self.manifests, "the library")
        runtime.start()
        if self.manifest.on_gpu:
            gpu.start()
        return runtime.Image(self._content, self.threads)

    def join(self, team: Team) -> None:
        """Let kernels compute on the threads of another library's OpenMP from now on, on at most as
        many as that gives its own loops, and alone within one of these. A child after a fork uses
        workers of its own. Opens the code; raises LibraryError as `open` does."""
        self._image.join(team)

    def _make_plan(self, workload: ConvWorkload, choice: Choice, *arguments: Any) -> Plan:
        kind = gpu.GpuPlan if self.manifest.on_gpu else Plan
        code = Code(self.function, self.layout, self._image.prepare)
        return kind(code, workload, choice, *arguments)

    @property
    def layout(self) -> str:
        """NCHW or NHWC, of data and output."""
        return self.manifest.layout

    @property
    def target(self) -> str:
        """The one whose kernels run here, the first if none does."""
        return self.manifest.target

    @property
    def workloads(self) -> list[ConvWorkload]:
        return list(self._kernels)

    def export(self, path: str | Path) -> None:
        """Write the library file, whole or not at all. Raises LibraryError if that is
        impossible."""
        try:
            write_whole(path, self._content, mode=0o777)
        except OSError as error:
            raise LibraryError(f"cannot write library {path}: {error.strerror}") from None
        except (TypeError, ValueError) as error:  # no path; a path with a zero byte
            raise LibraryError(f"cannot write library {path!r}: {error}") from None

    def candidates(self, workload: ConvWorkload | str) -> list[Candidate]:
        """All compiled ways to compute `workload`, best first. Raises UnknownWorkload."""
        return [Candidate.of(k) for k in self.kernels(workload)]

    def kernels(self, workload: ConvWorkload | str) -> list[Kernel]:
        """All kernels of `workload`, for `plan_by`, best first. Raises UnknownWorkload."""
        return self._find(self._workload(workload))

    def plan(
        self,
        workload: ConvWorkload | str,
        weight: Any,
        bias: Any = None,
        algorithm: str | None = None,
        workspace_limit: int | None = None,
        max_error: float | None = None,
        activation: str | tuple[float, float] | None = None,
        residual: bool = False,
        policy: str = "logged",
    ) -> Plan | SlicedPlan:
        """Choose a kernel and pack `weight` [oc, ic/groups, kh, kw] for it, once.

        `workload` is one, its text, or its name in the library. The fastest kernel within
        `workspace_limit` bytes and `max_error` (relative to the largest output, on data of ordinary
        size); an unmeasured error counts as no promise. `algorithm` restricts the choice to a name
        or family. `bias` is [oc]. `activation` is relu, relu6, the (lowest, highest) value
        of an output, or a function such as silu, gelu or leaky_relu:0.1; with `residual`, calls
        take a tensor that is added before it.

        `policy` says whose time counts: `logged`, measured while tuning; `predicted`, with
        predictions where nothing was measured; `measure`, the candidates that lead are timed now,
        once in the life of the library. A batch that the library lacks runs in slices of those it
        has. Raises UnknownWorkload, NoCandidate or ArrayError.
        """
        workload = self._workload(workload)
        wish = Wish(algorithm, workspace_limit, max_error, policy)
        if not isinstance(residual, (bool, np.bool_)):
            raise ConvtvmError(
                f"residual is a {type(residual).__name__}, expected True or False; its tensor is "
                "given to each call: plan(x, residual=tensor)"
            )
        ending = Activation.of(activation)
        choices = self._choices(workload, wish)
        parts = {
            w: self._make_plan(w, choice, weight, bias, ending, residual)
            for w, choice in dict(choices).items()
        }
        plans = [parts[w] for w, _ in choices]
        return plans[0] if len(plans) == 1 else SlicedPlan(workload, plans)

    def plan_by(
        self, kernel: Kernel, workload: ConvWorkload, weight: Any, bias: Any = None
    ) -> Plan:
        """The plan of a kernel of this library that the caller has chosen."""
        return self._make_plan(workload, Choice.of(kernel), weight, bias)

    def function(self, name: str) -> Any:
        """The compiled function `name`, a kernel or a packing."""
        return self._image[name]

    def _choices(self, workload: ConvWorkload, wish: Wish) -> list[tuple[ConvWorkload, Choice]]:
        """The kernel of the workload; or of each slice, where only its batch size is unknown."""
        if workload in self._kernels:
            return [(workload, self._choose(workload, wish))]
        slices = {
            w.n: w
            for w in self._kernels
            if w.n < workload.n and replace(w, n=workload.n) == workload
        }
        allowed = {}
        for n, w in slices.items():
            with contextlib.suppress(NoCandidate):
                allowed[n] = self._choose(w, wish)
        if slices and not allowed:
            self._choose(next(iter(slices.values())), wish)  # raises NoCandidate
        sizes = selection.batches(workload.n, {n: c.seconds for n, c in allowed.items()})
        if not sizes:
            raise self._unknown(workload)
        return [(slices[n], allowed[n]) for n in sizes]

    def _choose(self, workload: ConvWorkload, wish: Wish) -> Choice:
        kernels = self._find(workload)
        if wish.policy == "measure":
            leading = [k for k in kernels if wish.objection(k) is None][:_MEASURED]
            for kernel in leading:
                if kernel.function not in self._measured:
                    self._measured[kernel.function] = self._time(workload, kernel)
        return selection.choose(workload, kernels, wish, self._measured)

    def _time(self, workload: ConvWorkload, kernel: Kernel) -> float:
        """Seconds a call of `kernel` takes here, on random data."""
        data, weight, _ = random_inputs(workload, 0, self.layout)
        plan = self.plan_by(kernel, workload, weight)
        out = plan(data)
        plan(data, out=out)
        secs: list[float] = []
        while len(secs) < 3 or (sum(secs) < 0.02 and len(secs) < 100):
            started = time.perf_counter()
            plan(data, out=out)
            secs.append(time.perf_counter() - started)
        return statistics.median(secs)

    def _workload(self, given: ConvWorkload | str) -> ConvWorkload:
        """The workload that a caller means, by text too. Raises WorkloadError."""
        if isinstance(given, ConvWorkload):
            return given
        if not isinstance(given, str):
            raise WorkloadError(
                f"workload is a {type(given).__name__}, expected a ConvWorkload or its text"
            )
        named = [w for w in self._kernels if w.name == given]
        return named[0] if len(named) == 1 else ConvWorkload.parse(given)

    def _find(self, workload: ConvWorkload) -> list[Kernel]:
        found = self._kernels.get(workload)
        if found is None:
            raise self._unknown(workload)
        return found

    def _unknown(self, workload: ConvWorkload) -> UnknownWorkload:
        nearest = selection.nearest(workload, self._kernels)
        hint = f"; the nearest it has is {nearest}" if nearest else ""
        return UnknownWorkload(f"the library has no kernel for {workload}{hint}")


def _unpickled(
    content: bytes, targets: Sequence[Manifest], threads: int, problems: list[str]
) -> KernelLibrary:
    library = KernelLibrary(content, targets, threads)
    library.problems = problems
    return library
