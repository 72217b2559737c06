"""Figures of machine code that `tests/golden` keeps, and how far new ones may be from them."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden"
# By how much a count may differ: a tenth, and a few of a small one.
_SHARE, _FEW = 0.1, 3


def renews(description: str | None) -> bool:
    """Whether the command line of a script, whose --help is `description`, asks for `--renew`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--renew", action="store_true")
    return bool(parser.parse_args().renew)


def read(path: Path) -> list[dict[str, Any]]:
    """The entries that are kept in a file."""
    return list(json.loads(path.read_text(encoding="utf8")))


def keep(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write the file anew, an entry a line."""
    lines = ",\n".join(map(json.dumps, entries))
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf8")


def unlike(kept: Mapping[str, int], found: Mapping[str, int], of: str) -> list[str]:
    """The counts of two tallies of one thing that differ by more than they may."""
    before, now = Counter(kept), Counter(found)
    return [
        f"{kind} of {of}: {before[kind]} -> {now[kind]}"
        for kind in sorted({*before, *now})
        if abs(now[kind] - before[kind]) > max(_FEW, _SHARE * before[kind])
    ]
