"""Check and measure convtvm on a GPU, or without one on the emulator: one folder of results.

    scripts/gpu_check [--seconds S] [--source SOURCE] [--folder DIR]

1. what is here: GPU, driver, compiler, PyTorch
2. numerics: every CUDA template over odd shapes against float64, in float32 and float16
3. tuning: SOURCE's layers for at most S seconds, every algorithm; float16 in NHWC
4. libraries from the log, loaded and run
5. each layer side by side with cuDNN through PyTorch in fp32, TF32 and fp16
6. graphs of PyTorch through the backend: results, a stream and a CUDA graph of one's own, times
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gpu_graphs import graphs  # noqa: E402

from convtvm.machine import gpu  # noqa: E402
from convtvm.measure.gpu_timing import stopwatch  # noqa: E402
from convtvm.problem.workload import ConvWorkload  # noqa: E402

HALF = "float16"
TINY = 'mb1ic5ih9oc8oh9kh3ph1n"tiny"'
REPEATS = 30
TF32_ERROR = 2e-3  # that a choice in TF32 may have
# Precision -> its share of the time, dtype, layout, algorithms (all but the opt-ins for None).
PRECISIONS: dict[str, tuple[float, str, str, list[str] | None]] = {
    "fp32": (0.45, "float32", "NCHW", None),
    "tf32": (0.15, "float32", "NCHW", ["direct:tf32", "im2col:tf32"]),
    "fp16": (0.4, "float16", "NHWC", None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=240, help="time to tune for, at most")
    parser.add_argument("--source", default="resnet50", help="network, file or workload")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--shapes", type=int, default=40, help="random shapes of the numerics")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu_check")
    arguments = parser.parse_args()
    emulated = "EMULATOR_LIBRARIES" in os.environ
    if not emulated and not gpu.devices():
        from emulator import environment

        print("no NVIDIA GPU or no driver here: the same steps on an emulated GPU, at tiny sizes")
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment()})
    if emulated:
        arguments.source, arguments.batch, arguments.shapes = TINY, 1, 2
        arguments.seconds = min(arguments.seconds, 90)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    report = {"emulated": emulated, "facts": facts(), "numerics": numerics(arguments.shapes)}
    report |= tune_and_run(arguments, emulated)
    report["graphs"] = graphs(arguments.folder / "tuning.jsonl")
    path = arguments.folder / "report.json"
    path.write_text(json.dumps(report, indent=1), encoding="utf8")
    print(f"\n{arguments.folder}: log, library, report.json")
    if emulated:
        print("emulated: what ran is proved right; no time above means anything")
    wrong = [row["wrong"] for row in (*report["numerics"].values(), *report["graphs"].values())]
    sys.exit(any(wrong))


def facts() -> dict[str, str]:
    """1. What is here."""
    from convtvm.kernels.cuda.cubin import find_compiler

    device = gpu.devices()[0]
    found = {"GPU": device.name, "architecture": device.arch, "compiler": find_compiler().name}
    try:
        import torch

        found["PyTorch"] = torch.__version__
        if torch.cuda.is_available():
            found["cuDNN"] = str(torch.backends.cudnn.version())
    except ImportError:
        found["PyTorch"] = "none"
    for name, value in found.items():
        print(f"{name}: {value}")
    return found


def numerics(shapes: int) -> dict[str, dict[str, Any]]:
    """2. Every template: default and random decisions over random shapes, both layouts."""
    from convtvm.kernels.cuda.algorithms import CUDA_ALGORITHMS
    from convtvm.kernels.task import Task
    from convtvm.machine.targets import resolve
    from convtvm.measure.client import Zygote
    from convtvm.measure.gpu_verify import GpuCheck
    from convtvm.measure.jobs import Limits
    from convtvm.measure.verify import random_workload

    draw, target, rows = random.Random(7), resolve("cuda"), {}
    probe = ConvWorkload.make(8, 8, 9, kh=3, n=2, groups=1)
    half = [n for n, a in CUDA_ALGORITHMS.items() if not a.inapplicable(replace(probe, dtype=HALF))]
    cases = [(n, "float32") for n in CUDA_ALGORITHMS] + [(n, HALF) for n in half]
    print(f"\n{'algorithm':24}{'kernels':>8}{'right':>7}{'largest error':>15}")
    with Zygote() as helper:
        for name, dtype in cases:
            algorithm, label = CUDA_ALGORITHMS[name], f"{name} {dtype}"
            checks: list[GpuCheck] = []
            while len(checks) < 2 * shapes:
                w = replace(random_workload(draw), dtype=dtype)
                if algorithm.inapplicable(w) or w.macs > (1 << 17 if shapes < 5 else 1 << 30):
                    continue
                task = Task(w, name, target, draw.choice(("NCHW", "NHWC")))
                other = draw.choice(task.space.points)
                checks += [GpuCheck(task), GpuCheck(task, other)]
            outcomes = dict(helper.call("run", checks, Limits(timeout=120.0)))
            wrong = {str(checks[i]): o.message for i, o in outcomes.items() if o.kind}
            error = max((o.value for o in outcomes.values() if not o.kind), default=0.0)
            rows[label] = {"kernels": len(checks), "wrong": wrong, "largest error": error}
            print(f"{label:24}{len(checks):8}{len(checks) - len(wrong):7}{error:15.1e}")
            for text, message in wrong.items():
                print(f"    {text}: {message}")
    return rows


def tune_and_run(arguments: argparse.Namespace, emulated: bool) -> dict[str, Any]:
    """3. to 5. Tune, compile, load, compare."""
    import convtvm
    from convtvm.problem.sources import merge_duplicates, read_source

    layers = merge_duplicates(read_source(arguments.source))
    layers = [replace(w, n=arguments.batch) for w in layers]
    log, report = arguments.folder / "tuning.jsonl", {}
    for precision, (share, dtype, layout, algorithms) in PRECISIONS.items():
        typed = [replace(w, dtype=dtype) for w in layers]
        summary = convtvm.tune(
            typed,
            "cuda",
            trials=2 if emulated else 256,
            time_limit=share * arguments.seconds,
            log=log,
            layout=layout,
            algorithms=algorithms,
        )
        trials, seconds = summary.measured, summary.seconds
        print(f"\n{precision}: {len(typed)} layers, {trials} trials, {seconds:.0f} s")
        path = arguments.folder / f"{precision}.so"
        options = {"layout": layout, "algorithms": algorithms, "keep": "best"}
        convtvm.compile(typed, "cuda", logs=[log], **options).export(path)
        library = convtvm.load(path)
        print(f"{path}: {path.stat().st_size:,} bytes, {len(typed)} workloads")
        report[precision] = {
            "trials": trials,
            "failures": dict(summary.failures),
            "layers": [compare(library, w, precision) for w in library.workloads],
        }
    return report


def compare(library: Any, w: ConvWorkload, precision: str) -> dict[str, Any]:
    """5. One layer: the library's choice, then PyTorch's best setting in this precision."""
    from convtvm.errors import NoCandidate
    from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error

    arrays = data, weight, bias = random_inputs(w, 0, library.layout)
    try:
        limit = TF32_ERROR if precision == "tf32" else None
        plan = library.plan(w, weight, bias, max_error=limit)
    except NoCandidate as error:  # nothing was measured in the time there was
        print(error)
        return {"layer": str(w), "algorithm": "none"}
    error = relative_error(plan(data), conv2d_reference(w, *arrays, library.layout))
    row: dict[str, Any] = {"layer": str(w), "algorithm": plan.algorithm, "error": error}
    rivals = cudnn(w, precision, library.layout, *arrays)
    if rivals:
        import torch

        x = torch.from_numpy(data).cuda()
        out = torch.empty(w.out_shape(library.layout), device="cuda", dtype=x.dtype)
        row |= timed({"convtvm": lambda: plan(x, out=out), **rivals})
        row["times cuDNN"] = min(row[name] for name in rivals) / row["convtvm"]
    print("  ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    return row


def cudnn(
    w: ConvWorkload, precision: str, layout: str, *arrays: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """cuDNN's fastest algorithm in each memory format; none without a GPU, or for padding that
    PyTorch does not have."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available() or (w.ph, w.pw) != (w.ph_r, w.pw_r):
        return {}
    torch.backends.cudnn.benchmark = True
    permitted = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = permitted
    data, weight, bias = (torch.from_numpy(a).cuda() for a in arrays)
    data = data.permute(0, 3, 1, 2) if layout == "NHWC" else data
    settings = {}
    for order in (torch.contiguous_format, torch.channels_last):
        x, kernel = (t.contiguous(memory_format=order) for t in (data, weight))

        def run(x: Any = x, kernel: Any = kernel) -> Any:
            with torch.inference_mode():
                return torch.nn.functional.conv2d(
                    x, kernel, bias, (w.sh, w.sw), (w.ph, w.pw), (w.dh, w.dw), w.groups
                )

        settings[f"cuDNN {'nhwc' if order is torch.channels_last else 'nchw'}"] = run
    return settings


def timed(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Milliseconds of single calls by the device's clock, in turns, each with a cold L2 cache."""
    times = stopwatch().time(runs, REPEATS)
    return {name: 1e3 * statistics.median(taken) for name, (taken, _) in times.items()}


if __name__ == "__main__":
    main()
