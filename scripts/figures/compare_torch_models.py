"""Whole models in PyTorch: eager, torch.compile, the same with channels-last and freezing, convtvm.

    python scripts/figures/compare_torch_models.py [MODEL ...] [--threads 1,2] [--log FILE ...]
        [--size 224] [--seconds S] [--workers own] [--starts] [--prepare] [--json FILE]

Batch 1, float32, no gradients; each model and number of threads in a process of its own. Every way
is called in turn, round by round, so that a disturbance meets all of them; shown are medians in
milliseconds, and the largest difference of an output from eager's in double precision, relative to
the largest output. `gain` is the best of the others' medians over ours. ~ marks a noisy time, after
which the exit status is 3; shares of the peak are of the FLOPs of convolutions and products alone.

--prepare only compiles, so that what Inductor and convtvm remember makes a later run short; it may
run on a busy machine. --starts measures seconds from the start of a process to its first result,
with what the run before has left to remember. Without --log the convolutions run by the logs that
came with convtvm.

Quoted by docs/pytorch.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sheet import Sheet, main, parser_of  # noqa: E402

from convtvm.errors import ConvtvmError  # noqa: E402

OURS = "convtvm"
WAYS = ("eager", "compile", "frozen", OURS)
LEAST_ROUNDS = 5
LIMIT = 900  # seconds of a process, after which something hangs
Row = dict[str, Any]


def way_of(way: str, name: str, example: Any, options: argparse.Namespace) -> tuple[Any, Any]:
    """A model as one contestant computes it, and what `optimize` says of it."""
    import torch
    from torch_models import build

    from convtvm.torch import optimize

    model = build(name)
    if way == "compile":
        return torch.compile(model, dynamic=False), None
    if way == "frozen":
        wide = model.to(memory_format=torch.channels_last)
        frozen = torch.compile(wide, dynamic=False, options={"freezing": True})
        return lambda x: frozen(x.to(memory_format=torch.channels_last)), None
    if way == OURS:
        logs = options.log or None
        wished = {"logs": logs, "workers": options.workers}
        return model, optimize(model, example, threads=int(options.threads), **wished)
    return model, None


def example_of(options: argparse.Namespace) -> Any:
    import torch

    torch.set_num_threads(int(options.threads))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, options.size, options.size, generator=generator)


def compare(name: str, options: argparse.Namespace) -> Row:
    """One model: every way compiled, its result compared, then all timed in turn."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from torch_models import build

    from convtvm.measure.timing import Timing

    example = example_of(options)
    row: Row = {"model": name, "threads": int(options.threads), "size": options.size}
    row |= {"error": {}, "compile_seconds": {}}
    ways: dict[str, Callable[[Any], Any]] = {}
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            build(name)(example)
        row["flops"] = counter.get_total_flops()
        reference = build(name).double()(example.double())
        for way in WAYS:
            started = time.perf_counter()
            ways[way], handle = way_of(way, name, example, options)
            difference = (ways[way](example).double() - reference).abs().max()
            row["compile_seconds"][way] = time.perf_counter() - started
            row["error"][way] = float(difference / reference.abs().max())
            if handle is not None:
                row["planned"] = [str(s) for s in handle.sites if s.plan is not None]
                row["left"] = [str(s) for s in handle.sites if s.plan is None]
        secs = in_turn(ways, example, 0 if options.prepare else options.seconds)
    row["rounds"] = len(secs[OURS])
    row["times"] = {way: asdict(Timing.of(taken)) for way, taken in secs.items() if taken}
    row["ms"] = {way: 1e3 * found["seconds"] for way, found in row["times"].items()}
    if row["ms"]:
        row["gain"] = min(m for way, m in row["ms"].items() if way != OURS) / row["ms"][OURS]
    return row


def in_turn(ways: dict[str, Any], example: Any, seconds: float) -> dict[str, list[float]]:
    """Seconds of single calls, one of each way a round, each warm after another way had the
    caches."""
    secs: dict[str, list[float]] = {way: [] for way in ways}
    end = time.perf_counter() + seconds
    while seconds and (len(secs[OURS]) < LEAST_ROUNDS or time.perf_counter() < end):
        for way, call in ways.items():
            call(example)
            started = time.perf_counter()
            call(example)
            secs[way].append(time.perf_counter() - started)
    return secs


def start(name: str, way: str, options: argparse.Namespace) -> None:
    """The first result in this process: whoever started it takes the time."""
    import torch

    example = example_of(options)
    with torch.no_grad():
        way_of(way, name, example, options)[0](example)


