"""A kernel library: loaded from one file after everything about it is checked."""

from __future__ import annotations

import platform
from functools import cached_property
from pathlib import Path
from typing import Any

from convtvm import manifest as manifests
from convtvm.cpu import missing_features
from convtvm.dispatch import runtime, selection
from convtvm.dispatch.plan import Plan
from convtvm.dispatch.selection import Candidate
from convtvm.errors import LibraryError, UnknownWorkload
from convtvm.files import write_whole
from convtvm.manifest import Kernel, Manifest
from convtvm.workload import ConvWorkload


def load(path: str | Path, threads: int | None = None) -> KernelLibrary:
    """Open the library at `path`; `threads` defaults to the number it was compiled for.

    Raises LibraryError for a file that is not an intact library or needs CPU features that this
    machine lacks, before any of its code runs.
    """
    content, manifest = manifests.read(path)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise LibraryError(f"threads is {threads!r}, expected a whole number of 1 or more")
    _check_machine(manifest, path)
    library = KernelLibrary(content, manifest, threads)
    library.open()
    return library


def _check_machine(manifest: Manifest, path: str | Path) -> None:
    """Raise LibraryError if this machine cannot run the library's code."""
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


class KernelLibrary:
    """Compiled kernels of several workloads in one file.

    Its code is opened when first needed, so one for another machine can be made and exported.
    """

    def __init__(self, content: bytes, manifest: Manifest, threads: int | None = None) -> None:
        self._content, self.manifest = content, manifest
        self.threads = threads or manifest.threads
        self.problems: list[str] = []
        self._kernels: dict[ConvWorkload, list[Kernel]] = {}
        for key, name in manifest.workloads.items():
            found = [k for k in manifest.kernels if k.workload == key]
            self._kernels[ConvWorkload.parse(f'{key}n"{name}"' if name else key)] = found

    def open(self) -> None:
        """Load the code. Raises LibraryError if this machine cannot run it."""
        self._image  # noqa: B018

    @cached_property
    def _image(self) -> runtime.Image:
        _check_machine(self.manifest, "the library")
        runtime.start(self.threads)
        return runtime.Image(self._content)

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
        try:
            write_whole(path, self._content, mode=0o755)
        except OSError as error:
            raise LibraryError(f"cannot write library {path}: {error.strerror}") from None

    def candidates(self, workload: ConvWorkload) -> list[Candidate]:
        """All compiled ways to compute `workload`, best first. Raises UnknownWorkload."""
        return [selection.candidate_of(k) for k in self._find(workload)]

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
        kernel = selection.choose(workload, kernels, algorithm, workspace_limit, max_error)
        return Plan(self, workload, kernel, weight, bias)

    def _find(self, workload: ConvWorkload) -> list[Kernel]:
        found = self._kernels.get(workload)
        if found is None:
            nearest = selection.nearest(workload, self._kernels)
            hint = f"; the nearest it has is {nearest}" if nearest else ""
            raise UnknownWorkload(f"the library has no kernel for {workload}{hint}")
        return found

    def function(self, name: str) -> Any:
        """The compiled function `name`, a kernel or a packing."""
        return self._image[name]
