"""WUDI: the whole residual, nothing protected, solved at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apgd_teach.merging.exact import full_solution
from apgd_teach.merging.method import Fact, Update
from apgd_teach.merging.objective import Full, objective
from apgd_teach.merging.settings import number
from apgd_teach.merging.subspace import overflows
from apgd_teach.merging.surrogate import before_and_after

__all__ = ["Wudi"]


@dataclass(frozen=True)
class Wudi:
    """M = B·G⁺, which minimises Σⱼ ‖(M − τⱼ)τⱼᵀ‖² / ‖τⱼ‖²: `Apgd` with granularity "full", p = 2 and no protection.

    The authors take 300 steps of Adam towards it. G⁺ drops eigenvalues below `cutoff` of the largest, as stopping
    early does.

    Attributes:
        cutoff: share of G's largest eigenvalue below which a direction is left out.

    Facts for the audit: "surrogate_before" and "surrogate_after", per task, ‖Rⱼ‖² at the average and at M as shares of
    the base's.

    Source: Cheng et al., "Whoever Started the Interference Should End It", ICML 2025, arXiv 2503.08099; (8)
    in docs/equations.md. Lesson: 07.
    """

    cutoff: float = 1e-3
    name: ClassVar[str] = "wudi"

    def __post_init__(self) -> None:
        number(self.name, "cutoff", self.cutoff, 0, 1, below=True)

    def __call__(self, task_vectors: Tensor) -> Update:
        """The merged update M (out, in) of one layer, from τ (task, out, in)."""
        if overflows(task_vectors):
            return Update(torch.full_like(task_vectors[0], torch.nan))
        quadratic = objective(task_vectors, "full")
        assert isinstance(quadratic, Full)
        nothing = torch.zeros_like(task_vectors[0])
        update = full_solution(quadratic, nothing, nothing[:, :0], "cutoff", self.cutoff)
        facts: dict[str, Fact] = {
            **before_and_after(task_vectors, task_vectors.mean(dim=0), update, "full"),
        }
        return Update(update, facts)
