"""Task arithmetic: M = λ Σ τᵢ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from apgd_teach.merging.method import Update
from apgd_teach.merging.settings import number

__all__ = ["TaskArithmetic"]


@dataclass(frozen=True)
class TaskArithmetic:
    """The task vectors added up and scaled by one number. λ = 1/T is the simple average.

    Attributes:
        coefficient: λ, which multiplies the sum. The paper chooses it on validation data; 0.3 is the value usually
            taken without any.

    Facts for the audit: "coefficients", λ per task.

    Source: Ilharco et al., "Editing models with task arithmetic", ICLR 2023, arXiv 2212.04089.
    Lesson: 03.
    """

    coefficient: float = 0.3
    name: ClassVar[str] = "task_arithmetic"

    def __post_init__(self) -> None:
        number(self.name, "coefficient", self.coefficient)

    def __call__(self, task_vectors: Tensor) -> Update:
        """The merged update M of one layer.

        Args:
            task_vectors: τ, shape (task, out, in).

        Returns:
            M = λ Σ τᵢ, shape (out, in), and the facts.
        """
        coefficients = (float(self.coefficient),) * len(task_vectors)
        return Update(self.coefficient * task_vectors.sum(dim=0), {"coefficients": coefficients})
