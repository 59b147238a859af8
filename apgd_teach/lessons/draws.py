"""Numbers for the cases of exercises: the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["normal"]


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Draws from the normal distribution, of the given shape and standard deviation."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
