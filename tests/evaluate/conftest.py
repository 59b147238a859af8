"""One small pool of real tasks, trained once, its experts' average, and an evaluator of its first 400 test images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from apgd_teach.cache import Cache
from apgd_teach.evaluate import Comparison, Evaluator, compare
from apgd_teach.experts import Pool, make_pool
from apgd_teach.merging import Merged, merge

TASKS = ("digits-upright", "digits-noisy", "fashion-flipped")


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(
        "mlp",
        tasks=TASKS,
        base_steps=30,
        expert_steps=25,
        device="cpu",
        cache=Cache(tmp_path_factory.mktemp("trained")),
        progress=False,
    )


@pytest.fixture(scope="session")
def average(pool: Pool) -> Merged:
    return merge(pool.base, pool.experts)


@pytest.fixture(scope="session")
def evaluator(pool: Pool) -> Evaluator:
    return Evaluator(pool, images=400)


@pytest.fixture(scope="session")
def compared(pool: Pool, average: Merged) -> Comparison:
    """The average; the first expert as a plain state dict; the base itself under another name."""
    plain = {"first": pool.experts[TASKS[0]], "still": pool.base}
    return compare(pool, {"average": average, **plain}, images=400)


@pytest.fixture(autouse=True)
def no_random_numbers_are_drawn() -> Iterator[None]:
    """Whatever is scored here, the caller's random numbers go on as if nothing had been drawn."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)
