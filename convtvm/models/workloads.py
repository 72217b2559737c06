"""What there is to tune in a model: its convolutions in the layouts that its graph would use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import CompileTarget
from convtvm.models.candidates import Candidates
from convtvm.models.convolutions import find
from convtvm.models.dataflow import Dataflow
from convtvm.models.imported import Imported
from convtvm.models.layouts import assign
from convtvm.problem.workload import ConvWorkload


def to_tune(
    imported: Imported, target: CompileTarget, history: Sequence[TuningRecord]
) -> dict[str, list[ConvWorkload]]:
    """The different convolutions of a model by the layouts that `history` makes best, each with
    its multiplicity; guesses count in full, for tuning is how they are tested."""
    flow = Dataflow(imported.module["main"])
    layers = find(flow, dict(imported.origins))
    chosen = assign(flow, layers, Candidates(target, history, unsure=1.0)).kernels
    counts = Counter(
        (chosen[layer.start].task.layout, chosen[layer.start].task.workload) for layer in layers
    )
    found: dict[str, list[ConvWorkload]] = {}
    for (layout, workload), count in counts.items():
        found.setdefault(layout, []).append(replace(workload, multiplicity=count))
    return found
