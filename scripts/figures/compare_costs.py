"""What each algorithm costs: arithmetic and workspace by formula, workspace and time measured.

    python scripts/figures/compare_costs.py                        # formulas only
    python scripts/figures/compare_costs.py --run [--log FILE]...  # compile and time, 1 thread
    python scripts/figures/compare_costs.py --run --library cv.so  # time a library compiled before

First the comparison of F(4x4, 3x3) with direct convolution on a 16x16 input of 128 channels, and of
im2col's and MEC's matrices; then the twelve layers of the MEC paper (Cho & Brand 2017, table 2).
The exit status is 1 if a kernel allocates something else than its formula says, 3 after a noisy
run.

Quoted by docs/algorithms.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sheet import Sheet, main, parser_of

from convtvm import load
from convtvm.compare.bench import BenchRow, Measured, bench
from convtvm.dispatch import KernelLibrary
from convtvm.kernels.algorithms import ALGORITHMS
from convtvm.kernels.task import Task
from convtvm.library.build import compile as compile_library
from convtvm.machine.targets import resolve
from convtvm.problem.sources import read_source
from convtvm.problem.workload import ConvWorkload

MIB = 1 << 20
EXAMPLE = ConvWorkload.make(128, 1, 16, kh=3)  # the article's


def im2col_elements(w: ConvWorkload) -> int:
    """Elements of the column matrix: n * oh * ow * kh * kw * ic."""
    return w.n * w.oh * w.ow * w.kh * w.kw * w.ic


def mec_elements(w: ConvWorkload) -> int:
    """Elements of MEC's L: n * ow * ih * kw * ic, over the input rows that the kernel reads."""
    rows = (w.oh - 1) * w.sh + (w.kh - 1) * w.dh + 1
    return w.n * w.ow * rows * w.kw * w.ic


def counts(w: ConvWorkload) -> dict[str, dict[str, int]]:
    """Multiplications and additions by algorithm, and the elements of the lowered matrices."""
    found = {
        name: {"multiplications": a.multiplications(w), "additions": a.additions(w)}
        for name, a in ALGORITHMS.items()
        if not a.inapplicable(w)
    }
    return found | {"elements": {"im2col": im2col_elements(w), "mec": mec_elements(w)}}


def arithmetic_table() -> Table:
    w = EXAMPLE
    direct = ALGORITHMS["direct"].multiplications(w)
    table = Table(title="16x16 input, 3x3 kernel, 128 channels, one output channel")
    for name in ("algorithm", "multiplications", "direct / it", "additions"):
        table.add_column(name, justify="left" if name == "algorithm" else "right")
    for name in ("direct", "im2col", "mec:b", *(a for a in ALGORITHMS if a.startswith("winograd"))):
        algorithm = ALGORITHMS[name]
        count = algorithm.multiplications(w)
        ratio, additions = f"{direct / count:.4f}", f"{algorithm.additions(w):,}"
        table.add_row(name, f"{count:,}", ratio, additions)
    return table


def layers_table(workloads: Sequence[ConvWorkload]) -> Table:
    """Millions of operations of the layers; those that only multiply and add share a column."""
    names = ["direct", *(a for a in ALGORITHMS if a.startswith("winograd"))]
    table = Table(title="Millions of multiplications / additions; direct stands for im2col and MEC")
    table.add_column("layer")
    for name in names:
        table.add_column(name, justify="right")
    for w in workloads:
        cells = []
        for algorithm in (ALGORITHMS[name] for name in names):
            if algorithm.inapplicable(w):
                cells.append("-")
                continue
            counts = algorithm.multiplications(w), algorithm.additions(w)
            cells.append(" / ".join(f"{count / 1e6:.0f}" for count in counts))
        table.add_row(w.name, *cells)
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


def measured_tables(rows: Sequence[BenchRow], sheet: Sheet) -> Iterator[Table]:
    """Workspace of every compiled algorithm, its median time with spread and share of the peak, and
    its error, side by side."""
    names = [name for name in ALGORITHMS if any(name in row.algorithms for row in rows)]
    shown = {
        id(m): sheet.time(f"{row.workload.name} {name}", m.timing, row.workload.flops)
        for row in rows
        for name, m in row.algorithms.items()
    }
    cells: dict[str, Callable[[Measured], str]] = {
        "Workspace of the compiled kernels, MiB": lambda m: f"{(m.workspace_bytes or 0) / MIB:.2f}",
        "Median time, ms, 1 thread": lambda m: f"{m.seconds * 1e3:.3g}{shown[id(m)].mark}".strip(),
        "Spread of the times, share of the peak": lambda m: shown[id(m)].about,
        "Error relative to the largest output": lambda m: f"{m.max_error:.1e}",
    }
    for title, text in cells.items():
        table = Table(title=title)
        table.add_column("layer")
        for name in names:
            table.add_column(name, justify="right")
        for row in rows:
            found = (row.algorithms.get(name) for name in names)
            table.add_row(row.workload.name, *("-" if m is None else text(m) for m in found))
        yield table


def differing_workspaces(library: KernelLibrary) -> list[str]:
    """Untuned kernels that allocate something else than their algorithm's formula says."""
    target = resolve(library.target, library.threads)
    wrong = []
    for w in library.workloads:
        for c in library.candidates(w):
            task = Task(w, c.algorithm, target, library.layout)
            stated = task.algorithm.workspace_bytes(
                w, library.layout, task.device, task.space.default
            )
            if c.decisions == "default" and c.workspace_bytes != stated:
                wrong.append(f"{w.name} {c.algorithm}: {c.workspace_bytes} bytes, not {stated}")
    return wrong


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--run", action="store_true", help="compile, measure workspace and time")
    parser.add_argument("--log", type=Path, action="append", default=[], help="tuning log to use")
    parser.add_argument("--library", type=Path, help="made by `convtvm compile --keep all`")
    parser.add_argument("--repeat", type=int, default=7, help="calls of which the median counts")
    parser.add_argument("--source", default="cv1_12", help="workloads of the second part")
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> int:
    console = Console()
    workloads = read_source(options.source)
    if not options.run:
        sheet.found = {"example": counts(EXAMPLE), "layers": {w.name: counts(w) for w in workloads}}
        for table in (arithmetic_table(), memory_table(workloads), layers_table(workloads)):
            console.print(table)
        return 0
    if options.library:
        library = load(options.library, threads=1)
    else:
        library = compile_library(workloads, threads=1, logs=options.log, keep="all")
    sheet.peak()
    rows = list(bench(library, peers={}, repeat=options.repeat))
    sheet.found = {
        row.workload.name: {name: vars(m) for name, m in row.algorithms.items()} for row in rows
    }
    for table in measured_tables(rows, sheet):
        console.print(table)
    wrong = differing_workspaces(library)
    print("\n".join(wrong) or "Every untuned kernel allocates what its formula says.")
    return 1 if wrong else 0


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
