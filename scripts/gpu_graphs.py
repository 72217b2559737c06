"""The step `graphs` of scripts/gpu_check: models of PyTorch through the backend, on the device."""

from __future__ import annotations

import copy
import statistics
from pathlib import Path
from typing import Any

from convtvm.measure.gpu_timing import stopwatch

REPEATS = 30
PRECISIONS = ("fp32", "tf32", "fp16")


def graphs(log: Path) -> dict[str, dict[str, Any]]:
    """Two residual blocks in each precision; nothing without a GPU that PyTorch has."""
    try:
        import torch
    except ImportError:
        return {}
    return {p: graph(p, log) for p in PRECISIONS} if torch.cuda.is_available() else {}


def graph(precision: str, log: Path) -> dict[str, Any]:
    """One precision: how far results are from float64's, and milliseconds of a call."""
    import torch
    from torch_models import resnet, with_statistics

    from convtvm.torch.backend import Backend
    from convtvm.torch.kernels import Kernels
    from convtvm.torch.options import Options

    torch._dynamo.reset()
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    dtype = torch.float16 if precision == "fp16" else torch.float32
    order = torch.channels_last if precision == "fp16" else torch.contiguous_format
    model = with_statistics(lambda: resnet((1, 1), False)).cuda()
    x = torch.randn(1, 3, 224, 224, device="cuda", dtype=dtype)
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(x.double())
    model, x = (t.to(dtype=dtype, memory_format=order) for t in (model, x))
    options = Options.of({"logs": [log]})
    backend = Backend(options, Kernels(options))
    ours, theirs = torch.compile(model, backend=backend), torch.compile(copy.deepcopy(model))

    def error(y: Any) -> float:
        return float((y.double() - exact).abs().max() / exact.abs().max())

    errors = {}
    with torch.no_grad():
        errors["first call"] = error(ours(x))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                y = ours(x)
        torch.cuda.current_stream().wait_stream(side)
        errors["another stream"] = error(y)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, stream=side):
            y = ours(x)
        x.mul_(1)
        captured.replay()
        errors["CUDA graph"] = error(y)
        runs = {
            "convtvm": lambda: ours(x),
            "convtvm, CUDA graph": captured.replay,
            "torch.compile": lambda: theirs(x),
        }
        taken = stopwatch().time(runs, REPEATS)
        times = {name: 1e3 * statistics.median(secs) for name, (secs, _) in taken.items()}
    limit = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2}[precision]
    wrong = {name: value for name, value in errors.items() if not value <= limit}
    sites = [str(site) for site in backend.sites if site.plan is None]
    row = {"errors": errors, "wrong": wrong, "PyTorch's": sites, "ms": times}
    print(f"graph in {precision}: {row}")
    return row
