"""Merging coefficients from the lengths of the task vectors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["task_aware"]


def task_aware(task_vectors: Tensor, coefficient: float = 0.3, eta: float | None = None) -> Tensor:
    """λᵢ = min(1, η / ‖τᵢ‖): the further an expert went, the less of its step is taken, so that all count alike.

    Args:
        task_vectors: τ, shape (task, out, in).
        coefficient: c, which sets η = c · median of the non-zero ‖τⱼ‖ in this layer.
        eta: η itself, in units of ‖τ‖; then λ is not capped and `coefficient` not looked at, as published (0.07).

    Returns:
        λ, shape (task,); 0 for a zero task vector.

    Source: (12) in docs/equations.md. Lesson: 03.
    """
    norms = torch.linalg.vector_norm(task_vectors, dim=(1, 2))
    moved = norms > 0
    if not bool(moved.any()):
        return torch.zeros_like(norms)
    # The middle two are averaged when their number is even: torch.median would take the lower.
    length = coefficient * torch.quantile(norms[moved], 0.5) if eta is None else eta
    found = torch.where(moved, length / norms, 0.0)
    return found.clamp(max=1) if eta is None else found
