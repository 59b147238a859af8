"""A small pool of real tasks, and networks tiny enough to be computed by hand in a pool's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from apgd_teach.cache import Cache
from apgd_teach.experts import Pool, make_pool
from apgd_teach.models import ENCODERS, Network

TASKS = ("digits-upright", "digits-noisy", "fashion-flipped")


class Tiny(nn.Module):
    """49 pixels, a convolution of two channels, two linear maps; a table that is no linear map, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)
        self.conv = nn.Conv2d(1, 2, (3, 2), stride=2, padding=1, dilation=(1, 2))
        self.one = nn.Linear(2 * 4 * 4, 6)
        self.two = nn.Linear(6, 5, bias=False)
        self.table = nn.Parameter(torch.randn(2, 5))
        self.register_buffer("seen", torch.tensor(3))

    def forward(self, images: Tensor) -> Tensor:
        x = torch.tanh(self.conv(self.pool(images)))
        return self.two(torch.tanh(self.one(x.flatten(1)))) + self.table.sum(dim=0)


class Regression(nn.Module):
    """One linear map of 16 pixels, nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(7)
        self.map = nn.Linear(16, 5, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.map(self.pool(images).flatten(1))


NETWORKS: dict[str, type[nn.Module]] = {"tiny": Tiny, "regression": Regression}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="session")
def pool(folder: Path) -> Pool:
    return make_pool(
        "mlp", tasks=TASKS, base_steps=30, expert_steps=25, device="cpu", cache=Cache(folder), progress=False
    )


@pytest.fixture
def small(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Pool]:
    """The pool's tasks with one of `NETWORKS` in the place of its own network: a base and experts of random numbers."""

    def of(network: str) -> Pool:
        kind = NETWORKS[network]
        monkeypatch.setitem(ENCODERS, network, Network(kind, 5, (1, 28, 28)))

        def state(seed: int) -> dict[str, Tensor]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return {name: tensor.clone() for name, tensor in kind().state_dict().items()}

        draws = torch.Generator().manual_seed(9)
        heads = {
            name: {"weight": torch.randn(4, 5, generator=draws), "bias": torch.randn(4, generator=draws)}
            for name in TASKS
        }
        experts = {name: state(seed) for seed, name in enumerate(TASKS, 1)}
        return replace(pool, network=network, base=state(0), experts=experts, heads=heads)

    return of


@pytest.fixture(autouse=True)
def no_random_numbers_are_drawn() -> Iterator[None]:
    """Whatever is done here, the caller's random numbers go on as if nothing had been drawn."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)
