"""Tune ResNet-18's convolutions for this CPU, export one library, run every layer from it.

    scripts/quickstart [--threads N] [--seconds S] [--trials N]

The library runs in a new process that has no compiler, is checked there against float64, and is
timed side by side with an untuned library of the same layers. A second run resumes from the log.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

SOURCE = "resnet18"
BUILD = Path("build")
FIRST, AGAIN = 240, 10  # seconds of tuning: in the first run, and in one that resumes its log


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    # One thread by default: timings of several are wrong without looking so on a busy machine.
    parser.add_argument("--threads", type=int, default=1, help="threads to tune for")
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"time to tune for, at most (default: {FIRST}; {AGAIN} with a log)",
    )
    parser.add_argument("--trials", type=int, default=32, help="trials per layer and algorithm")
    parser.add_argument("--run", nargs=2, type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.run:
        run_libraries(*arguments.run)
        return
    import convtvm
    from convtvm.machine.cpu import device_name
    from convtvm.machine.targets import resolve
    from convtvm.problem.sources import read_source

    BUILD.mkdir(exist_ok=True)
    threads = arguments.threads
    target = resolve("native", threads)
    log = BUILD / f"quickstart-{threads}t.jsonl"
    print(f"{device_name()}, {threads} threads, target {target.name}")
    command(
        "tune", SOURCE, "--threads", threads, "--trials", arguments.trials,
        "--time-limit", arguments.seconds or (AGAIN if log.exists() else FIRST), "--log", log,
    )  # fmt: skip
    tuned, untuned = BUILD / "resnet18.so", BUILD / "resnet18-untuned.so"
    command("compile", SOURCE, "--threads", threads, "--log", log, "-o", tuned, quiet=True)
    layers = read_source(SOURCE)
    convtvm.compile(layers, target, logs=[], keep="best").export(untuned)
    script = [sys.executable, __file__, "--run", str(tuned), str(untuned)]
    done = subprocess.run(script, check=True, stdout=subprocess.PIPE)
    # Last, so that no compiler is loaded and no thread pool is running while the layers are timed.
    from convtvm.measure.peak import measure_peak

    show(json.loads(done.stdout), measure_peak(target))


def command(*words: object, quiet: bool = False) -> None:
    """Run a convtvm command as a user would; stop with its status if it fails."""
    line = [sys.executable, "-m", "convtvm", *map(str, words)]
    print("$ convtvm", *map(str, words), flush=True)
    done = subprocess.run(line, stdout=subprocess.DEVNULL if quiet else None)
    if done.returncode:
        sys.exit(done.returncode)


def run_libraries(tuned_path: Path, untuned_path: Path) -> None:
    """In a process of its own: check and time every layer of both libraries; JSON to stdout."""
    import numpy as np

    import convtvm
    from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error

    tuned, untuned = convtvm.load(tuned_path), convtvm.load(untuned_path)
    rows = []
    for w in tuned.workloads:
        data, weight, bias = random_inputs(w, seed=1, layout=tuned.layout)
        reference = conv2d_reference(w, data, weight, bias, tuned.layout)
        plans = [library.plan(w, weight, bias) for library in (untuned, tuned)]
        outs = [np.empty(reference.shape, np.float32) for _ in plans]
        seconds: list[list[float]] = [[], []]
        for _ in range(15):  # in turn, so that a slow moment of the machine hits both
            for plan, out, times in zip(plans, outs, seconds, strict=True):
                started = time.perf_counter()
                plan(data, out=out)
                times.append(time.perf_counter() - started)
        errors = [relative_error(out, reference) for out in outs]
        rows.append(
            {
                "layer": w.name,
                "workload": w.key,
                "flops": w.flops,
                "algorithm": plans[1].algorithm,
                "untuned_secs": sorted(seconds[0])[7],
                "tuned_secs": sorted(seconds[1])[7],
                "max_error": max(errors),
            }
        )
    assert "tvm" not in sys.modules, "the run time must not load the compiler"
    json.dump(rows, sys.stdout)


def show(rows: list[dict], peak: float) -> None:
    """The table; stops with an error if any layer was wrong."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"ResNet-18's convolutions, median of 15 (peak {peak / 1e9:.0f} GFLOP/s)")
    table.add_column("layer")
    for name in (
        "untuned ms",
        "tuned ms",
        "speed-up",
        "algorithm",
        "GFLOP/s",
        "% of peak",
        "error",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        speed = row["flops"] / row["tuned_secs"]
        table.add_row(
            row["layer"],
            f"{row['untuned_secs'] * 1e3:.3f}",
            f"{row['tuned_secs'] * 1e3:.3f}",
            f"{row['untuned_secs'] / row['tuned_secs']:.2f}x",
            row["algorithm"],
            f"{speed / 1e9:.0f}",
            f"{100 * speed / peak:.0f}",
            f"{row['max_error']:.0e}",
        )
    console = Console()
    if not console.is_terminal:
        console.width = 110
    console.print(table)
    console.print(
        "GFLOP/s counts the operations of direct convolution, so Winograd may exceed the peak."
    )
    wrong = [row["layer"] for row in rows if not row["max_error"] <= 1e-4]
    if wrong:
        sys.exit(f"convtvm: error: wrong results in {', '.join(wrong)}")


if __name__ == "__main__":
    main()
