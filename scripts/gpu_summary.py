"""The summary of scripts/gpu_check: a table of its report, also of one that was fetched.

python scripts/gpu_summary.py build/gpu_check/report.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def print_summary(report: dict[str, Any]) -> None:
    print("\n== summary")
    failed = {name: entry["error"] for name, entry in report.items() if "error" in entry}
    results = {name: entry.get("result") or {} for name, entry in report.items()}
    numerics = results.get("numerics", {}).values()
    if numerics:
        wrong = sum(len(row["wrong"]) for row in numerics)
        print(f"numerics: {sum(row['kernels'] for row in numerics)} kernels, {wrong} wrong")
    rows = [layer_row(name, result) for name, result in results.items() if "layers" in result]
    if rows:
        header = ("", "layers", "times cuDNN", "worst", "best", "no bias", "trials", "a minute")
        for cells in (header, *rows):
            print(f"{cells[0]:16}" + "".join(f"{cell:>13}" for cell in cells[1:]))
    for name, row in results.get("graphs", {}).items():
        times = ", ".join(f"{who} {ms:.3f}" for who, ms in row.get("ms", {}).items())
        said = "  WRONG" if row.get("wrong") else "  unfinished" if row.get("unfinished") else ""
        print(f"graph {name}, ms: {times or 'none'}{said}")
    for name, error in failed.items():
        print(f"FAILED {name}: {error.strip().splitlines()[-1]}")


def layer_row(name: str, result: dict[str, Any]) -> tuple[str, ...]:
    """A precision and batch: the geometric mean over its layers, and the extremes."""
    from statistics import geometric_mean

    found = result["layers"]
    bare = [
        min(m["seconds"] for m in row["without_bias"].values())
        / row["algorithms"][row["chosen"]]["seconds"]
        for row in found
        if row["without_bias"] and row["chosen"]
    ]
    tuning = result["tuning"] or {"trials": 0, "seconds": 0.0}
    speed = 60 * tuning["trials"] / tuning["seconds"] if tuning["seconds"] else 0.0
    ratios = (result["geomean"], result["worst"], result["best"])
    return (
        name,
        str(len(found)),
        *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        f"{geometric_mean(bare):.2f}" if bare else "-",
        str(tuning["trials"]),
        f"{speed:.0f}",
    )


if __name__ == "__main__":
    print_summary(json.loads(Path(sys.argv[1]).read_text(encoding="utf8")))
