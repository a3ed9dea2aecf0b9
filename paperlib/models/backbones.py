"""Backbones larger than ResNet-18: single networks for small images, built from torchvision's parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from paperlib.models.resnet import Normalize, ResNet, resnet18
from paperlib.shapes import Images, Logits

Scaled = Callable[[int], int]
# Channels of the convolutions before each pooling of VGG-16 (Simonyan and Zisserman 2015, configuration D).
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Backbone(nn.Module):
    """Normalisation, a feature extractor, global average pooling and one linear layer."""

    def __init__(
        self, body: nn.Module, channels: int, classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.body = body
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Images) -> Logits:
        """Pixels (N, C, H, W) in [0, 1] to logits (N, classes)."""
        return self.head(self.body(self.normalize(x)).mean(dim=(2, 3)))


def backbone(name: str, classes: int, width: int, side: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """An untrained backbone; its channels are those of the original network times ``width / 64``.

    All have a 3x3 stride-1 stem. ``wrn28-10`` has the shape of WideResNet-28-10 (Zagoruyko and Komodakis 2016: stem of
    16 channels, three stages of four blocks, 160 to 640 channels), but with torchvision's blocks, in which the
    activation follows the convolution.

    Args:
        name: ``resnet18``, ``resnet50``, ``vgg16`` (with batch norm), ``densenet121`` or ``wrn28-10``.
        width: channels of ResNet-18's first stage, 64 in the original.
        side: height and width of the images in pixels; VGG pools only while its maps have more than one pixel.

    Raises:
        ValueError: unknown name.
    """

    def scaled(channels: int) -> int:
        return max(1, channels * width // 64)

    if name == "resnet18":
        return resnet18(classes, width, mean, std)
    if name == "resnet50":
        return ResNet(classes, width, (3, 4, 6, 3), mean, std, bottleneck=True)
    if name == "wrn28-10":
        return ResNet(classes, scaled(160), (4, 4, 4), mean, std, stem=scaled(16))
    if name == "vgg16":
        return Backbone(_vgg16(len(mean), scaled, side), scaled(512), classes, mean, std)
    if name == "densenet121":
        body = _densenet121(len(mean), scaled)
        return Backbone(body, int(body.get_submodule("norm5").num_features), classes, mean, std)  # type: ignore[arg-type]
    raise ValueError(f"backbone {name!r}: expected resnet18, resnet50, vgg16, densenet121 or wrn28-10")


def _vgg16(inputs: int, scaled: Scaled, side: int) -> nn.Sequential:
    from torchvision.models.vgg import make_layers

    configuration: list[str | int] = []
    for channels in _VGG16:
        configuration += [scaled(c) for c in channels]
        if side > 1:
            configuration.append("M")  # max pooling
            side //= 2
    layers = make_layers(configuration, batch_norm=True)
    layers[0] = nn.Conv2d(inputs, layers[0].out_channels, 3, padding=1)
    for module in layers:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return layers


def _densenet121(inputs: int, scaled: Scaled) -> nn.Sequential:
    from torchvision.models import DenseNet

    body = DenseNet(growth_rate=scaled(32), block_config=(6, 12, 24, 16), num_init_features=scaled(64)).features
    body.conv0 = nn.Conv2d(inputs, scaled(64), 3, padding=1, bias=False)
    nn.init.kaiming_normal_(body.conv0.weight)
    body.pool0 = nn.Identity()
    body.relu5 = nn.ReLU(inplace=True)  # torchvision applies the last activation outside of `features`
    return body
