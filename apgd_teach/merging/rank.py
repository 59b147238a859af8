"""How much to protect, read off the task vectors alone."""

from __future__ import annotations

from torch import Tensor

__all__ = ["automatic_rank"]


def automatic_rank(task_vectors: Tensor, basis: Tensor) -> int:
    """How many of the shared directions to protect."""
    return 0
