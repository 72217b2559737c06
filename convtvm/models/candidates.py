"""Which kernel computes a layer in a layout, and in how many seconds.

Shipped logs are of NCHW. The decisions of templates that work on vectors of channels whatever the
layout mean the same in blocks of channels, so their records count there too, until some are of that
layout itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from convtvm.errors import ConvtvmError, NoCandidate
from convtvm.kernels.algorithms import ALGORITHMS, applicable
from convtvm.kernels.task import Task
from convtvm.library.choices import Choice, choose
from convtvm.logs.machines import as_here
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import CompileTarget, is_near
from convtvm.problem.workload import ENTRY_LAYOUTS, ConvWorkload, channel_block

# Their vectors are pixels in NCHW: what the first two decide there says nothing of blocks.
_DEPTHWISE, _POINTWISE = "direct:depthwise", "direct:pointwise"
ALONG_PIXELS = (_DEPTHWISE, f"{_DEPTHWISE}:inplace", _POINTWISE)
# In blocks of channels nothing is transposed on the way out, at so many bytes a second (Zen 4,
# AVX2); where pixels were vectors, and for columns of neighbouring pixels, it is a factor.
_TRANSPOSED, _MOST_SAVED = 8e9, 0.3
_IN_BLOCKS = {_DEPTHWISE: 0.7, "im2col": 1.5}
# Of a kernel where nobody says otherwise: averages and dense layers at the end of a network make
# its outputs better than its layers; where outputs are images, errors of several layers add up.
MAX_ERROR, MAX_ERROR_OF_IMAGES = 2.5e-5, 3e-6
# What was not measured here in a layout is the best of several guesses, and so better than it will
# be: it has to promise more than what was.
UNSURE = 1.1
_OPERATIONS_A_SECOND = 2.5e9  # of one thread in vectors, where nothing is known


@dataclass(frozen=True)
class Limits:
    """What every kernel of a model has to keep: bytes of workspace, and an error relative to the
    largest output, measured where it was, else expected of its algorithm."""

    workspace: int | None = None
    max_error: float = MAX_ERROR

    def objection(self, choice: Choice) -> str | None:
        """Why a kernel is out, or None."""
        task = choice.task
        if self.workspace is not None:
            needed = task.algorithm.workspace_bytes(
                task.workload, task.layout, task.device, choice.decisions
            )
            if needed > self.workspace:
                return f"{task.algorithm_name} needs {needed} B of workspace"
        # The bounds are ten to twenty times what large layers show.
        error = choice.max_error if choice.max_error is not None else task.tolerance / 20
        if error > self.max_error:
            return f"{task.algorithm_name} has an error of {error:.1e}"
        return None


@dataclass(frozen=True)
class Candidate:
    """The kernel of a layer in one layout and the seconds to expect."""

    choice: Choice
    seconds: float

    @property
    def task(self) -> Task:
        return self.choice.task


@dataclass
class Candidates:
    """The best kernel of each workload and layout for a target, within limits; `unsure` is the
    factor on seconds that nobody measured here in that layout."""

    target: CompileTarget
    history: Sequence[TuningRecord]
    limits: Limits = field(default_factory=Limits)
    unsure: float = UNSURE
    _best: dict[tuple[ConvWorkload, str], Candidate | None] = field(default_factory=dict)
    _by_layout: dict[str, dict[str, list[TuningRecord]]] = field(default_factory=dict)
    _borrowed: set[tuple[str, str, str, int, str]] = field(default_factory=set)
    _of_near: list[TuningRecord] | None = None

    def best(self, w: ConvWorkload, layout: str) -> Candidate | None:
        """None where no kernel writes the layout. Raises NoCandidate if limits leave none out of
        those that do."""
        if (w, layout) not in self._best:
            self.prepare([w], layout)
        return self._best[w, layout]

    def prepare(self, workloads: Sequence[ConvWorkload], layout: str) -> None:
        """Find the best kernels of all of them at once, which learns from the records once."""
        records, tasks = self._records(layout), []
        for w in dict.fromkeys(workloads):
            self._best[w, layout] = None
            if channel_block(layout) == 0 or _fills(w, layout):
                tasks += [Task(w, n, self.target, layout) for n in self._names(w, layout)]
        found: dict[ConvWorkload, list[Choice]] = defaultdict(list)
        for choice in choose(tasks, [r for made in records.values() for r in made]):
            found[choice.task.workload].append(choice)
        for w, choices in found.items():
            self._best[w, layout] = self._fastest(w, choices)

    def _names(self, w: ConvWorkload, layout: str) -> list[str]:
        """The algorithms that were measured, or all where none was."""
        known = {r.algorithm for r in self._records(layout).get(w.key, ())}
        blocked = channel_block(layout) > 0
        names = [a.name for a in applicable(w) if not (blocked and a.name == _POINTWISE)]
        return [n for n in names if not known or n in known or n == _DEPTHWISE]

    def _fastest(self, w: ConvWorkload, choices: Sequence[Choice]) -> Candidate:
        refused = {c.task.algorithm_name: self.limits.objection(c) for c in choices}
        allowed = [c for c in choices if refused[c.task.algorithm_name] is None]
        if not allowed and len(choices) < len(applicable(w)):
            layout = choices[0].task.layout
            others = [Task(w, a.name, self.target, layout) for a in applicable(w)]
            return self._fastest(w, choose(others, ()))
        if not allowed:
            reasons = "; ".join(filter(None, refused.values()))
            raise NoCandidate(f"no kernel of {w} keeps the limits: {reasons}")
        best = min(allowed, key=self._seconds)
        return Candidate(best, self._seconds(best))

    def _seconds(self, choice: Choice) -> float:
        task, target = choice.task, self.target
        if choice.record is not None:
            is_own = choice.record.task_key not in self._borrowed
            return choice.record.seconds * (1 if is_own else self.unsure)
        if choice.predicted_secs is not None:
            return choice.predicted_secs * self.unsure
        plain = [
            r.seconds * r.threads / target.threads
            for r in self._records("NCHW").get(task.workload.key, ())
            if r.algorithm == task.algorithm_name
        ]
        if plain and channel_block(task.layout):
            return self.unsure * _in_blocks(task.workload, task.algorithm_name, min(plain))
        operations = task.algorithm.additions(task.workload) / target.lanes / target.threads
        return operations / _OPERATIONS_A_SECOND

    def _records(self, layout: str) -> dict[str, list[TuningRecord]]:
        """Records for near targets that tell of kernels in `layout`, by workload."""
        if layout not in self._by_layout:
            near = self._near()
            own = [r for r in near if r.layout == layout]
            known = {r.task_key for r in own}
            borrowed = [_moved(r, layout) for r in near if r.layout == "NCHW" != layout]
            borrowed = [
                r for r in borrowed if r.algorithm in ALGORITHMS and r.task_key not in known
            ]
            self._borrowed |= {r.task_key for r in borrowed}
            own += borrowed
            grouped: dict[str, list[TuningRecord]] = defaultdict(list)
            for record in own:
                if layout == "NCHW" or record.layout == layout:
                    grouped[record.workload].append(record)
            self._by_layout[layout] = grouped
        return self._by_layout[layout]

    def _near(self) -> list[TuningRecord]:
        """The records for near targets, in seconds of this one: else a layout that was tuned here
        would lose to another that was tuned on a faster machine."""
        if self._of_near is None:
            near = [r for r in self.history if is_near(r.target, self.target)]
            self._of_near = as_here(near, self.target.name)
        return self._of_near


def _fills(w: ConvWorkload, layout: str) -> bool:
    """Whether data and output are whole blocks of a blocked layout, and so is every group."""
    block = channel_block(layout)
    data_fills = layout in ENTRY_LAYOUTS or w.ic % block == 0
    return data_fills and w.oc % block == 0 and (w.is_depthwise or w.oc // w.groups % block == 0)


def _moved(record: TuningRecord, layout: str) -> TuningRecord:
    """What a record of NCHW says of another layout."""
    if record.algorithm in (_DEPTHWISE, _POINTWISE):
        return replace(record, algorithm="")
    w = ConvWorkload.parse(record.workload)
    secs = [_in_blocks(w, record.algorithm, secs) for secs in record.run_secs]
    return replace(record, layout=layout, run_secs=secs)


def _in_blocks(w: ConvWorkload, algorithm: str, secs: float) -> float:
    """Seconds to expect in blocks of channels for those measured in NCHW."""
    if algorithm in _IN_BLOCKS:
        return secs * _IN_BLOCKS[algorithm]
    return secs - min(w.out_bytes / _TRANSPOSED, _MOST_SAVED * secs)


def limits_of(workspace_limit: int | None, max_error: float | None, images: bool) -> Limits:
    """The limits asked for, or else the usual ones of a model whose outputs are `images` or not.

    Raises ConvtvmError for limits that nothing could keep.
    """
    if workspace_limit is not None and workspace_limit < 0:
        raise ConvtvmError(f"workspace limit is {workspace_limit}, expected 0 or more bytes")
    if max_error is None:
        max_error = MAX_ERROR_OF_IMAGES if images else MAX_ERROR
    if not max_error > 0:
        raise ConvtvmError(f"max error is {max_error}, expected a number above 0")
    return Limits(workspace_limit, max_error)
