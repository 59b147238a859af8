"""A small real network and three experts of it, as state dicts with weights, kernels, vectors, a scalar, a counter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

State = dict[str, Tensor]


def network(seed: int, base: State | None = None, scale: float = 0.02) -> State:
    """A state dict from normal draws, or `base` moved a little by them."""
    draws = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (4, 2, 3, 3), "conv.bias": (4,), "linear.weight": (3, 36), "linear.bias": (3,), "gain": ()}
    state = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    if base is not None:
        state = {name: base[name] + scale * tensor for name, tensor in state.items()}
    return {**state, "norm.num_batches_tracked": torch.tensor(7)}


@pytest.fixture
def base() -> State:
    return network(0)


@pytest.fixture
def experts(base: State) -> dict[str, State]:
    return {name: network(seed, base) for seed, name in enumerate(("ada", "ben", "cy"), start=1)}


@pytest.fixture
def cast() -> Callable[[State, torch.dtype], State]:
    """The floating-point tensors of a state dict in another dtype."""

    def to(state: State, dtype: torch.dtype) -> State:
        return {name: one.to(dtype) if one.is_floating_point() else one for name, one in state.items()}

    return to
