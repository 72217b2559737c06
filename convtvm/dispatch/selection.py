"""Which kernel: what a library offers for a workload, and the choice within limits by a policy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from convtvm.dispatch.manifest import Kernel
from convtvm.errors import ConvtvmError, NoCandidate, check_number
from convtvm.problem.similarity import distance
from convtvm.problem.workload import ConvWorkload

POLICIES = ("logged", "predicted", "measure")


@dataclass(frozen=True)
class Candidate:
    """One way the library can compute a workload.

    Times in seconds: `run_secs` measured while tuning, `predicted_secs` by a model of the log;
    `max_error` is relative to the largest output. None stands for never measured or predicted.
    `decisions` is `tuned`, `transferred` from the task that `source` names, or `default`.
    """

    algorithm: str
    workspace_bytes: int
    run_secs: float | None
    max_error: float | None
    decisions: str
    predicted_secs: float | None = None
    source: str = ""

    @classmethod
    def of(cls, kernel: Kernel) -> Candidate:
        return cls(**{name: getattr(kernel, name) for name in cls.__dataclass_fields__})

    @property
    def origin(self) -> str:
        """In words, where the decisions come from."""
        return f"{self.decisions} from {self.source}" if self.source else self.decisions

    def __str__(self) -> str:
        time = "never measured" if self.run_secs is None else _ms(self.run_secs)
        if self.run_secs is None and self.predicted_secs is not None:
            time = f"predicted {_ms(self.predicted_secs)}"
        error = "unknown" if self.max_error is None else f"{self.max_error:.1e}"
        facts = [time, f"workspace {self.workspace_bytes} B", f"error {error}"]
        facts += [self.origin] if self.source else []
        return f"{self.algorithm} ({', '.join(facts)})"


@dataclass(frozen=True)
class Wish:
    """What a caller asks of a kernel; None asks for nothing. Kernels in TF32 need a `max_error`
    that permits them."""

    algorithm: str | None = None
    workspace_limit: int | None = None
    max_error: float | None = None
    policy: str = "logged"

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConvtvmError(f"policy is {self.policy!r}, expected one of {', '.join(POLICIES)}")
        if self.algorithm is not None and not isinstance(self.algorithm, str):
            raise ConvtvmError(f"algorithm is {self.algorithm!r}, expected one name, as text")
        for name in ("workspace_limit", "max_error"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value)

    def objection(self, kernel: Kernel) -> str | None:
        """Why `kernel` is out, or None."""
        names = (kernel.algorithm, kernel.algorithm.partition(":")[0])
        if self.algorithm is not None and self.algorithm not in names:
            return f"is not {self.algorithm}"
        if self.workspace_limit is not None and kernel.workspace_bytes > self.workspace_limit:
            return f"needs {kernel.workspace_bytes} B of workspace"
        if self.max_error is None:
            return "is inexact by choice: give max_error" if kernel.is_opt_in else None
        if kernel.max_error is None:
            return "has an error that was never measured"
        return (
            f"has an error of {kernel.max_error:.1e}" if kernel.max_error > self.max_error else None
        )

    def __str__(self) -> str:
        limits = (
            ("algorithm", self.algorithm),
            ("workspace limit", self.workspace_limit),
            ("max error", self.max_error),
        )
        return ", ".join(f"{name} {value}" for name, value in limits if value is not None)


@dataclass(frozen=True)
class Choice:
    """A kernel and why: what was asked, its time in seconds and what that is, the others in order
    of rank, and those that were out with the reason."""

    kernel: Kernel
    wish: Wish
    seconds: float | None
    basis: str
    others: Sequence[tuple[Kernel, float | None]]
    refused: Sequence[tuple[Kernel, str]]

    @classmethod
    def of(cls, kernel: Kernel) -> Choice:
        """This kernel and no other."""
        return cls(kernel, Wish(), kernel.run_secs, "measured while tuning", (), ())

    def explain(self) -> str:
        """The choice in words, a sentence a fact."""
        k = self.kernel
        rivals = f" of {len(self.others) + 1} candidates" if self.others else ", the only candidate"
        if self.seconds is None:
            said = f"{k.algorithm}{rivals}: none was measured or predicted, so the first by cost"
        else:
            said = f"{k.algorithm}, the fastest{rivals}: {_ms(self.seconds)} {self.basis}"
        sentences = [f"{said}, workspace {k.workspace_bytes} B."]
        if k.decisions != "tuned":
            sentences.append(f"Its decisions are {Candidate.of(k).origin}, not tuned here.")
        if self.others:
            kernel, seconds = self.others[0]
            time = "no time" if seconds is None else _ms(seconds)
            sentences.append(f"Next: {kernel.algorithm}, {time}.")
        if self.refused:
            listed = "; ".join(f"{kernel.algorithm} {reason}" for kernel, reason in self.refused)
            sentences.append(f"Out by {self.wish}: {listed}.")
        return " ".join(sentences)


def choose(
    workload: ConvWorkload,
    kernels: Sequence[Kernel],
    wish: Wish,
    measured: Mapping[str, float] | None = None,
) -> Choice:
    """The best of `kernels` that `wish` allows; of equal times the one with less workspace.

    `logged` ranks by the times of the log, and what has none behind, in the order given;
    `predicted` lets predictions compete with them; `measure` takes `measured`, seconds by function.
    Raises NoCandidate.
    """
    refused = [(k, reason) for k in kernels if (reason := wish.objection(k))]
    out = {k.function for k, _ in refused}
    timed = [
        (k, _seconds(k, wish.policy, measured or {})) for k in kernels if k.function not in out
    ]
    if not timed:
        offers = "; ".join(str(Candidate.of(k)) for k in kernels)
        raise NoCandidate(f"no kernel of {workload} meets {wish}; there are: {offers}")
    # The sort is stable: kernels without a time keep their order.
    timed.sort(key=lambda t: (math.inf, 0) if t[1] is None else (t[1], t[0].workspace_bytes))
    kernel, seconds = timed[0]
    basis = "measured while tuning" if kernel.run_secs is not None else "predicted"
    if wish.policy == "measure" and seconds is not None:
        basis = "measured here and now"
    if seconds is None and kernel.predicted_secs is not None:
        seconds = kernel.predicted_secs
    return Choice(kernel, wish, seconds, basis, timed[1:], refused)


def _seconds(kernel: Kernel, policy: str, measured: Mapping[str, float]) -> float | None:
    if policy == "measure":
        return measured.get(kernel.function)
    if policy == "predicted" and kernel.run_secs is None:
        return kernel.predicted_secs
    return kernel.run_secs


def nearest(workload: ConvWorkload, known: Iterable[ConvWorkload]) -> ConvWorkload | None:
    """The most similar of `known`, None if there is none."""
    return min(known, key=lambda w: distance(w, workload), default=None)


def batches(total: int, sizes: Mapping[int, float | None]) -> list[int]:
    """Batch sizes, of those whose seconds `sizes` holds, that add up to `total` in the least time.

    Without times the fewest slices; empty if no sum of them is `total`.
    """
    if not sizes:
        return []
    known = all(seconds is not None for seconds in sizes.values())
    costs = {n: s if known and s is not None else 1.0 for n, s in sizes.items()}
    # Of any `cheap` slices some add up to a multiple of it, so fewer than that need be others.
    cheap = min(costs, key=lambda n: (costs[n] / n, n))
    alike = max(0, total // cheap - max(costs))
    rest = _least(total - alike * cheap, costs)
    return sorted([*rest, *[cheap] * alike], reverse=True) if rest else []


def _least(total: int, costs: Mapping[int, float]) -> list[int]:
    """Numbers, of those whose costs are given, that add up to `total` at the least cost; empty if
    none do."""
    best: dict[int, tuple[float, int]] = {0: (0.0, 0)}  # sum -> cost, the last number
    for n in range(1, total + 1):
        ways = [(best[n - k][0] + cost, k) for k, cost in costs.items() if n - k in best]
        if ways:
            best[n] = min(ways)
    found: list[int] = []
    while total and total in best:
        found.append(best[total][1])
        total -= found[-1]
    return found


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.4g} ms"
