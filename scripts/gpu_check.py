"""Check and measure convtvm on a GPU, or without one on the emulator: one folder of results.

    scripts/gpu_check [--seconds S] [--steps A,B] [--sources A,B] [--folder DIR]

facts      what is here: GPU, driver, compiler, PyTorch
numerics   every CUDA template over odd shapes against float64, in float32, float16, bfloat16
layers     for each batch and precision: tuning, a library, each layer side by side with cuDNN
graphs     models of PyTorch through the backend: results, and times beside torch.compile
log        the best records, fit for tuning_logs/
summary    a table

report.json is written again after every step; one that fails is recorded with its traceback, and
the next goes on. Tuning begins with the records that came along for this very GPU; a second run in
the same folder goes on from the trials of the first, and with --no-tuning only compares again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gpu_graphs import graphs  # noqa: E402
from gpu_summary import print_summary  # noqa: E402

from convtvm.files import write_whole  # noqa: E402
from convtvm.machine import gpu  # noqa: E402
from convtvm.problem.dtypes import BYTES  # noqa: E402
from convtvm.problem.workload import ConvWorkload  # noqa: E402

STEPS = ("facts", "numerics", "layers", "graphs", "log")
# As small as an emulated GPU needs them, with padding that a stride never reads on two sides.
TINY = ('mb1ic5ih9oc8oh9kh3ph1n"tiny"', 'mb1ic3ih8oc8oh4kh3sh2ph1n"strided"')
EMULATED_TRIALS = 6  # of a batch and precision
MOST_HELPERS = 16  # that build and check kernels at once
REPEATS = 40
TF32_ERROR = 2e-3  # that a choice in TF32 may have
# Precision -> its share of the time, dtype, layout, algorithms to tune (all but the opt-ins for
# None).
PRECISIONS: dict[str, tuple[float, str, str, list[str] | None]] = {
    "fp32": (0.4, "float32", "NCHW", None),
    "tf32": (0.2, "float32", "NCHW", ["direct:tf32", "im2col:tf32"]),
    "fp16": (0.4, "float16", "NHWC", None),
    "bf16": (0.2, "bfloat16", "NHWC", None),
}
# When steps have to be over, as shares of all the time; what is left is for graphs.
NUMERICS_END, LAYERS_END = 0.15, 0.7
TUNING = 0.7  # of a precision's time; its library and the comparison take the rest


class Report:
    """What was found so far: a file that is written again after every step."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.content = path, dict[str, Any]()
        self.started, self.seconds = time.monotonic(), seconds

    def left(self, share: float = 1.0) -> float:
        """Seconds until this share of all the time is over."""
        return self.started + share * self.seconds - time.monotonic()

    def step(self, name: str, run: Callable[[], Any]) -> None:
        """Run a step and keep what it returns, or how it failed."""
        print(f"\n== {name}, {time.monotonic() - self.started:.0f} s after the start")
        started = time.monotonic()
        entry: dict[str, Any] = {}
        try:
            entry["result"] = run()
        except Exception:
            entry["error"] = traceback.format_exc()
            print(entry["error"])
        entry["seconds"] = round(time.monotonic() - started, 1)
        self.keep(name, entry)

    def keep(self, name: str, entry: dict[str, Any]) -> None:
        self.content[name] = entry
        write_whole(self.path, json.dumps(self.content, indent=1).encode())

    @property
    def is_good(self) -> bool:
        """Whether every step ran and nothing was wrong."""
        entries = self.content.values()
        results = [e.get("result") or {} for e in entries]
        rows = [row for r in results for row in r.values() if isinstance(row, dict)]
        return not any("error" in e for e in entries) and not any(r.get("wrong") for r in rows)


def main() -> None:
    arguments = parse()
    emulated = "EMULATOR_LIBRARIES" in os.environ
    if not emulated and not gpu.devices():
        from emulator import environment

        print("no NVIDIA GPU or no driver here: the same steps on an emulated GPU, at tiny sizes")
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment()})
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    folder, steps = arguments.folder, arguments.steps.split(",")
    folder.mkdir(parents=True, exist_ok=True)
    keep_earlier(folder / "report.json")
    # An emulated GPU is slow: there trials are counted instead.
    seconds = math.inf if emulated else arguments.seconds
    report = Report(folder / "report.json", seconds)
    if "facts" in steps:
        report.step("facts", facts)
    if "numerics" in steps:
        shapes = 2 if emulated else arguments.shapes
        report.step("numerics", lambda: numerics(report, shapes))
    if "layers" in steps:
        layers(report, arguments, emulated)
    log = folder / "tuning.jsonl"
    if "graphs" in steps:
        report.step("graphs", lambda: graphs(log, report.left()))
    if "log" in steps and log.exists():
        report.step("log", lambda: best_records(log))
    print_summary(report.content)
    print(f"\n{folder}: tuning.jsonl, libraries, report.json")
    if emulated:
        print("emulated: what ran is proved right; no time above means anything")
    sys.exit(not report.is_good)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=540, help="for everything, about")
    parser.add_argument("--steps", default=",".join(STEPS), help="some of the steps")
    parser.add_argument("--sources", default="resnet50,vgg16", help="networks, files, workloads")
    parser.add_argument("--batches", default="1,16", help="images at once")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--no-tuning", action="store_true", help="compare what is in the log")
    parser.add_argument("--shapes", type=int, default=8, help="random shapes of the numerics")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu_check")
    arguments = parser.parse_args()
    for name in arguments.steps.split(","):
        if name not in STEPS:
            parser.error(f"unknown step {name!r}, expected some of {','.join(STEPS)}")
    for name in arguments.precisions.split(","):
        if name not in PRECISIONS:
            parser.error(f"unknown precision {name!r}, expected some of {','.join(PRECISIONS)}")
    return arguments


