"""Task-aware coefficients alone: every task's step is made as long as the others', and added up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apgd_teach.merging.coefficients import task_aware
from apgd_teach.merging.method import Update
from apgd_teach.merging.settings import number

__all__ = ["TaskAware"]


@dataclass(frozen=True)
class TaskAware:
    """M = Σ λᵢ τᵢ with λᵢ = min(1, η / ‖τᵢ‖), η = c · median ‖τⱼ‖, per layer. No Δ.

    Where all task vectors of a layer are equally long this is task arithmetic with λ = c.

    Attributes:
        coefficient: c.

    Facts for the audit: "coefficients", λ per task.

    Source: Wei et al., ICML 2025, arXiv 2501.01230; (12) in docs/equations.md. Lesson: 03.
    """

    coefficient: float = 0.3
    name: ClassVar[str] = "task_aware"

    def __post_init__(self) -> None:
        number(self.name, "coefficient", self.coefficient)

    def __call__(self, task_vectors: Tensor) -> Update:
        """The merged update M (out, in) of one layer, from τ (task, out, in)."""
        coefficients = task_aware(task_vectors, self.coefficient)
        return Update(
            torch.einsum("t,toi->oi", coefficients, task_vectors), {"coefficients": tuple(coefficients.tolist())}
        )
