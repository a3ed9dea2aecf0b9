"""Residual networks for small images: normalisation, the CIFAR stem, and torchvision's blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paperlib.shapes import Images, Logits


class Normalize(nn.Module):
    """Pixels in [0, 1] to zero mean and unit variance per channel.

    As part of the network it lets attacks work on pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Images) -> Tensor:
        return (x - self.mean) / self.std


class Shortcut(nn.Conv2d):
    """The strided 1x1 convolution of a shortcut: `nn.Conv2d` with a workaround for a defect on some CPUs.

    On CPUs without AVX-512, oneDNN writes beyond its buffers when it computes the weight gradient of a strided 1x1
    convolution of fewer than 8 channels in channels-last memory (torch 2.15, seen with AVX2). There the input is
    subsampled first and the convolution has stride 1, which gives the same result.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels >= 8 or x.device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512":
            return super().forward(x)
        rows, columns = self.stride
        return nn.functional.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


class ResNet(nn.Module):
    """Residual network (He et al. 2016): pixels (N, C, H, W) in [0, 1] to logits (N, outputs).

    The stem is the 3x3 stride-1 convolution used for CIFAR. Stage ``i`` has ``blocks[i]`` blocks of ``width * 2**i``
    channels; every stage but the first halves the resolution. ResNet-18 is ``blocks=(2, 2, 2, 2)`` with ``width=64``.

    Args:
        stem: channels of the stem; those of the first stage if None.
        bottleneck: blocks of three convolutions, with four times the channels between blocks (ResNet-50), instead of
            blocks of two.
    """

    def __init__(
        self,
        outputs: int,
        width: int,
        blocks: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        stem: int | None = None,
        bottleneck: bool = False,
    ) -> None:
        super().__init__()
        channels = width if stem is None else stem
        self.normalize = Normalize(mean, std)
        self.stem = nn.Sequential(*_conv_bn(len(mean), channels, kernel=3), nn.ReLU(inplace=True))
        stages: list[nn.Module] = []
        for i, depth in enumerate(blocks):
            stages.append(_stage(channels, width * 2**i, depth, stride=1 if i == 0 else 2, bottleneck=bottleneck))
            channels = width * 2**i * (4 if bottleneck else 1)
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Images) -> Tensor:
        """Average-pooled features (N, width * 2**(stages - 1)), four times as many with ``bottleneck``."""
        return self.stages(self.stem(self.normalize(x))).mean(dim=(2, 3))

    def forward(self, x: Images) -> Logits:
        return self.head(self.features(x))


def resnet18(classes: int, width: int, mean: Sequence[float], std: Sequence[float]) -> ResNet:
    """The paper's expert network; its ``width`` there is 64."""
    return ResNet(classes, width, (2, 2, 2, 2), mean, std)


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    kind = Shortcut if kernel == 1 and stride > 1 else nn.Conv2d
    conv = kind(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs)


def _stage(inputs: int, width: int, depth: int, stride: int, *, bottleneck: bool) -> nn.Sequential:
    # Imported here, because torchvision takes as long to load as torch, and published records need no network.
    from torchvision.models.resnet import BasicBlock, Bottleneck

    block = Bottleneck if bottleneck else BasicBlock
    outputs = width * block.expansion
    changes_size = stride != 1 or inputs != outputs
    shortcut = nn.Sequential(*_conv_bn(inputs, outputs, kernel=1, stride=stride)) if changes_size else None
    first = block(inputs, width, stride, shortcut)
    return nn.Sequential(first, *(block(outputs, width) for _ in range(depth - 1)))
