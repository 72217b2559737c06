"""`convtvm tune MODEL`: the convolutions of a whole model, layout by layout."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtvm.cli.output import torch_allowed
from convtvm.errors import WorkloadError
from convtvm.problem.workload import ConvWorkload

if TYPE_CHECKING:
    from convtvm.machine.targets import CompileTarget


def convolutions_by_layout(
    source: str, shapes: Mapping[str, tuple[int, ...]], target: CompileTarget, log: Path
) -> dict[str, list[ConvWorkload]]:
    """The convolutions of a model, by layout."""
    with torch_allowed():
        from convtvm.logs import records
        from convtvm.models.importing import import_model
        from convtvm.models.workloads import to_tune

        imported = import_model(source, None, dict(shapes))
    history, _ = records.load([*([log] if log.exists() else []), *records.shipped_logs()])
    found = to_tune(imported, target, history)
    if not found:
        raise WorkloadError(f"{source}: the model has no convolution to tune")
    return found


def shared_budget(
    groups: Mapping[str, list[ConvWorkload]], seconds: float | None, trials: int | None
) -> Iterator[tuple[str, list[ConvWorkload], dict[str, Any]]]:
    """Each layout with its workloads and its share of the budget, by their number."""
    end = None if seconds is None else time.monotonic() + seconds
    left = sum(map(len, groups.values()))
    for layout, workloads in groups.items():
        share = len(workloads) / left
        budget: dict[str, Any] = {}
        if end is not None:
            budget["time_limit"] = max(1e-3, share * (end - time.monotonic()))
        if trials is not None:
            budget["total_trials"] = max(1, round(share * trials))
            trials -= budget["total_trials"]
        left -= len(workloads)
        yield layout, workloads, budget
