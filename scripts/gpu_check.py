"""Check and measure convtvm on a GPU, or without one on the emulator: one folder of results.

    scripts/gpu_check [--seconds S] [--source SOURCE] [--folder DIR]

1. what is here: GPU, driver, compiler, PyTorch
2. numerics: every CUDA template over odd shapes against float64
3. tuning: SOURCE's layers for at most S seconds, every algorithm
4. a library from the log, loaded and run
5. each layer side by side with cuDNN through PyTorch: fp32 without TF32, then fp16
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

from convtvm.cuda import gpu  # noqa: E402
from convtvm.workload import ConvWorkload  # noqa: E402

TINY = 'mb1ic5ih9oc8oh9kh3ph1n"tiny"'
REPEATS = 30


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
        arguments.seconds = min(arguments.seconds, 20)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    report = {"emulated": emulated, "facts": facts(), "numerics": numerics(arguments.shapes)}
    report |= tune_and_run(arguments, emulated)
    path = arguments.folder / "report.json"
    path.write_text(json.dumps(report, indent=1), encoding="utf8")
    print(f"\n{arguments.folder}: log, library, report.json")
    if emulated:
        print("emulated: what ran is proved right; no time above means anything")
    sys.exit(any(row["wrong"] for row in report["numerics"].values()))


def facts() -> dict[str, str]:
    """1. What is here."""
    from convtvm.cuda.cubin import find_compiler

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
    from convtvm.cuda.algorithms import CUDA_ALGORITHMS
    from convtvm.cuda.verify import GpuCheck
    from convtvm.measure.client import Zygote
    from convtvm.measure.jobs import Limits
    from convtvm.targets import resolve
    from convtvm.task import Task
    from convtvm.verify import random_workload

    draw, target, rows = random.Random(7), resolve("cuda"), {}
    print(f"\n{'algorithm':18}{'kernels':>8}{'right':>7}{'largest error':>15}")
    with Zygote() as helper:
        for name, algorithm in CUDA_ALGORITHMS.items():
            checks: list[GpuCheck] = []
            while len(checks) < 2 * shapes:
                w = random_workload(draw)
                if algorithm.inapplicable(w) or w.macs > (1 << 17 if shapes < 5 else 1 << 30):
                    continue
                task = Task(w, name, target, draw.choice(("NCHW", "NHWC")))
                other = draw.choice(task.space.points)
                checks += [GpuCheck(task), GpuCheck(task, other)]
            outcomes = dict(helper.call("run", checks, Limits(timeout=120.0)))
            wrong = {str(checks[i]): o.message for i, o in outcomes.items() if o.kind}
            error = max((o.value for o in outcomes.values() if not o.kind), default=0.0)
            rows[name] = {"kernels": len(checks), "wrong": wrong, "largest error": error}
            print(f"{name:18}{len(checks):8}{len(checks) - len(wrong):7}{error:15.1e}")
            for text, message in wrong.items():
                print(f"    {text}: {message}")
    return rows


def tune_and_run(arguments: argparse.Namespace, emulated: bool) -> dict[str, Any]:
    """3. to 5. Tune, compile, load, compare."""
    import convtvm
    from convtvm.sources import merge_duplicates, read_source

    layers = merge_duplicates(read_source(arguments.source))
    layers = [replace(w, n=arguments.batch) for w in layers]
    log = arguments.folder / "tuning.jsonl"
    trials = 2 if emulated else 256
    summary = convtvm.tune(
        layers, "cuda", trials=trials, time_limit=arguments.seconds, log=log, layout="NCHW"
    )
    print(f"\ntuned {len(layers)} layers: {summary.measured} trials, {summary.seconds:.0f} s")
    path = arguments.folder / "library.so"
    convtvm.compile(layers, "cuda", logs=[log], keep="best").export(path)
    library = convtvm.load(path)
    print(f"{path}: {path.stat().st_size:,} bytes, {len(layers)} workloads")
    return {
        "trials": summary.measured,
        "failures": dict(summary.failures),
        "layers": [compare(library, w) for w in library.workloads],
    }


def compare(library: Any, w: ConvWorkload) -> dict[str, Any]:
    """5. One layer: the library's choice, then PyTorch's best setting in fp32 and in fp16."""
    from convtvm.reference import conv2d_reference, random_inputs, relative_error

    data, weight, bias = random_inputs(w, 0, library.layout)
    plan = library.plan(w, weight, bias)
    error = relative_error(plan(data), conv2d_reference(w, data, weight, bias, library.layout))
    row: dict[str, Any] = {"layer": str(w), "algorithm": plan.algorithm, "error": error}
    rivals = cudnn(w, data, weight, bias)
    if rivals:
        import torch

        x = torch.from_numpy(data).cuda()
        out = torch.empty(w.out_shape(library.layout), device="cuda")
        row |= timed({"convtvm": lambda: plan(x, out=out), **rivals})
        best = min(row[name] for name in rivals if "fp16" not in name)
        row["times cuDNN fp32"] = best / row["convtvm"]
    print("  ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    return row


def cudnn(w: ConvWorkload, *arrays: np.ndarray) -> dict[str, Callable[[], Any]]:
    """cuDNN's fastest algorithm in each memory format and precision; none without a GPU."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    settings = {}
    for dtype in (torch.float32, torch.float16):
        for layout in (torch.contiguous_format, torch.channels_last):
            x, kernel, bias = (torch.from_numpy(a).to("cuda", dtype) for a in arrays)
            x, kernel = (t.contiguous(memory_format=layout) for t in (x, kernel))
            if (w.ph, w.pw) != (w.ph_r, w.pw_r):
                continue

            def run(x: Any = x, kernel: Any = kernel, bias: Any = bias) -> Any:
                with torch.inference_mode():
                    return torch.nn.functional.conv2d(
                        x, kernel, bias, (w.sh, w.sw), (w.ph, w.pw), (w.dh, w.dw), w.groups
                    )

            name = "fp32" if dtype is torch.float32 else "fp16"
            settings[f"cuDNN {name}{' nhwc' if layout is torch.channels_last else ''}"] = run
    return settings


def timed(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Milliseconds of single calls by the device's clock, in turns, each with a cold L2 cache."""
    import torch

    cache = torch.empty(2 * (gpu.devices()[0].l2_bytes or 1 << 25), dtype=torch.int8, device="cuda")
    for run in runs.values():
        for _ in range(3):
            run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            cache.zero_()
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            samples[name].append(start.elapsed_time(end))
    return {name: statistics.median(values) for name, values in samples.items()}


if __name__ == "__main__":
    main()
