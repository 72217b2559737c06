"""What each algorithm costs: multiplications and workspace by formula, workspace and time measured.

    python scripts/compare_costs.py                        # formulas only
    python scripts/compare_costs.py --run [--log FILE]...  # compile and time, 1 thread

First the comparison of F(4x4, 3x3) with direct convolution on a 16x16 input of 128 channels, and of
im2col's and MEC's matrices; then the twelve layers of the MEC paper (Cho & Brand 2017, table 2).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from convtvm.algorithms import ALGORITHMS
from convtvm.sources import read_source
from convtvm.workload import ConvWorkload

MIB = 1 << 20


def im2col_elements(w: ConvWorkload) -> int:
    """Elements of the column matrix: n * oh * ow * kh * kw * ic."""
    return w.n * w.oh * w.ow * w.kh * w.kw * w.ic


def mec_elements(w: ConvWorkload) -> int:
    """Elements of MEC's L: n * ow * ih * kw * ic, over the input rows that the kernel reads."""
    rows = (w.oh - 1) * w.sh + (w.kh - 1) * w.dh + 1
    return w.n * w.ow * rows * w.kw * w.ic


def multiplications_table() -> Table:
    w = ConvWorkload.make(128, 1, 16, kh=3)
    direct = ALGORITHMS["direct"].multiplications(w)
    table = Table(title="16x16 input, 3x3 kernel, 128 channels, one output channel")
    for name in ("algorithm", "multiplications", "direct / it"):
        table.add_column(name, justify="left" if name == "algorithm" else "right")
    for name in ("direct", *(a for a in ALGORITHMS if a.startswith("winograd"))):
        count = ALGORITHMS[name].multiplications(w)
        table.add_row(name, f"{count:,}", f"{direct / count:.4f}")
    return table


def memory_table(workloads: Sequence[ConvWorkload]) -> Table:
    table = Table(title="Lowered matrices of the MEC paper's layers, MiB")
    table.add_column("layer")
    for name in ("im2col", "MEC", "im2col / MEC", "output"):
        table.add_column(name, justify="right")
    for w in workloads:
        columns, lowered = im2col_elements(w), mec_elements(w)
        mib = [f"{4 * n / MIB:.2f}" for n in (columns, lowered)]
        table.add_row(w.name, *mib, f"{columns / lowered:.2f}", f"{w.out_bytes / MIB:.2f}")
    return table


def measured_tables(workloads: Sequence[ConvWorkload], logs: Sequence[Path]) -> list[Table]:
    """Workspace of every compiled algorithm, and its median time, side by side."""
    from convtvm.bench import bench
    from convtvm.build import compile as compile_library

    library = compile_library(workloads, threads=1, logs=logs, keep="all")
    rows = list(bench(library, peers={}, repeat=7))
    names = [name for name in ALGORITHMS if any(name in row.algorithms for row in rows)]
    tables = []
    for title in ("Workspace measured on the compiled kernel, MiB", "Median time, ms, 1 thread"):
        table = Table(title=title)
        table.add_column("layer")
        for name in names:
            table.add_column(name, justify="right")
        for row in rows:
            cells = []
            for name in names:
                measured = row.algorithms.get(name)
                if measured is None:
                    cells.append("-")
                elif title.startswith("W"):
                    cells.append(f"{(measured.workspace_bytes or 0) / MIB:.2f}")
                else:
                    cells.append(f"{measured.seconds * 1e3:.3g}")
            table.add_row(row.workload.name, *cells)
        tables.append(table)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", action="store_true", help="compile, measure workspace and time")
    parser.add_argument("--log", type=Path, action="append", default=[], help="tuning log to use")
    parser.add_argument("--source", default="cv1_12", help="workloads of the second part")
    arguments = parser.parse_args()
    workloads = read_source(arguments.source)
    console = Console()
    console.print(multiplications_table())
    console.print(memory_table(workloads))
    if arguments.run:
        os.environ["TVM_NUM_THREADS"] = "1"
        for table in measured_tables(workloads, arguments.log):
            console.print(table)


if __name__ == "__main__":
    main()
