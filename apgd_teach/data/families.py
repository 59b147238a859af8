"""The families of pictures: what they are called, whose they are, and the hashes by which they are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torchvision.datasets import CIFAR10, MNIST, FashionMNIST

__all__ = ["CIFAR", "COLOUR", "FAMILIES", "CifarFamily", "Family", "IdxFamily"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Pictures of ten classes, from which tasks are made (lesson 01).

    Args:
        name: as in the names of tasks, "digits".
        slug: as in the names of files, "mnist".
        title: as its authors call it, "MNIST".
        classes: the name of each class, in the order of the labels 0, 1, ….
        authors: who made it.
        licence: under which it may be passed on.
        home: where it comes from.
        shape: of one picture, (channel, row, column).
        plain: how the name of its unchanged variant ends.
    """

    name: str
    slug: str
    title: str
    classes: tuple[str, ...]
    authors: str
    licence: str
    home: str
    shape: tuple[int, int, int] = (1, 28, 28)
    plain: str = "upright"


@dataclass(frozen=True, kw_only=True)
class IdxFamily(Family):
    """A family that its authors publish as four IDX files (lesson 01).

    Args:
        dataset: torchvision's class, which knows the addresses, the file names and the MD5 of the archives.
        content: SHA-256 of each official IDX file, unpacked, by its name.
    """

    dataset: type[MNIST]
    content: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class CifarFamily(Family):
    """A family that its authors publish as CIFAR-10's archive of batches (lesson 08).

    Args:
        dataset: torchvision's class, which knows the address, the names inside and their MD5.
        content: SHA-256 of the archive.
    """

    dataset: type[CIFAR10]
    content: str


_DIGITS = IdxFamily(
    name="digits",
    slug="mnist",
    title="MNIST",
    classes=tuple("0123456789"),
    dataset=MNIST,
    content={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    authors="Yann LeCun, Corinna Cortes, Christopher J. C. Burges",
    licence="CC BY-SA 3.0",
    home="http://yann.lecun.com/exdb/mnist/",
)

_FASHION = IdxFamily(
    name="fashion",
    slug="fashion-mnist",
    title="Fashion-MNIST",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    dataset=FashionMNIST,
    content={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    authors="Han Xiao, Kashif Rasul, Roland Vollgraf (Zalando Research)",
    licence="MIT",
    home="https://github.com/zalandoresearch/fashion-mnist",
)

CIFAR = CifarFamily(
    name="cifar10",
    slug="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    dataset=CIFAR10,
    content="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    authors="Alex Krizhevsky, Vinod Nair, Geoffrey Hinton",
    licence="none stated",
    home="https://www.cs.toronto.edu/~kriz/cifar.html",
    shape=(3, 32, 32),
    plain="plain",
)

_SHAPES = Family(
    name="shapes",
    slug="shapes",
    title="Shapes and textures",
    classes=(
        "disc",
        "ring",
        "square",
        "triangle",
        "cross",
        "stripes",
        "rays",
        "chequers",
        "dots",
        "waves",
    ),
    authors="The apgd_teach authors",
    licence="MIT",
    home="data_scripts/make_shapes.py",
    shape=(3, 32, 32),
    plain="plain",
)

FAMILIES: dict[str, IdxFamily] = {family.name: family for family in (_DIGITS, _FASHION)}
"""Of lessons 00 to 07."""

COLOUR: dict[str, Family] = {family.name: family for family in (CIFAR, _SHAPES)}
"""Of lesson 08: the second one is generated, and stands in where the first cannot be had."""
