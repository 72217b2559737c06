"""What the scripts of this folder share: the machine and the versions in front of their figures,
times with their spread and share of the peak, `--json FILE`, and the verdict on a noisy run.

A script has `arguments()`, the parser of its options made by `parser_of`, and `figures(options,
sheet)`, which prints what it finds, leaves it in `sheet.found`, hands every time that it shows to
`sheet.time`, and returns an exit status other than 0 where something is wrong. `main` does the
rest. Exit statuses: 0, 1 for something wrong, 2 for a mistake of the user's, 3 (NOISY) for figures
that are fine but for the noise.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import numbers
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtvm import files
from convtvm.compare import conditions
from convtvm.errors import ConvtvmError

if TYPE_CHECKING:  # TVM is loaded where a peak is measured: --help and children need none
    from convtvm.machine.targets import CompileTarget
    from convtvm.measure.timing import Timing

NOISY = 3  # exit status
MARK = "~"
_NAMED = 5  # noisy times that the verdict names


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring and has the option that all scripts have."""
    made = argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    return made


@dataclass(frozen=True)
class Shown:
    """A time as tables show it: behind it the `mark`, which is MARK if another run would hardly
    find the same and else a space; `about` are its spread and its share of the peak."""

    mark: str
    about: str


@dataclass
class Sheet:
    """The figures of one run of a script.

    `found` is what the script finds, for JSON; `times` what it timed, `peaks` the FLOP/s that the
    times are compared with, `others` the share of the cores that others took.
    """

    found: dict[str, Any] = field(default_factory=dict)
    times: dict[str, Timing] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    others: float | None = None

    def time(
        self, name: str, timing: Timing, flops: float = 0, target: CompileTarget | None = None
    ) -> Shown:
        """Note a time that is shown. With the FLOPs of what was timed its share of the peak of
        `target`, without one a core of this CPU, belongs to it. They are those of the convolution:
        Winograd, which multiplies less, may come to more than the peak."""
        number, given = 1, name
        while name in self.times:
            number += 1
            name = f"{given} ({number})"
        self.times[name] = timing
        about = f"±{100 * timing.spread:.1f} %"
        if flops:
            self.shares[name] = flops / timing.seconds / self.peak(target)
            about += f", {100 * self.shares[name]:.0f} % of peak"
        return Shown(MARK if timing.is_noisy else " ", about)

    def peak(self, target: CompileTarget | None = None) -> float:
        """FLOP/s of a target's threads, measured at the first question and then printed."""
        from convtvm.machine.targets import resolve
        from convtvm.measure import peak

        target = target or resolve("native", 1)
        name = f"{target.name}, threads {target.threads}"
        if name not in self.peaks:
            self.peaks[name] = peak.measure_peak(target)
            print(f"peak      {self.peaks[name] / 1e9:.0f} GFLOP/s, {name}", flush=True)
        return self.peaks[name]

    @property
    def noisy(self) -> list[str]:
        """The names of the noisy times."""
        return [name for name, timing in self.times.items() if timing.is_noisy]

    @property
    def is_good(self) -> bool:
        """Whether the times may be quoted; a run without times can be as noisy as it likes."""
        return not self.times or not (self.noisy or self.has_company)

    @property
    def has_company(self) -> bool:
        return self.others is not None and self.others > conditions.OTHERS

    def verdict(self) -> str:
        """What there is to say of the noise, in one line; empty without times."""
        if not self.times:
            return ""
        spreads = [100 * timing.spread for timing in self.times.values()]
        shown = (
            f"spread {statistics.median(spreads):.1f} % in the median, {max(spreads):.1f} at most"
        )
        if self.others is None:
            shown += "; nobody knows what others took"
        else:
            shown += f"; others took {100 * self.others:.0f} % of the cores meanwhile"
        count = f"{len(self.times)} time{'s' * (len(self.times) != 1)}"
        if self.is_good:
            return f"none of {count} is noisy: {shown}"
        names = "; ".join(self.noisy[:_NAMED]) + ("; ..." if len(self.noisy) > _NAMED else "")
        which = f" (marked {MARK}: {names})" if self.noisy else ""
        return (
            f"NOISY: {len(self.noisy)} of {count}{which}; {shown}. "
            "These times are not good: measure again on a machine at rest."
        )

    def noise(self) -> dict[str, Any]:
        return {
            "times": len(self.times),
            "noisy": self.noisy,
            "others": self.others,
            "good": self.is_good,
        }


Figures = Callable[[argparse.Namespace, Sheet], "int | None"]


def main(options: argparse.Namespace, figures: Figures) -> None:
    """Print the conditions, have the script find its figures, print the verdict, write the JSON.
    Raises SystemExit with the exit status."""
    try:
        raise SystemExit(_run(options, figures))
    except ConvtvmError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _run(options: argparse.Namespace, figures: Figures) -> int:
    _check(options.json)
    under = conditions.conditions()
    print("\n".join(conditions.lines(under)), flush=True)
    sheet, neighbours, began = Sheet(), conditions.Neighbours(), datetime.now(timezone.utc)
    started = time.perf_counter()
    status = figures(options, sheet) or 0
    seconds = time.perf_counter() - started
    sheet.others = neighbours.share()
    if verdict := sheet.verdict():
        print(verdict, flush=True)
    if not status and not sheet.is_good:
        status = NOISY
    document = {
        "script": Path(inspect.getfile(figures)).stem,
        "options": {k: v for k, v in vars(options).items() if k != "json"},
        **under,
        "began": began.isoformat(timespec="seconds"),
        "seconds": seconds,
        "peaks": sheet.peaks,
        "times": {
            name: {
                **asdict(timing),
                "noisy": timing.is_noisy,
                "share_of_peak": sheet.shares.get(name),
            }
            for name, timing in sheet.times.items()
        },
        "found": sheet.found,
        "noise": sheet.noise(),
        "status": status,
    }
    if options.json:
        text = json.dumps(plain(document), indent=1, allow_nan=False)
        files.write_whole(options.json, f"{text}\n".encode())
    return status


def _check(path: Path | None) -> None:
    """Raise ConvtvmError before anything is measured if no file can be written at `path`."""
    reason = files.objection(path) if path else ""
    if reason:
        raise ConvtvmError(f"cannot write {path}: {reason}")


def plain(value: Any) -> Any:
    """`value` as strict JSON takes it: what is not finite is null, what is no number a text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)
