#!/usr/bin/env python3
"""What warps ask of shared and of global memory, by default decisions of networks' layers.

    python scripts/figures/count_accesses.py [SOURCE]... [--arch sm_90] [--batch 16]
        [--dtypes float16,tf32] [--layout NHWC]

Counted on the emulated GPU: tests/emulator/accesses.py says how. What lanes ask at once depends on
tiles, kernel and strides, and not on how many tiles there are; so each kind of layer with each of
its default decisions is run as the smallest one that has a whole tile and a few steps. A line is
one kind of access of the product's kernel: how many bytes a lane has, how many ways lanes conflict
at worst and how much longer it takes for that; of global memory, sectors of 32 bytes for every one
that its bytes need.

Quoted by docs/gpu.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sheet import Sheet, main, parser_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from emulator import emulated
from emulator.accesses import Access, CountedCheck

from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.measure.jobs import Limits
from convtvm.problem.sources import merge_duplicates, read_source
from convtvm.problem.workload import ConvWorkload

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "vgg16")
STEPS = 6  # of a sum, at least: more than there are stages

Decisions = dict[str, int]


def smallest(w: ConvWorkload, d: Decisions) -> ConvWorkload:
    """A layer like `w` with one tile of pixels and of channels, and a few steps."""
    taps, unit = w.kh * w.kw, 8 if w.ic % 8 == 0 else w.ic
    ic = min(w.ic, max(unit, -(-STEPS * d["tile_k"] // taps // unit) * unit))
    side = next(s for s in range(1, 65) if s * s >= d["tile_p"])
    high = (side - 1) * w.sh + (w.kh - 1) * w.dh + 1 - w.ph - w.ph_r
    wide = (side - 1) * w.sw + (w.kw - 1) * w.dw + 1 - w.pw - w.pw_r
    return ConvWorkload.make(
        ic,
        min(w.oc, d["tile_c"]),
        high,
        wide,
        w.kh,
        w.kw,
        stride=(w.sh, w.sw),
        padding=(w.ph, w.pw, w.ph_r, w.pw_r),
        dilation=(w.dh, w.dw),
        dtype=w.dtype,
    )


def cases(args: argparse.Namespace) -> Iterator[tuple[str, Task, Decisions, list[str]]]:
    """(operands, smallest task, its decisions, layers), each kind once."""
    target = resolve(f"cuda:{args.arch}")
    layers = merge_duplicates([w for source in args.sources for w in read_source(source)])
    found: dict[Any, list[str]] = defaultdict(list)
    for operands in args.dtypes.split(","):
        name = "direct:tf32" if operands == "tf32" else "direct"
        dtype = "float32" if operands == "tf32" else operands
        for w in layers:
            if w.groups > 1:
                continue
            made = ConvWorkload(**{**asdict(w), "n": args.batch, "dtype": dtype})
            decisions = Task(made, name, target, args.layout).space.default
            small = Task(smallest(made, decisions), name, target, args.layout)
            key = (operands, small, tuple({**decisions, "split_k": 1}.items()))
            found[key].append(w.name or str(w))
    for (operands, task, decided), names in found.items():
        yield operands, task, dict(decided), names


def shown(a: Access) -> str:
    what = "ways" if a.space == "shared" else "sectors"
    start = f"{a.kernel:16} {a.space:6} {a.kind:8} {a.bytes:2} bytes"
    return f"{start}  {a.worst:2} {what} at most, x{a.cost / a.least:.2f}"


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("sources", nargs="*", default=NETWORKS, metavar="SOURCE")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtypes", default="float16,tf32", help="of float16, bfloat16, tf32")
    parser.add_argument("--layout", choices=("NCHW", "NHWC"), default="NHWC")
    return parser


def figures(args: argparse.Namespace, sheet: Sheet) -> int:
    rows: list[dict[str, Any]] = []
    with emulated() as zygote:
        for operands, task, decisions, names in cases(args):
            tiles = "x".join(str(decisions[k]) for k in ("tile_p", "tile_c", "tile_k"))
            print(f"{operands} {task.workload}, tiles {tiles}, {decisions['stages']} stages")
            print(f"  {len(names)} layers: {', '.join(names[:4])}{', ...' * (len(names) > 4)}")
            job = CountedCheck(task, decisions)
            ((_, outcome),) = zygote.call("run", [job], Limits(timeout=300.0))
            if not isinstance(outcome.value, list):
                print(f"  {outcome.kind} {outcome.message}")
                return 1
            for line in sorted({shown(a) for a in outcome.value}):
                print(f"  {line}", flush=True)
            accesses = [asdict(a) for a in outcome.value]
            where = {"operands": operands, "decisions": decisions, "layers": names}
            rows.append({**where, "accesses": accesses})
    sheet.found = {"rows": rows}
    return 0


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
