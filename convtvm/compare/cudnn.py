"""PyTorch's convolutions on a GPU, which are cuDNN's fastest: the contestants of `bench` there.

In each memory format, in TF32 where that is wanted, with the bias and without: PyTorch adds it in a
kernel of its own. Data and results stay in the contestant's own format, on the device.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from convtvm.compare.peers import Run, padding
from convtvm.errors import EnvironmentProblem
from convtvm.problem.dtypes import BFLOAT16
from convtvm.problem.workload import ConvWorkload

NO_BIAS = " without bias"  # ends the name of a contestant that adds none


def require() -> None:
    """Raises EnvironmentProblem unless PyTorch is here and has a GPU."""
    try:
        import torch
    except ImportError:
        raise EnvironmentProblem("peer 'torch' needs torch: pip install torch") from None
    if torch.cuda.is_available():
        return
    built = torch.version.cuda
    why = f"is built for CUDA {built} and finds no GPU" if built else "is built without CUDA"
    raise EnvironmentProblem(
        f"peer 'torch' on a GPU needs a PyTorch with CUDA; PyTorch {torch.__version__} {why}"
    )


def contestants(
    w: ConvWorkload,
    data: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    tf32: bool = False,
    device: str = "cuda",
) -> dict[str, Run]:
    """Callables by name; each gives its output, NCHW by its shape, as a tensor of the device.

    `data` is NCHW. Those in TF32 are there besides the exact ones, for float32.
    """
    import torch

    tensors = [_tensor(a).to(device) for a in (data, weight, bias)]
    runs: dict[str, Run] = {}
    formats = {"torch": torch.contiguous_format, "torch-nhwc": torch.channels_last}
    for rounded in (False, True) if tf32 and w.dtype == "float32" else (False,):
        for name, order in formats.items():
            x, kernel = (t.contiguous(memory_format=order) for t in tensors[:2])
            full = f"{name}-tf32" if rounded else name
            for suffix, added in (("", tensors[2]), (NO_BIAS, None)):
                runs[full + suffix] = partial(_convolve, w, x, kernel, added, rounded)
    return runs


def _convolve(
    w: ConvWorkload, x: Any, weight: Any, bias: Any, tf32: bool, benchmark: bool = True
) -> Any:
    import torch

    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.allow_tf32 = tf32
    symmetric, around = padding(w)
    with torch.inference_mode():
        if around:
            x = torch.nn.functional.pad(x, around)
        return torch.nn.functional.conv2d(
            x, weight, bias, (w.sh, w.sw), symmetric, (w.dh, w.dw), w.groups
        )


def _tensor(array: np.ndarray) -> Any:
    """torch.from_numpy, of bfloat16 too, which PyTorch does not take from NumPy."""
    import torch

    if array.dtype.name != BFLOAT16:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


class Answer:
    """The convolution of NCHW data in float64, computed on the device, where results are compared
    with it: a core of the host takes seconds for either."""

    def __init__(
        self, w: ConvWorkload, data: np.ndarray, weight: np.ndarray, bias: np.ndarray, device: str
    ) -> None:

        x, kernel, self.bias = (_tensor(a).to(device).double() for a in (data, weight, bias))
        self.right = _convolve(w, x, kernel, self.bias, tf32=False, benchmark=False)

    def error(self, out: Any, with_bias: bool = True) -> float:
        """The error of an NCHW tensor or array, relative to the largest; NaN is infinite."""

        if isinstance(out, np.ndarray):
            out = _tensor(out)
        right = self.right if with_bias else self.right - self.bias[:, None, None]
        off = float((out.to(right.device).double() - right).abs().max() / right.abs().max())
        return off if math.isfinite(off) else math.inf
