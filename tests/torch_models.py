"""Networks in PyTorch as torchvision writes them, with random weights: what a user brings.

ResNet (He et al. 2015), VGG (Simonyan, Zisserman 2014), MobileNetV2 (Sandler et al. 2018),
EfficientNet (Tan, Le 2019), ConvNeXt (Liu et al. 2022), U-Net (Ronneberger et al. 2015), DenseNet
(Huang et al. 2016). Norms have statistics of their own, so that folding them wrongly shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def conv_norm(
    ic: int, oc: int, kernel: int, stride: int = 1, groups: int = 1, act: Any = nn.ReLU
) -> list[nn.Module]:
    conv = nn.Conv2d(ic, oc, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(oc), *([act(inplace=True)] if act else [])]


class Residual(nn.Module):
    """ResNet's two blocks: of two 3x3 convolutions, or of a bottleneck."""

    def __init__(self, ic: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        oc = 4 * width if bottleneck else width
        if bottleneck:
            body = conv_norm(ic, width, 1) + conv_norm(width, width, 3, stride)
            body += conv_norm(width, oc, 1, act=None)
        else:
            body = conv_norm(ic, width, 3, stride) + conv_norm(width, oc, 3, act=None)
        self.body = nn.Sequential(*body)
        self.relu = nn.ReLU(inplace=True)
        needed = stride != 1 or ic != oc
        self.downsample = nn.Sequential(*conv_norm(ic, oc, 1, stride, act=None)) if needed else None

    def forward(self, x: Any) -> Any:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.body(x)
        out += shortcut
        return self.relu(out)


def resnet(counts: Sequence[int], bottleneck: bool) -> nn.Module:
    layers, ic = [*conv_norm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for stage, count in enumerate(counts):
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(Residual(ic, 64 << stage, stride, bottleneck))
            ic = (64 << stage) * (4 if bottleneck else 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ic, 1000))


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    ic = 3
    for stage in ([64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3):
        for oc in stage:
            layers += [nn.Conv2d(ic, oc, 3, padding=1), nn.ReLU(inplace=True)]
            ic = oc
        layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(512 * 49, 4096), nn.ReLU(True), nn.Dropout()]
    head += [nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head)


class Inverted(nn.Module):
    """MobileNetV2's inverted residual, and EfficientNet's with squeeze and excitation."""

    def __init__(
        self, ic: int, oc: int, kernel: int, stride: int, ratio: int, act: Any, squeeze: bool
    ) -> None:
        super().__init__()
        wide = ic * ratio
        layers = conv_norm(ic, wide, 1, act=act) if ratio != 1 else []
        layers += conv_norm(wide, wide, kernel, stride, groups=wide, act=act)
        layers += [Squeeze(wide, max(1, ic // 4))] if squeeze else []
        self.body = nn.Sequential(*layers, *conv_norm(wide, oc, 1, act=None))
        self.adds = stride == 1 and ic == oc

    def forward(self, x: Any) -> Any:
        return x + self.body(x) if self.adds else self.body(x)


class Squeeze(nn.Module):
    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Any) -> Any:
        scale = functional.adaptive_avg_pool2d(x, 1)
        return torch.sigmoid(self.fc2(functional.silu(self.fc1(scale)))) * x


MOBILENET = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
MOBILENET += [(6, 160, 3, 2), (6, 320, 1, 1)]
EFFICIENT = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)]
EFFICIENT += [(6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)]


def inverted(stages: Sequence[tuple[int, ...]], act: Any, squeeze: bool) -> nn.Module:
    layers, ic = conv_norm(3, 32, 3, 2, act=act), 32
    for ratio, oc, count, stride, *kernel in stages:
        for block in range(count):
            step = stride if not block else 1
            layers.append(Inverted(ic, oc, *(kernel or [3]), step, ratio, act, squeeze))
            ic = oc
    layers += [*conv_norm(ic, 1280, 1, act=act), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(1280, 1000))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [n, c, h, w]."""

    def forward(self, x: Any) -> Any:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Next(nn.Module):
    """ConvNeXt's block."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.scale = nn.Parameter(torch.full((dim, 1, 1), 0.1))

    def forward(self, x: Any) -> Any:
        out = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + self.scale * out.permute(0, 3, 1, 2)


def convnext(counts: Sequence[int] = (3, 3, 9, 3), width: int = 96) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 4), ChannelNorm(width, eps=1e-6)]
    for stage, count in enumerate(counts):
        dim = width << stage
        if stage:
            layers += [ChannelNorm(dim // 2, eps=1e-6), nn.Conv2d(dim // 2, dim, 2, 2)]
        layers += [Next(dim) for _ in range(count)]
    layers += [nn.AdaptiveAvgPool2d(1), ChannelNorm(dim, eps=1e-6), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(dim, 1000))


class UNet(nn.Module):
    """U-Net with batch normalisation and padding, from `base` channels up."""

    def __init__(self, base: int = 32, depth: int = 4) -> None:
        super().__init__()
        sizes = [base << i for i in range(depth + 1)]
        pairs = zip([3, *sizes], sizes, strict=False)
        self.down = nn.ModuleList(self._double(ic, oc) for ic, oc in pairs)
        up = list(zip(sizes[:0:-1], sizes[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(ic, oc, 2, 2) for ic, oc in up)
        self.merge = nn.ModuleList(self._double(ic, oc) for ic, oc in up)
        self.out = nn.Conv2d(base, 2, 1)

    @staticmethod
    def _double(ic: int, oc: int) -> nn.Module:
        return nn.Sequential(*conv_norm(ic, oc, 3), *conv_norm(oc, oc, 3))

    def forward(self, x: Any) -> Any:
        kept = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for up, merge, other in zip(self.up, self.merge, kept[-2::-1], strict=True):
            x = merge(torch.cat([other, up(x)], 1))
        return self.out(x)


class DenseLayer(nn.Module):
    def __init__(self, ic: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(ic), nn.Conv2d(ic, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Any) -> Any:
        out = self.conv1(functional.relu(self.norm1(x)))
        out = self.conv2(functional.relu(self.norm2(out)))
        return torch.cat([x, out], 1)


def densenet(counts: Sequence[int] = (6, 12, 24, 16), growth: int = 32) -> nn.Module:
    layers, ic = [*conv_norm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for stage, count in enumerate(counts):
        layers += [DenseLayer(ic + i * growth, growth) for i in range(count)]
        ic += count * growth
        layers += [nn.BatchNorm2d(ic), nn.ReLU(inplace=True)]
        if stage < len(counts) - 1:
            layers += [nn.Conv2d(ic, ic // 2, 1, bias=False), nn.AvgPool2d(2)]
            ic //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ic, 1000))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": partial(resnet, (2, 2, 2, 2), False),
    "resnet50": partial(resnet, (3, 4, 6, 3), True),
    "vgg16": vgg16,
    "mobilenet_v2": partial(inverted, MOBILENET, nn.ReLU6, False),
    "efficientnet_b0": partial(inverted, EFFICIENT, nn.SiLU, True),
    "convnext_tiny": convnext,
    "unet": UNet,
    "densenet121": densenet,
}


def build(name: str) -> nn.Module:
    """One of MODELS in evaluation mode, the same at every call."""
    return with_statistics(MODELS[name])


def with_statistics(make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose numbers neither vanish nor explode, as those of trained ones do not."""
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.7, 1.0)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return model
