"""PyTorch's operator with kernels for a GPU, up to the launch: for a process with the emulator.

PyTorch has no emulated GPU, so its tensors lie on the host and travel there and back.

python -m emulator.operate
"""

from __future__ import annotations

import torch

import convtvm
from convtvm.dispatch.gpu import GpuPlan
from convtvm.torch.kernels import Kernels, Need
from convtvm.torch.operator import Recipe, _gpu_plans, conv, register
from convtvm.torch.options import Options

w = convtvm.ConvWorkload.parse("mb2ic5ih9oc8oh9kh3ph1")
options = {"target": "cuda:sm_90", "logs": [], "algorithms": ["direct"], "epilogues": ["add"]}
library = convtvm.compile([w], layout="NHWC", **options)
need = Need(w, "NHWC", "cuda", "relu", adds=True, dynamic=True)
recipe = Recipe(need, eps=1e-5, wide=True)
name, made = register(recipe, Kernels(Options(), library))
x, weight, bias, residual = (
    torch.randint(-3, 4, shape).float()
    for shape in ((2, 5, 9, 9), (8, 5, 3, 3), (8,), (2, 8, 9, 9))
)
norm = [torch.randn(8), torch.rand(8) + 1, torch.rand(8), torch.randn(8)]


def addresses() -> list[int]:
    """Where the weights and biases lie on the GPU that a captured CUDA graph would read."""
    plans = [plan for packed in made._packed.values() for plan in _gpu_plans(packed.plans)]
    return [tensor.data_ptr() for plan in plans for tensor in plan._constants[0]]


places: list[int] = []
for _ in range(3):
    out = conv(x, weight, bias, norm, residual, [], name)
    plain = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    normed = torch.nn.functional.batch_norm(plain, norm[0], norm[1], norm[2], norm[3])
    torch.testing.assert_close(out, torch.relu(normed + residual), rtol=1e-5, atol=1e-4)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(made.latest, GpuPlan)
    both = torch.cat([residual, residual])  # a batch that the library lacks runs in slices
    twice = conv(torch.cat([x, x]), weight, bias, norm, both, [], name)
    torch.testing.assert_close(twice, torch.cat([out, out]), rtol=0, atol=0)
    assert places in ([], addresses()), "changed weights were packed into other memory"
    places = addresses()
    weight.mul_(2)  # packed again, on the GPU too
    made.keep_up()
    packed = next(iter(made._packed.values()))
    assert packed.watched.are([weight, bias, *norm]), "a replay would use the old weights"