def run(name: str, threads: str, options: argparse.Namespace, *more: str) -> str:
    """Run a model in a process of its own. Returns what is wrong, or nothing."""
    command = [sys.executable, __file__, name, "--threads", threads, "--size", str(options.size)]
    command += ["--workers", options.workers]
    command += [part for log in options.log for part in ("--log", str(log))]
    command += ["--seconds", str(options.seconds), *more]
    command += ["--prepare"] * options.prepare
    try:
        done = subprocess.run(
            command, check=False, timeout=LIMIT, stderr=subprocess.PIPE, text=True
        )
    except subprocess.TimeoutExpired:
        return f"not over after {LIMIT} s"
    return "" if not done.returncode else done.stderr.strip()[-2000:]


def measure(name: str, threads: str, options: argparse.Namespace) -> Row:
    """A model's row, with the seconds of a start of each way if they are wanted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        problem = run(name, threads, options, "--row", str(path))
        if problem:
            return {"model": name, "threads": int(threads), "problem": problem}
        row: Row = json.loads(path.read_text())
    if options.starts:
        row["start_seconds"] = {}
        for way in ("eager", "compile", OURS):
            started = time.perf_counter()
            problem = run(name, threads, options, "--start", way)
            row["start_seconds"][way] = time.perf_counter() - started
            if problem:
                row["problem"] = problem
    return row


def show(row: Row, options: argparse.Namespace, sheet: Sheet) -> None:
    head = f"{row['model']:16}{row['threads']:8}"
    if row.get("problem"):
        print(f"{head}  failed: {row['problem']}", flush=True)
        return
    # Whole before it is printed: a first time has the peak measured, which is then told.
    line, abouts = times_of(row, sheet)
    line += f"{row.get('gain', math.nan):8.2f}"
    line += f"{row['error']['eager']:10.1e}{row['error'][OURS]:10.1e}"
    line += f"{len(row['planned']):9}{len(row['left']):6}"
    print(f"{head}{line}", flush=True)
    if abouts:
        print(f"    {'; '.join(abouts)}")
    if options.starts:
        listed = ", ".join(f"{way} {secs:.1f} s" for way, secs in row["start_seconds"].items())
        print(f"    first result after {listed}")
    for site in [*row["left"], *(row["planned"] if options.sites else ())]:
        print(f"    {site}")


def times_of(row: Row, sheet: Sheet) -> tuple[str, list[str]]:
    """The columns of a row's times, and what there is to say about each."""
    from convtvm.machine.targets import resolve
    from convtvm.measure.timing import Timing

    target, line, abouts = resolve("native", row["threads"]), "", []
    for way in WAYS:
        if way not in row["times"]:
            line += f"{'- ':>10}"
            continue
        timing = Timing(**row["times"][way])
        name = f"{row['model']}, threads {row['threads']}, {way}"
        shown = sheet.time(name, timing, row["flops"], target)
        abouts.append(f"{way} {shown.about}")
        line += f"{row['ms'][way]:9.2f}{shown.mark}"
    return line, abouts


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--log", type=Path, action="append", default=[])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=15, help="to time a model for")
    parser.add_argument("--starts", action="store_true", help="measure second starts too")
    parser.add_argument("--prepare", action="store_true", help="compile and compare only")
    whose = {"default": "pytorch", "choices": ("pytorch", "own")}
    parser.add_argument("--workers", help="whose threads ours run on", **whose)
    parser.add_argument("--sites", action="store_true", help="list every convolution")
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> int:
    from torch_models import MODELS

    if foreign := set(options.models) - set(MODELS):
        names = ", ".join(sorted(foreign))
        raise ConvtvmError(f"no models {names}; there are {', '.join(MODELS)}")
    heads = ("ms: eager", "compile", "frozen", OURS)
    print(f"{'':16}{'threads':>8}" + "".join(f"{h:>10}" for h in heads), end="")
    print(f"{'gain':>8}{'error':>10}{'ours':>10}{'planned':>9}{'left':>6}")
    sheet.found = {"models": [], "gain": {}}
    for threads in options.threads.split(","):
        rows = []
        for name in options.models or MODELS:
            rows.append(measure(name, threads, options))
            show(rows[-1], options, sheet)
            sheet.found["models"].append(rows[-1])
        gains = [row["gain"] for row in rows if "gain" in row]
        if gains:
            mean = math.exp(statistics.mean(map(math.log, gains)))
            sheet.found["gain"][threads] = mean
            print(f"geometric mean of the gain, {threads} threads: {mean:.2f}", flush=True)
    return int(any("problem" in row for row in sheet.found["models"]))


def one(options: argparse.Namespace) -> bool:
    """What a process does that `run` has started; whether this is one."""
    if options.start:
        start(options.models[0], options.start, options)
    elif options.row:
        options.row.write_text(json.dumps(compare(options.models[0], options)))
    return bool(options.start or options.row)


if __name__ == "__main__":
    asked = arguments().parse_args()
    if not one(asked):
        main(asked, figures)
