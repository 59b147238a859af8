"""Small encoders to merge. Their features are read by linear heads, one per task, that stay outside every merge."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from apgd_teach.errors import ApgdTeachError

__all__ = ["ENCODERS", "FEATURES", "MLP", "ConvNet", "count_parameters", "make_encoder"]


class ConvNet(nn.Module):
    """Three strided convolutions and a linear layer, GELU between them; no normalisation layers.

    conv 5×5/2 → 48, 3×3/2 → 96, 3×3/2 → 192, linear → `features`: 1,388,928 parameters. Without normalisation every
    weight is a plain linear map, so a merge has nothing to recalibrate.

    Source: method.md §4A. Lesson: 01.
    """

    features = 384

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 48, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(48, 96, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(96, 192, 3, stride=2, padding=1)
        self.linear = nn.Linear(192 * 4 * 4, self.features)
        self.act = nn.GELU()

    def forward(self, images: Tensor) -> Tensor:
        """Features (image, feature) of images (image, channel=1, row=28, column=28) in [0, 1]."""
        x = images - 0.5
        for conv in (self.conv1, self.conv2, self.conv3):
            x = self.act(conv(x))
        return self.act(self.linear(x.flatten(1)))


class MLP(nn.Module):
    """Three linear layers of 512 units with GELU: quick to train, and its weights are matrices as they stand.

    927,232 parameters.

    Source: method.md §4B. Lesson: 01.
    """

    features = 512

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Linear(28 * 28, 512)
        self.layer2 = nn.Linear(512, 512)
        self.layer3 = nn.Linear(512, self.features)
        self.act = nn.GELU()

    def forward(self, images: Tensor) -> Tensor:
        """Features (image, feature) of images (image, channel=1, row=28, column=28) in [0, 1]."""
        x = images.flatten(1) - 0.5
        for layer in (self.layer1, self.layer2, self.layer3):
            x = self.act(layer(x))
        return x


ENCODERS: dict[str, Callable[[], nn.Module]] = {"convnet": ConvNet, "mlp": MLP}
FEATURES = {"convnet": ConvNet.features, "mlp": MLP.features}


def make_encoder(name: str, seed: int) -> nn.Module:
    """An encoder on the CPU with PyTorch's own initialisation, drawn from `seed`.

    The caller's random state is not touched, on any device.

    Raises:
        ApgdTeachError: there is no such network.
    """
    if name not in ENCODERS:
        raise ApgdTeachError(f"there is no network '{name}'; use one of: {', '.join(ENCODERS)}.")
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` would seed every accelerator as well.
        torch.default_generator.manual_seed(seed)
        return ENCODERS[name]()


def count_parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())
