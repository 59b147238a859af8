"""The computation of the paper's public code, to the letter, for comparison with the method that the text describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apgd_teach.merging.coefficients import task_aware
from apgd_teach.merging.method import ALONE, Fact, Layer, Update
from apgd_teach.merging.settings import number, whole
from apgd_teach.merging.subspace import overflows, shared_basis
from apgd_teach.merging.surrogate import before_and_after
from apgd_teach.merging.threshold import mask, shares, trimmed

__all__ = ["ApgdPublished"]


@dataclass(frozen=True)
class ApgdPublished:
    """DOGE TA as its public code computes it: per layer one shared Δ from 400 steps of Adam on the `row` surrogate.

    Kept as it is, with what `Apgd` does otherwise: λᵢ = 0.07/‖τᵢ‖ suits task vectors of CLIP size only; Adam comes
    after the projection and leaves the complement; Adam's rate is absolute; the trim comes after the fit. Tensors that
    are no weights keep the base's values. Two things the code leaves to chance are settled: of a single task the
    directions are in their own order, and a layer with more tasks than r takes one direction of each.

    Attributes:
        eta: η of λᵢ = η/‖τᵢ‖, in units of ‖τ‖.
        divisor: r // divisor directions are protected (the code's `subspace`).
        steps, rate: of Adam.
        trim: share of each expert's largest |τ| over all merged layers that is kept.

    Facts for the audit: "coefficients"; "protected", share of r; "leak", ‖P(M − S)‖/‖PS‖ of the solved M, which is not
    zero here; "leak_merged", the same after the trim; "kept", share of each task's entries; "surrogate_before" and
    "surrogate_after", per task, ‖diag Rⱼ‖² at S and at the merged M as shares of the base's.

    Source: Wei et al., ICML 2025, arXiv 2501.01230, and its port in fusion-bench (`method/doge_ta`);
    the nine differences in docs/equations.md.
    Lesson: 06.
    """

    eta: float = 0.07
    divisor: int = 6
    steps: int = 400
    rate: float = 1e-4
    trim: float = 0.3
    name: ClassVar[str] = "apgd_published"
    others: ClassVar[str] = "keep"

    def __post_init__(self) -> None:
        number(self.name, "eta", self.eta, 0)
        whole(self.name, "divisor", self.divisor, 1)
        whole(self.name, "steps", self.steps, 0)
        number(self.name, "rate", self.rate, 0)
        number(self.name, "trim", self.trim, 0, 1, above=True)

    def __call__(self, task_vectors: Tensor, layer: Layer = ALONE) -> Update:
        """The merged update M (out, in) of one layer, from τ (task, out, in)."""
        if overflows(task_vectors):
            return Update(torch.full_like(task_vectors[0], torch.nan))
        coefficients = task_aware(task_vectors, eta=self.eta)
        rank = min(task_vectors.shape[1:]) // self.divisor
        basis = shared_basis(task_vectors, rank)
        delta = self.delta(task_vectors, coefficients, basis)
        start = torch.einsum("t,toi->oi", coefficients, task_vectors)
        solved = leak(basis, start + coefficients.sum() * delta, start)
        kept = mask(task_vectors, self.trim, layer.thresholds)
        update = trimmed(task_vectors, delta, coefficients, kept)
        shared = shares(kept)
        del delta, kept
        facts: dict[str, Fact] = {
            "coefficients": tuple(coefficients.tolist()),
            "protected": basis.shape[1] / min(task_vectors.shape[1:]),
            "leak": solved,
            "leak_merged": leak(basis, update, start),
            **before_and_after(task_vectors, start, update, "row"),
            "kept": shared,
        }
        return Update(update, facts)

    def delta(self, task_vectors: Tensor, coefficients: Tensor, basis: Tensor) -> Tensor:
        """Δ after Adam: the gradient of Σⱼ ‖diag Rⱼ‖² in Δ, projected off the subspace, then handed to Adam.

        Args:
            task_vectors: τ, shape (task, out, in).
            coefficients: λ, shape (task,).
            basis: U, shape (out, k).

        Returns:
            Δ, shape (out, in).
        """
        together = coefficients.sum()
        start = torch.einsum("t,toi->oi", coefficients, task_vectors)
        delta = torch.zeros_like(start)
        # Fused: the same step in one pass over memory, which is what takes the time here.
        adam = torch.optim.Adam([delta], lr=self.rate, fused=True)
        by_unit = task_vectors.transpose(0, 1)  # (out, task, in)
        # Entry by entry and then added up, as the code has it: not as the difference of two long sums.
        begun = torch.stack([((start - tau) * tau).sum(dim=1) for tau in task_vectors], dim=1)
        # In place: what 400 steps allocate and free again would leave the memory in pieces.
        gradient = torch.empty_like(start)
        delta.grad = gradient
        for _ in range(self.steps):
            residual = torch.bmm(by_unit, delta.unsqueeze(2)).squeeze(2).mul_(together).add_(begun)
            torch.bmm(residual.unsqueeze(1), by_unit, out=gradient.unsqueeze(1))
            gradient.mul_(2 * together).addmm_(basis, basis.mT @ gradient, alpha=-1)
            # Adam divides element by element: here the projection is undone.
            adam.step()
        return delta


def leak(basis: Tensor, update: Tensor, start: Tensor) -> float:
    """‖P(M − S)‖ / ‖PS‖: how much of what was to stay has moved; 0 where nothing is protected.

    Source: (13) in docs/equations.md. Lesson: 06.
    """
    if not basis.shape[1]:
        return 0.0
    held = float(torch.linalg.vector_norm(basis.mT @ start))
    return float(torch.linalg.vector_norm(basis.mT @ (update - start))) / held if held else 0.0
