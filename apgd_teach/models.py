"""Small encoders to merge. Their features are read by linear heads, one per task, that stay outside every merge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.vision_transformer import VisionTransformer
from torchvision.ops import Conv2dNormActivation

from apgd_teach.errors import ApgdTeachError

__all__ = [
    "ENCODERS",
    "MLP",
    "ColourConvNet",
    "ColourResNet",
    "ColourViT",
    "ConvNet",
    "Network",
    "SmallConvNet",
    "count_parameters",
    "make_encoder",
    "network",
]


class ConvNet(nn.Module):
    """Three strided convolutions and a linear layer, GELU between them; no normalisation layers.

    conv 5×5/2 → 48, 3×3/2 → 96, 3×3/2 → 192, linear → `features`: 1,388,928 parameters. Without normalisation every
    weight is a plain linear map, so a merge has nothing to recalibrate.

    Lesson: 01.
    """

    features = 384
    channels = (48, 96, 192)

    def __init__(self) -> None:
        super().__init__()
        first, second, third = self.channels
        self.conv1 = nn.Conv2d(1, first, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(second, third, 3, stride=2, padding=1)
        self.linear = nn.Linear(third * 4 * 4, self.features)
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

    Lesson: 01.
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


class SmallConvNet(ConvNet):
    """The course's convolutional network at a quarter of its width: a student for what the others know.

    conv 5×5/2 → 12, 3×3/2 → 24, 3×3/2 → 48, linear → `features`: 87,168 parameters.

    Lesson: 09.
    """

    features = 96
    channels = (12, 24, 48)


class ColourConvNet(nn.Module):
    """Three strided convolutions, each with a GroupNorm and a GELU, and a linear layer, for 32 × 32 colour pictures.

    conv 5×5/2 → 48, 3×3/2 → 96, 3×3/2 → 192, linear → `features`: 1,391,664 parameters. A GroupNorm keeps no
    statistics, so a merge has nothing to recalibrate; its scales and shifts are vectors.

    Lesson: 08.
    """

    features = 384

    def __init__(self) -> None:
        super().__init__()
        block = partial(
            Conv2dNormActivation, stride=2, norm_layer=partial(nn.GroupNorm, 8), activation_layer=nn.GELU, inplace=None
        )
        self.convs = nn.Sequential(
            block(3, 48, kernel_size=5), block(48, 96, kernel_size=3), block(96, 192, kernel_size=3)
        )
        self.linear = nn.Linear(192 * 4 * 4, self.features)
        self.act = nn.GELU()

    def forward(self, images: Tensor) -> Tensor:
        """Features (image, feature) of images (image, channel=3, row=32, column=32) in [0, 1]."""
        return self.act(self.linear(self.convs(2 * images - 1).flatten(1)))


class ColourResNet(nn.Module):
    """A residual network of torchvision's basic blocks with BatchNorm, for 32 × 32 colour pictures.

    conv 3×3/2 → 48, then a block each of 48, 96 and 192 channels, the last two halving rows and columns, and the mean
    over places: `features` features, 689,904 parameters. The statistics that a BatchNorm keeps are measured on data: a
    merge has to average them, or to measure them again.

    Lesson: 08.
    """

    features = 192

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv2dNormActivation(3, 48, kernel_size=3, stride=2)
        self.blocks = nn.Sequential(BasicBlock(48, 48), _narrowing(48, 96), _narrowing(96, self.features))
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images: Tensor) -> Tensor:
        """Features (image, feature) of images (image, channel=3, row=32, column=32) in [0, 1]."""
        return self.pool(self.blocks(self.stem(2 * images - 1))).flatten(1)


def _narrowing(before: int, after: int) -> BasicBlock:
    """A block that halves rows and columns."""
    beside = Conv2dNormActivation(before, after, kernel_size=1, stride=2, activation_layer=None)
    return BasicBlock(before, after, stride=2, downsample=beside)


class ColourViT(nn.Module):
    """torchvision's vision transformer, tiny: patches of 4 × 4, three layers of width 96, for 32 × 32 colour pictures.

    The family of networks that the paper merges; 235,584 parameters. The projections to queries, keys and values are
    one matrix of torchvision's, (288, 96).

    Lesson: 08.
    """

    features = 96

    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionTransformer(
            image_size=32, patch_size=4, num_layers=3, num_heads=3, hidden_dim=self.features, mlp_dim=192
        )
        # Its own head would be merged with the rest.
        self.vit.heads = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Features (image, feature) of images (image, channel=3, row=32, column=32) in [0, 1]."""
        return self.vit(2 * images - 1)


@dataclass(frozen=True)
class Network:
    """A kind of encoder: how one is made, how many features it has, and the shape (channel, row, column) it takes."""

    make: Callable[[], nn.Module]
    features: int
    shape: tuple[int, int, int]


_GREY, _COLOUR = (1, 28, 28), (3, 32, 32)

ENCODERS: dict[str, Network] = {
    "convnet": Network(ConvNet, ConvNet.features, _GREY),
    "mlp": Network(MLP, MLP.features, _GREY),
    "small-convnet": Network(SmallConvNet, SmallConvNet.features, _GREY),
    "colour-convnet": Network(ColourConvNet, ColourConvNet.features, _COLOUR),
    "colour-resnet": Network(ColourResNet, ColourResNet.features, _COLOUR),
    "colour-vit": Network(ColourViT, ColourViT.features, _COLOUR),
}


def network(name: str) -> Network:
    """The kind of encoder of that name.

    Raises:
        ApgdTeachError: there is no such network.
    """
    if name not in ENCODERS:
        raise ApgdTeachError(f"there is no network '{name}'; use one of: {', '.join(ENCODERS)}.")
    return ENCODERS[name]


def make_encoder(name: str, seed: int) -> nn.Module:
    """An encoder on the CPU with PyTorch's own initialisation, drawn from `seed`.

    The caller's random state is not touched, on any device.

    Raises:
        ApgdTeachError: there is no such network.
    """
    kind = network(name)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` would seed every accelerator as well.
        torch.default_generator.manual_seed(seed)
        return kind.make()


def count_parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())