def keep_earlier(path: Path) -> None:
    """Give the report of an earlier run a name of its own: report-1.json and so on."""
    if path.exists():
        number = 1 + len(list(path.parent.glob("report-*.json")))
        path.rename(path.with_name(f"report-{number}.json"))


def facts() -> dict[str, str]:
    from convtvm.kernels.cuda.cubin import find_compiler

    device = gpu.devices()[0]
    found = {"GPU": device.name, "architecture": device.arch, "compiler": find_compiler().name}
    found["cores"] = str(len(os.sched_getaffinity(0)))
    found["driver, highest clock"] = smi("driver_version,clocks.max.sm,power.limit")
    torch = pytorch()
    found["PyTorch"] = torch.__version__ if torch else "none with CUDA"
    if torch:
        found["cuDNN"] = str(torch.backends.cudnn.version())
    for name, value in found.items():
        print(f"{name}: {value}")
    return found


def smi(query: str) -> str:
    """What nvidia-smi knows of the first GPU, or why it says nothing."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.check_output(command, text=True).strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return str(error)


def pytorch() -> Any:
    """PyTorch where it has a GPU, else None."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def numerics(report: Report, shapes: int) -> dict[str, dict[str, Any]]:
    """Every template: default and random decisions over random shapes, both layouts."""
    from convtvm.kernels.cuda.algorithms import CUDA_ALGORITHMS

    probe = ConvWorkload.make(8, 8, 9, kh=3, n=2, groups=1)
    cases = [
        (name, dtype)
        for dtype in BYTES
        for name, a in CUDA_ALGORITHMS.items()
        if dtype == "float32" or not a.inapplicable(replace(probe, dtype=dtype))
    ]
    print(f"{'algorithm':24}{'kernels':>8}{'right':>7}{'largest error':>15}")
    rows = {}
    deadline = time.monotonic() + report.left(NUMERICS_END)
    jobs = [checks_of(*case, shapes, random.Random(i)) for i, case in enumerate(cases)]
    with ThreadPoolExecutor(min(MOST_HELPERS, len(os.sched_getaffinity(0)))) as pool:
        outcomes = pool.map(lambda job: checked(job, deadline), jobs)
        for (name, dtype), row in zip(cases, outcomes, strict=True):
            rows[label := f"{name} {dtype}"] = row
            right = row["kernels"] - len(row["wrong"])
            print(f"{label:24}{row['kernels']:8}{right:7}{row['largest error']:15.1e}")
            for text, message in row["wrong"].items():
                print(f"    {text}: {message}")
            report.keep("numerics", {"result": rows})
    return rows


def checks_of(name: str, dtype: str, shapes: int, draw: random.Random) -> list[Any]:
    from convtvm.kernels.cuda.algorithms import CUDA_ALGORITHMS
    from convtvm.kernels.task import Task
    from convtvm.machine.targets import resolve
    from convtvm.measure.gpu_verify import GpuCheck
    from convtvm.measure.verify import random_workload

    target, checks = resolve("cuda"), list[Any]()
    while len(checks) < 2 * shapes:
        w = replace(random_workload(draw), dtype=dtype)
        small = w.macs <= (1 << 17 if shapes < 5 else 1 << 30)
        if small and not CUDA_ALGORITHMS[name].inapplicable(w):
            task = Task(w, name, target, draw.choice(("NCHW", "NHWC")))
            checks += [GpuCheck(task), GpuCheck(task, draw.choice(task.space.points))]
    return checks


def checked(checks: list[Any], deadline: float) -> dict[str, Any]:
    """What became of the checks, in a helper of their own: kernels build on many cores at once."""
    from convtvm.measure.client import Zygote
    from convtvm.measure.jobs import STOPPED, Limits

    with Zygote(deadline=deadline) as helper:
        outcomes = dict(helper.call("run", checks, Limits(timeout=120.0)))
    ran = {i: o for i, o in outcomes.items() if o.kind != STOPPED}
    return {
        "kernels": len(ran),
        "wrong": {str(checks[i]): f"{o.kind} {o.message}" for i, o in ran.items() if o.kind},
        "largest error": max((o.value for o in ran.values() if not o.kind), default=0.0),
    }


