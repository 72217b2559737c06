"""Which kernel: what a library offers for a workload, and the choice within limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from convtvm.errors import NoCandidate
from convtvm.manifest import Kernel
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


def candidate_of(k: Kernel) -> Candidate:
    """What a user sees of a kernel."""
    return Candidate(k.algorithm, k.workspace_bytes, k.run_secs, k.max_error, k.decisions)


def choose(
    workload: ConvWorkload,
    kernels: Sequence[Kernel],
    algorithm: str | None,
    workspace_limit: int | None,
    max_error: float | None,
) -> Kernel:
    """The first of `kernels`, which are sorted best first, within the limits. Raises
    NoCandidate."""
    for kernel in kernels:
        if _within(kernel, algorithm, workspace_limit, max_error):
            return kernel
    limits = [
        f"{name} {value}"
        for name, value in (
            ("algorithm", algorithm),
            ("workspace limit", workspace_limit),
            ("max error", max_error),
        )
        if value is not None
    ]
    offers = "; ".join(str(candidate_of(k)) for k in kernels)
    raise NoCandidate(f"no kernel of {workload} meets {', '.join(limits)}; there are: {offers}")


def nearest(workload: ConvWorkload, known: Iterable[ConvWorkload]) -> ConvWorkload | None:
    """The most similar of `known`, None if there is none."""
    return min(known, key=lambda w: _distance(w, workload), default=None)


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
