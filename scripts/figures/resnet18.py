"""ResNet-18 in PyTorch (He et al. 2015, arXiv 1512.03385), written as torchvision writes it."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions and the shortcut around them."""

    def __init__(self, ic: int, oc: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ic, oc, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(oc)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(oc, oc, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(oc)
        self.downsample: nn.Module | None = None
        if stride != 1 or ic != oc:
            self.downsample = nn.Sequential(
                nn.Conv2d(ic, oc, 1, stride, bias=False), nn.BatchNorm2d(oc)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


def resnet18(seed: int = 0) -> nn.Module:
    """The network in inference mode, with random weights and statistics."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    ic = 64
    for oc in (64, 128, 256, 512):
        layers += [Block(ic, oc, 1 if oc == ic else 2), Block(oc, oc, 1)]
        ic = oc
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    model = nn.Sequential(*layers).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model