def layers(report: Report, arguments: argparse.Namespace, emulated: bool) -> None:
    """Each batch and precision is a step of its own, with its share of the time that is left."""
    batches = [int(n) for n in arguments.batches.split(",")]
    todo = [(n, p) for n in batches for p in arguments.precisions.split(",")]
    sources = TINY if emulated else tuple(arguments.sources.split(","))
    log = arguments.folder / "tuning.jsonl"
    begin(log)
    for i, (batch, precision) in enumerate(todo):
        rest = sum(PRECISIONS[p][0] for _, p in todo[i:])
        seconds = max(1.0, report.left(LAYERS_END)) * PRECISIONS[precision][0] / rest

        def run(batch: int = batch, precision: str = precision, seconds: float = seconds) -> Any:
            found = workloads(precision, batch, sources)
            spent = {} if arguments.no_tuning else tune(precision, found, seconds, log, emulated)
            return {"tuning": spent, **compare(precision, batch, found, log, emulated)}

        report.step(f"{precision}, batch {batch}", run)


def begin(log: Path) -> None:
    """Let a new log begin with the records that came along for this very GPU."""
    from convtvm.logs import records

    if not log.exists():
        device, lines = gpu.devices()[0].name, list[str]()
        for path in records.shipped_logs():
            lines += [t for t in path.read_text().splitlines() if json.loads(t)["device"] == device]
        log.write_text("".join(f"{line}\n" for line in lines))
        print(f"{log}: begins with {len(lines)} records of {device}")


def workloads(precision: str, batch: int, sources: tuple[str, ...]) -> list[ConvWorkload]:
    from convtvm.problem.sources import merge_duplicates, read_source

    found = [w for source in sources for w in read_source(source)]
    dtype = PRECISIONS[precision][1]
    return merge_duplicates(replace(w, n=batch, dtype=dtype) for w in found)


def tune(
    precision: str, found: list[ConvWorkload], seconds: float, log: Path, emulated: bool
) -> dict[str, Any]:
    import convtvm

    _, _, layout, algorithms = PRECISIONS[precision]
    made = convtvm.tune(
        found,
        "cuda",
        trials=256,
        total_trials=EMULATED_TRIALS if emulated else None,
        time_limit=None if math.isinf(seconds) else TUNING * seconds,
        log=log,
        layout=layout,
        algorithms=algorithms,
    )
    failures = dict(made.failures)
    print(f"{len(found)} layers, {made.measured} trials in {made.seconds:.0f} s, {failures}")
    return {"trials": made.measured, "seconds": made.seconds, "failures": failures}


def compare(
    precision: str, batch: int, found: list[ConvWorkload], log: Path, emulated: bool
) -> dict[str, Any]:
    """Compile the best kernels; each layer beside PyTorch's."""
    import convtvm
    from convtvm.cli.gpu_benching import document, print_rows
    from convtvm.compare.gpu_bench import bench

    layout, path = PRECISIONS[precision][2], log.with_name(f"{precision}_batch{batch}.so")
    convtvm.compile(found, "cuda", logs=[log], layout=layout, keep="best").export(path)
    library = convtvm.load(path)
    print(f"{path}: {path.stat().st_size:,} bytes")
    # The emulated GPU runs none of PyTorch's kernels: there its place is taken by those of a CPU.
    device = "cuda" if pytorch() else "cpu" if emulated and has_torch() else ""
    limit = TF32_ERROR if precision == "tf32" else None
    repeat = 3 if emulated else REPEATS
    rows = list(bench(library, bool(device), repeat, limit, device))
    clock = smi("clocks.sm,clocks.mem,power.draw,temperature.gpu")
    print_rows(f"{precision}, batch {batch}, {layout}, cold L2 cache", rows)
    print(f"clocks, power, temperature afterwards: {clock}")
    return {"clock": clock, **document(rows)}


def has_torch() -> bool:
    from importlib.util import find_spec

    return find_spec("torch") is not None


def best_records(log: Path) -> dict[str, Any]:
    """Winners and runners-up in a file for tuning_logs/, checked as the command does it."""
    from convtvm.cli import main as convtvm

    device = gpu.devices()[0]
    name = "".join(c if c.isalnum() else "-" for c in device.name.lower())
    best = log.parent / device.arch / f"{name}.jsonl"
    best.parent.mkdir(exist_ok=True)
    status = convtvm(["log", "best", str(log), "-o", str(best)])
    checked = convtvm(["log", "check", str(best)])
    if status or checked:
        raise RuntimeError(f"log best ended with {status}, log check with {checked}")
    return {"file": str(best), "records": len(best.read_text(encoding="utf8").splitlines())}


if __name__ == "__main__":
    main()
