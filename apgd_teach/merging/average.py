"""The simple average: θ* = θ₀ + (1/T) Σ τᵢ, which is the mean of the experts themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

__all__ = ["Average"]


@dataclass(frozen=True)
class Average:
    """Every expert counts the same, in every layer. It has no settings.

    Source: Wortsman et al., "Model soups", ICML 2022, arXiv 2203.05482. Lesson: 02.
    """

    name: ClassVar[str] = "average"

    def __call__(self, task_vectors: Tensor) -> Tensor:
        """The merged update M of one layer.

        Args:
            task_vectors: τ, shape (task, out, in).

        Returns:
            M = mean over the tasks, shape (out, in).
        """
        return task_vectors.mean(dim=0)
