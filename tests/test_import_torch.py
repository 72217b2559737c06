"""PyTorch operators and layers at odd sizes, each a model of its own, against the eager one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch.nn.functional as F  # noqa: E402
from models import build_together, random_inputs, settle  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

from convtvm.models.from_torch import from_torch  # noqa: E402
from convtvm.models.imported import Imported  # noqa: E402

IMAGE = (1, 6, 7, 9)
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "mish": F.mish,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "tanhshrink": F.tanhshrink,
    "softsign": F.softsign,
    "threshold": lambda x: F.threshold(x, 0.1, 0.2),
    "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.7),
    "glu": lambda x: F.glu(x, 1),
    "softmax": lambda x: F.softmax(x, 1),
    "logsoftmax": lambda x: F.log_softmax(x, -1),
    "amax": lambda x: x.amax((2, 3)),
    "amin": lambda x: x.amin(1, keepdim=True),
    "max": lambda x: x.max(),
    "maxdim": lambda x: x.max(1)[0],
    "argmax": lambda x: x.argmax(1),
    "mean": lambda x: x.mean((2, 3)),
    "var": lambda x: x.var(1),
    "std": lambda x: x.std((2, 3), unbiased=False),
    "norm": lambda x: F.normalize(x, dim=1),
    "logsumexp": lambda x: x.logsumexp(1),
    "prod": lambda x: x.prod(1),
    "cumsum": lambda x: x.cumsum(2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest to a size": lambda x: F.interpolate(x, size=(5, 13)),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear with corners": lambda x: F.interpolate(
        x, size=(15, 4), mode="bilinear", align_corners=True
    ),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "area": lambda x: F.interpolate(x, size=(3, 4), mode="area"),
    "bilinear by an odd scale": lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear"),
    "pixel shuffle": lambda x: F.pixel_shuffle(x[:, :4], 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x[:, :, :6, :8], 2),
    "channel shuffle": lambda x: F.channel_shuffle(x, 3),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3)),
    "pad by reflection": lambda x: F.pad(x, (1, 2, 0, 3), mode="reflect"),
    "pad by the edge": lambda x: F.pad(x, (1, 2, 0, 3), mode="replicate"),
    "pad in a circle": lambda x: F.pad(x, (1, 2, 0, 3), mode="circular"),
    "pad with less than nothing": lambda x: F.pad(x, (-1, 2, 0, -3)),
    "cat": lambda x: torch.cat([x, x * 2], 1),
    "stack": lambda x: torch.stack([x, x * 2], 1),
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda x: x.split([1, 2, 3], 1)[2],
    "slice": lambda x: x[:, 1:5:2, ::3, -4:],
    "flip": lambda x: x.flip(3),
    "roll": lambda x: x.roll((1, 2), (2, 3)),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "flatten": lambda x: x.flatten(1),
    "squeeze": lambda x: x[:, :1].squeeze(),
    "expand": lambda x: x[:, :1].expand(-1, 6, -1, -1) + x,
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "gather": lambda x: x[:, [2, 0, 1]],
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "clampmin": lambda x: x.clamp(min=0.1),
    "clamp": lambda x: x.clamp(-0.1, 0.5),
    "pow": lambda x: x.pow(2) + x.abs().pow(0.5) + x**3,
    "abs": lambda x: x.abs() / (x * x + 1).sqrt(),
    "exp": lambda x: torch.exp(x) - torch.log(x.abs() + 1),
    "expm1": lambda x: torch.expm1(x) + torch.log1p(x.abs()),
    "erf": torch.erf,
    "sign": torch.sign,
    "floor": lambda x: x.floor() + x.ceil() + x.round() + x.trunc(),
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(),
    "atan": lambda x: x.atan() + x.sin() + x.cos(),
    "einsum": lambda x: torch.einsum("nchw,nchv->nhwv", x, x),
    "matmul": lambda x: x @ x.transpose(2, 3),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "unfold": lambda x: F.unfold(x, 3, padding=1),
    "fold": lambda x: F.fold(F.unfold(x, 2), (7, 9), 2),
    "grid sample": lambda x: F.grid_sample(x, torch.zeros(1, 3, 4, 2) + 0.1, align_corners=False),
    "topk": lambda x: x.topk(3, 1)[0],
    "sort": lambda x: x.sort(1)[0],
    "maximum": lambda x: torch.maximum(x, x.flip(1)) + torch.minimum(x, x * 2),
    "int": lambda x: (x > 0).int() + 1,
    "bool": lambda x: x > 0,
    "inplace": lambda x: x.clone().mul_(2).add_(1).relu_(),
    "ones": lambda x: x + torch.ones(6, 1, 1) + torch.arange(9.0),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
    "var_mean": lambda x: torch.var_mean(x, 1)[0],
    "tril": lambda x: x.tril(),
    "two outputs": lambda x: (x + 1, {"a": x * 2}),
    "identity": lambda x: x,
    "p-norm pool": lambda x: F.lp_pool2d(x.abs(), 2, 2),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average pool, ceiling": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average pool, ceiling, without padding": lambda x: F.avg_pool2d(
        x, 2, 2, ceil_mode=True, count_include_pad=False
    ),
    "max pool, ceiling": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max pool, dilated": lambda x: F.max_pool2d(x, 2, 1, 0, dilation=2),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "average of all": lambda x: F.adaptive_avg_pool2d(x, 1),
    "maximum of all": lambda x: F.adaptive_max_pool2d(x, 1),
    "adaptive maximum": lambda x: F.adaptive_max_pool2d(x, (3, 4)),
    "floored division": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
}
# A layer, and the shape of its input where that is not IMAGE.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (lambda: nn.Conv2d(6, 5, 3, 2, 1), IMAGE),
    "convolution, same": (lambda: nn.Conv2d(6, 5, 4, padding="same"), IMAGE),
    "dilated groups": (lambda: nn.Conv2d(6, 4, 3, groups=2, dilation=2, padding=2), IMAGE),
    "reflected": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), IMAGE),
    "depthwise": (lambda: nn.Conv2d(6, 12, 5, groups=6), IMAGE),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2), IMAGE),
    "norm after": (lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU()), IMAGE),
    "norm after transposed groups": (
        lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 2, 2, groups=2), nn.BatchNorm2d(4)), IMAGE,
    ),
    "norm before": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3)), IMAGE),
    "norm alone": (lambda: nn.BatchNorm2d(6, affine=False), IMAGE),
    "norm after dense": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(378, 5), nn.BatchNorm1d(5)), IMAGE,
    ),
    "instance norm": (lambda: nn.InstanceNorm2d(6, affine=True), IMAGE),
    "group norm": (lambda: nn.GroupNorm(3, 6), IMAGE),
    "layer norm": (lambda: nn.LayerNorm((7, 9)), IMAGE),
    "local response": (lambda: nn.LocalResponseNorm(3), IMAGE),
    "prelu": (lambda: nn.PReLU(6), IMAGE),
    "one-dimensional": (lambda: nn.Sequential(nn.Conv1d(6, 5, 3), nn.BatchNorm1d(5)), (1, 6, 13)),
    "three-dimensional": (lambda: nn.Conv3d(2, 3, 3), (1, 2, 4, 5, 6)),
    "lstm": (lambda: nn.LSTM(8, 5, batch_first=True), (1, 4, 8)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (1, 5, 8)),
}  # fmt: skip
BOUNDS = {"bicubic": 5e-6, "encoder": 5e-6}


class Every(nn.Module):
    """All functions of one input, and all layers for it: one export, which takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name.replace(".", " "): LAYERS[name][0]() for name in IMAGES})

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        made = {name: function(x) for name, function in FUNCTIONS.items()}
        return {**made, **{name: layer(x) for name, layer in self.layers.items()}}


