"""What `bench` says of figures that another run would hardly find again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtvm.cli.output import ms, warn

if TYPE_CHECKING:
    from convtvm.compare.bench import Measured


def marked(measured: Measured | None) -> str:
    """Milliseconds, with ~ behind them where they are noisy."""
    return ms(None) if measured is None else f"{ms(measured.seconds)}{'~' * measured.is_noisy}"


def noise(figures: Sequence[Measured], others: float | None = None) -> dict[str, Any]:
    """As documents of --json have it; `others` is the share of the cores that others took."""
    from convtvm.compare.conditions import OTHERS

    noisy, company = sum(m.is_noisy for m in figures), (others or 0.0) > OTHERS
    good = not noisy and not company
    return {"figures": len(figures), "noisy": noisy, "others": others, "good": good}


def warn_of(found: Mapping[str, Any]) -> None:
    """Do not let a noisy run pass for a good one."""
    if not found["good"]:
        others = "" if found["others"] is None else (
            f", and others took {100 * found['others']:.0f} % of the cores"
        )  # fmt: skip
        warn(
            f"{found['noisy']} of {found['figures']} figures are noisy (~){others}: "
            "measure again on a machine at rest before you quote them"
        )
