"""Error of Winograd convolution against tile size, measured on the compiled kernels.

    python scripts/figures/winograd_error.py [--source SOURCE]

Errors are relative to the largest output, against float64, on normally distributed data. The second
column is what Barabasz et al. (arXiv 1803.10986) publish for one convolution with the best points.

Quoted by docs/accuracy.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

from rich.console import Console
from rich.table import Table
from sheet import Sheet, main, parser_of

from convtvm.library.build import compile as compile_library
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.sources import read_source

PUBLISHED = {
    "direct": 4.63e-8,
    "winograd:2": 7.65e-8,
    "winograd:3": 2.35e-7,
    "winograd:4": 3.29e-7,
    "winograd:6": 8.79e-7,
}
LAYERS = (
    "mb1ic64ih56oc64oh56kh3ph1 mb1ic128ih28oc128oh28kh3ph1 mb1ic256ih14oc256oh14kh3ph1 "
    "mb1ic256ih33oc256oh33kh3ph2dh1"
)


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--source", nargs="*", default=LAYERS.split(), help="workloads")
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    workloads = [w for source in options.source for w in read_source(source)]
    library = compile_library(
        workloads, threads=1, logs=[], keep="all", algorithms=["direct", "winograd"]
    )
    errors: dict[str, list[float]] = defaultdict(list)
    for w in workloads:
        data, weight, bias = random_inputs(w, 0, "NCHW", "normal")
        reference = conv2d_reference(w, data, weight, bias)
        for kernel in library.kernels(w):
            plan = library.plan_by(kernel, w, weight, bias)
            errors[kernel.algorithm].append(relative_error(plan(data), reference))
    table = Table(title="Largest error relative to the largest output")
    table.add_column("algorithm")
    table.add_column("published, one convolution", justify="right")
    for w in workloads:
        dilated = f", dilation {w.dh}" if w.dh > 1 else ""
        table.add_column(f"{w.ic}x{w.ih}²{dilated} → {w.oc}", justify="right")
    for name in sorted(errors):
        published = f"{PUBLISHED[name]:.1e}" if name in PUBLISHED else "-"
        table.add_row(name, published, *(f"{e:.1e}" for e in errors[name]))
    sheet.found = {
        name: {w.key: error for w, error in zip(workloads, errors[name], strict=True)}
        for name in sorted(errors)
    }
    Console().print(table)


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