IMAGES = [name for name, (_, shape) in LAYERS.items() if shape == IMAGE]
OTHERS = [name for name in LAYERS if name not in IMAGES]


def assert_agrees(
    model: Imported, run: Callable[[dict[str, np.ndarray]], list[np.ndarray]], names: list[str]
) -> None:
    """The outputs, named by what made them, are those of the eager model."""
    inputs = random_inputs(model)
    expected, found = model.reference(inputs), run(inputs)
    assert len(found) == len(expected) == len(model.outputs) == len(names)
    wrong = []
    for name, want, have in zip(names, expected, found, strict=True):
        error = np.inf
        if have.shape == want.shape and have.dtype == want.dtype:
            error = np.abs(have.astype("float64") - want).max(initial=0)
        if not error <= BOUNDS.get(name, 2e-6) * max(1, np.abs(want).max(initial=0)):
            wrong.append(f"{name}: off by {error}")
    assert not wrong


def test_operators_and_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    every = settle(Every())
    with torch.no_grad():
        results = every(torch.zeros(IMAGE))
    names = [name for name in results for _ in pytree.tree_leaves(results[name])]
    others = {}
    for name in OTHERS:
        make, shape = LAYERS[name]
        others[name] = from_torch(settle(make()), torch.zeros(shape))
    models = [from_torch(every, torch.zeros(IMAGE)), *others.values()]
    first, *rest = build_together(models, tmp_path)
    assert_agrees(models[0], first, names)
    for (name, model), run in zip(others.items(), rest, strict=True):
        assert_agrees(model, run, [name] * len(model.outputs))
