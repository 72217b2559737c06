"""PyTorch's operator with kernels for a GPU, up to the launch: for a process with the emulator.

PyTorch has no emulated GPU, so its tensors lie on the host and travel there and back.

python -m emulator.operate
"""

from __future__ import annotations

from dataclasses import replace

import torch

import convtvm
from convtvm.dispatch.gpu import GpuPlan
from convtvm.torch.kernels import Kernels, Need
from convtvm.torch.operator import Convolution, Recipe, _gpu_plans, conv, into, register
from convtvm.torch.options import Options

W = convtvm.ConvWorkload.parse("mb2ic5ih9oc8oh9kh3ph1")
OPTIONS = {"target": "cuda:sm_90", "logs": [], "algorithms": ["direct"], "epilogues": ["add"]}
# What a norm that is folded into weights of this type may cost, relative and absolute.
CLOSE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 0.5)}


def addresses(made: Convolution) -> list[int]:
    """Where the weights and biases lie on the GPU that a captured CUDA graph would read."""
    plans = [plan for packed in made._packed.values() for plan in _gpu_plans(packed.plans)]
    return [tensor.data_ptr() for plan in plans for tensor in plan._constants[0]]


def check(dtype: torch.dtype) -> None:
    w = replace(W, dtype=str(dtype).removeprefix("torch."))
    library = convtvm.compile([w], layout="NHWC", **OPTIONS)
    need = Need(w, "NHWC", "cuda", "relu", adds=True, dynamic=True)
    name, made = register(
        Recipe(need, eps=1e-5, biased=True, wide=True), Kernels(Options(), library)
    )
    x, weight, bias, residual = (
        torch.randint(-3, 4, shape).to(dtype)
        for shape in ((2, 5, 9, 9), (8, 5, 3, 3), (8,), (2, 8, 9, 9))
    )
    torch.manual_seed(0)
    norm = [torch.randn(8), torch.rand(8) + 1, torch.rand(8), torch.randn(8)]
    weights = [weight, bias, *norm]
    places: list[int] = []
    for _ in range(3):
        out = conv(x, weights, residual, name)
        plain = torch.nn.functional.conv2d(x.float(), weight.float(), bias.float(), padding=1)
        normed = torch.nn.functional.batch_norm(plain, norm[0], norm[1], norm[2], norm[3])
        relative, absolute = CLOSE[dtype]
        right = torch.relu(normed + residual)
        torch.testing.assert_close(out.float(), right, rtol=relative, atol=absolute)
        assert out.dtype is dtype and out.is_contiguous(memory_format=torch.channels_last)
        assert isinstance(made.latest, GpuPlan)
        both = torch.cat([residual, residual])  # a batch that the library lacks runs in slices
        twice = conv(torch.cat([x, x]), weights, both, name)
        torch.testing.assert_close(twice, torch.cat([out, out]), rtol=0, atol=0)
        for data, added, expected in ((x, residual, out), (torch.cat([x, x]), both, twice)):
            written = torch.full_like(expected, torch.nan)
            into(data, added, *weights, name, out=written)  # as Inductor calls it
            assert torch.equal(written, expected)
        assert places in ([], addresses(made)), "changed weights were packed into other memory"
        places = addresses(made)
        weight.mul_(2)  # packed again, on the GPU too
        made.keep_up()
        packed = next(iter(made._packed.values()))
        assert packed.watched.are(weights), "a replay would use the old weights"


for dtype in CLOSE:
    check(dtype)
