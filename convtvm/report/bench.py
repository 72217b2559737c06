"""What `convtvm bench --json` and `convtvm run --profile --json` wrote, read back and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convtvm.errors import ReportError, WorkloadError, encodable
from convtvm.measure.timing import Timing
from convtvm.problem.workload import ConvWorkload

_MOST = 1 << 63  # of anything that is counted


@dataclass(frozen=True)
class Time:
    """Median seconds of a call, error relative to the largest output, workspace if known;
    `disturbed` and `spread` are those of a Timing."""

    seconds: float
    max_error: float
    workspace_bytes: int | None = None
    disturbed: bool = False
    spread: float = 0.0

    @property
    def is_noisy(self) -> bool:
        return Timing(self.seconds, self.seconds, self.spread, disturbed=self.disturbed).is_noisy


@dataclass(frozen=True)
class LayerBench:
    """One layer: our algorithms and the peers' settings by name; `chosen` is empty where no
    algorithm was right enough."""

    workload: ConvWorkload
    chosen: str
    algorithms: Mapping[str, Time]
    peers: Mapping[str, Time]
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        return self.algorithms[self.chosen].seconds if self.chosen else None

    @property
    def libraries(self) -> dict[str, float]:
        """Seconds of each library by its fastest setting."""
        found: dict[str, float] = {}
        for setting, time in self.peers.items():
            library = setting.partition("-")[0]
            found[library] = min(time.seconds, found.get(library, time.seconds))
        return found

    @property
    def speedup(self) -> float | None:
        return min(self.libraries.values()) / self.seconds if self.peers and self.seconds else None


@dataclass(frozen=True)
class Bench:
    """A comparison of layers; `peak` in FLOP/s."""

    target: str
    threads: int
    layers: Sequence[LayerBench]
    peak: float | None = None
    device: str = ""

    @property
    def noisy(self) -> int:
        """Figures that another run would hardly find again."""
        every = (t for row in self.layers for t in (*row.algorithms.values(), *row.peers.values()))
        return sum(t.is_noisy for t in every)


@dataclass(frozen=True)
class ModelBench:
    """A whole model beside other libraries."""

    model: str
    target: str
    threads: int
    ours: Time
    peers: Mapping[str, Time]
    device: str = ""


@dataclass(frozen=True)
class Operator:
    """An operator of a model: median seconds of a call, and in words what its kernel computes."""

    label: str
    about: str
    seconds: float


@dataclass(frozen=True)
class Profile:
    """The operators of a model, and the seconds of a call of all of it if that was measured."""

    model: str
    target: str
    threads: int
    operators: Sequence[Operator]
    seconds: float | None = None
    device: str = ""


def read(path: str | Path) -> Bench | ModelBench | Profile:
    """Whichever of the three the file holds. Raises ReportError for anything else."""
    try:
        entry = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ReportError(f"cannot read {path}: it is no JSON document ({error})") from None
    return parse(entry, str(path))


def parse(entry: Any, path: str) -> Bench | ModelBench | Profile:
    """The document that `entry` is; `path` names it in errors. Raises ReportError."""
    try:
        if isinstance(entry, dict):
            if "layers" in entry:
                return _layers(entry)
            if "ours" in entry:
                return _model(entry)
            if "profile" in entry:
                return _profile(entry)
    except (KeyError, TypeError, ValueError, AttributeError, WorkloadError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ReportError(f"{path} is damaged: {reason}; write it anew by --json") from None
    raise ReportError(
        f"{path} is no comparison: expected what `convtvm bench ... --json` or "
        "`convtvm run MODEL.so --profile --json` prints"
    )


def _layers(entry: Mapping[str, Any]) -> Bench:
    peak = entry.get("peak_flops")
    return Bench(
        _text(entry["target"]),
        _count(entry.get("threads", 1)),  # a GPU's comparison has none
        [_layer(row) for row in entry["layers"]],
        None if peak is None else _positive(peak),
        _text(entry.get("device", "")),
    )


def _layer(row: Mapping[str, Any]) -> LayerBench:
    name = row.get("name", "")
    key = row["workload"]
    made = LayerBench(
        ConvWorkload.parse(f'{key}n"{name}"' if name else key),
        _text(row["chosen"] or ""),
        _times(row["algorithms"]),
        _times(row["peers"]),
        {_text(k): _text(v) for k, v in row.get("absent", {}).items()},
    )
    if made.chosen and made.chosen not in made.algorithms:
        raise ValueError(f"{made.chosen!r} is chosen and was not measured")
    return made


def _model(entry: Mapping[str, Any]) -> ModelBench:
    return ModelBench(
        _text(entry["model"]),
        _text(entry["target"]),
        _count(entry["threads"]),
        _time(entry["ours"]),
        _times(entry["peers"]),
        _text(entry.get("device", "")),
    )


def _profile(entry: Mapping[str, Any]) -> Profile:
    steps = [
        Operator(_text(s["label"]), _text(s["about"]), _positive(s["seconds"], least=0.0))
        for s in entry["profile"]
    ]
    median = entry.get("median_secs")
    return Profile(
        _text(entry["library"]),
        _text(entry["target"]),
        _count(entry["threads"]),
        steps,
        None if median is None else _positive(median),
        _text(entry.get("device", "")),
    )


def _times(entries: Mapping[str, Any]) -> dict[str, Time]:
    return {_text(name): _time(entry) for name, entry in entries.items()}


def _time(entry: Mapping[str, Any]) -> Time:
    workspace = entry.get("workspace_bytes")
    return Time(
        _positive(entry["seconds"]),
        _positive(entry["max_error"], least=0.0),
        None if workspace is None else _count(workspace),
        bool(entry.get("disturbed", False)),
        _positive(entry.get("spread") or 0.0, least=0.0),
    )


def _positive(value: Any, least: float | None = None) -> float:
    """`value` as a float above 0, or of at least `least`. Raises ValueError."""
    fine = type(value) in (int, float) and value < 1e30
    if not fine or not (value > 0 if least is None else value >= least):
        raise ValueError(f"found {str(value)[:40]!r} where a positive number belongs")
    return float(value)


def _text(value: Any) -> str:
    return encodable(str(value))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError(f"found {str(value)[:40]!r} where a count belongs")
    return value
