"""The pools of experts that settings are chosen on, and those that were not looked at meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.transforms import v2

from apgd_teach import models
from apgd_teach.cache import Cache
from apgd_teach.data import Variant
from apgd_teach.experts import Pool, make_pool

__all__ = ["PARTS", "Setting", "pool_of", "settings_of"]


class Deep(nn.Module):
    """A network of another shape than the course's: four linear layers that narrow, with ReLU."""

    features = 256

    def __init__(self) -> None:
        super().__init__()
        widths = [28 * 28, 384, 320, 256, 256]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.act = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Features (image, feature) of images (image, channel=1, row=28, column=28) in [0, 1]."""
        x = images.flatten(1) - 0.5
        for layer in self.layers:
            x = self.act(layer(x))
        return x


models.ENCODERS["deep"] = models.Network(Deep, Deep.features, (1, 28, 28))

OTHER_TASKS = [
    Variant("digits", "flipped", v2.RandomVerticalFlip(p=1.0)),
    Variant("digits", "blurred", v2.GaussianBlur(5, sigma=(1.5, 1.5))),
    Variant("digits", "sheared", v2.RandomAffine(degrees=(0, 0), shear=(30, 30))),
    Variant("digits", "shrunk", v2.RandomAffine(degrees=(0, 0), scale=(0.6, 0.6))),
    Variant("fashion", "noisy", v2.GaussianNoise(sigma=0.3, clip=True)),
    Variant("fashion", "blurred", v2.GaussianBlur(5, sigma=(1.5, 1.5))),
    Variant("fashion", "rotated90", v2.RandomRotation((90, 90))),
    Variant("fashion", "shifted", v2.RandomAffine(degrees=(0, 0), translate=(0.2, 0.2))),
]
"""Eight tasks that the course does not have."""


@dataclass(frozen=True)
class Setting:
    """One pool: network, tasks ("course" or "other"), optimiser, regime, seed."""

    network: str
    tasks: str
    optimizer: str
    regime: str
    seed: int

    @property
    def group(self) -> str:
        """What the seeds are averaged over."""
        tasks = "" if self.tasks == "course" else " other tasks"
        return f"{self.network}{tasks} {self.optimizer} {self.regime}"


PARTS = {
    "design": [("convnet", "course", (0, 1, 2)), ("mlp", "course", (0, 1, 2))],
    "design, six seeds": [("convnet", "course", (0, 1, 2, 3, 4, 5)), ("mlp", "course", (0, 1, 2, 3, 4, 5))],
    "held-out": [
        ("convnet", "course", (10, 11, 12)),
        ("mlp", "course", (10, 11, 12)),
        ("deep", "course", (20, 21, 22)),
        ("mlp", "other", (20, 21, 22)),
    ],
}
"""What was chosen on "design" (validation images) is reported on "held-out" (test images). Reaches were chosen on six
seeds: one pool of the ConvNet that needs a short one is one of two, or one of six."""


def settings_of(part: str, networks: list[str] | None = None) -> Iterator[Setting]:
    """The pools of a part, seed by seed."""
    for network, tasks, seeds in PARTS[part]:
        for seed, optimizer, regime in itertools.product(seeds, ("sgd", "adamw"), ("mild", "hot")):
            if networks is None or network in networks:
                yield Setting(network, tasks, optimizer, regime, seed)


def pool_of(setting: Setting, cache: Cache) -> Pool:
    """Train it, or have it from the cache."""
    return make_pool(
        setting.network,
        regime=setting.regime,
        optimizer=setting.optimizer,
        tasks=None if setting.tasks == "course" else OTHER_TASKS,
        base_steps=250 if setting.network == "convnet" else 500,
        seed=setting.seed,
        cache=cache,
        progress=False,
    )
