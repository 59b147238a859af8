"""What descent minimises: the estimated gaps of a layer as one convex quadratic in the merged update M.

Each granularity has the same three faces: `value` (number), `gradient` and `curvature` (the Hessian applied to a
direction), so that descent and conjugate gradients are written once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apgd_teach.merging.subspace import right_vectors
from apgd_teach.merging.surrogate import check_granularity

__all__ = ["Full", "Objective", "PerLayer", "PerRow", "objective"]


@dataclass(frozen=True)
class PerLayer:
    """½ Σⱼ (tr Rⱼ)²: one number per task and layer, the Taylor term itself.

    M may be of a wider dtype than τ: everything is computed in M's, a task at a time.

    Attributes:
        task_vectors: τ, shape (task, out, in).

    Source: (6), (7), (8) in docs/equations.md. Lesson: 06.
    """

    task_vectors: Tensor

    def residual(self, update: Tensor) -> Tensor:
        """⟨τⱼ, M − τⱼ⟩, the trace of Rⱼ, shape (task,)."""
        # Task by task: all differences at once would be as large as the task vectors.
        return torch.stack([((update - tau) * tau).sum() for tau in self.task_vectors])

    def value(self, update: Tensor) -> Tensor:
        """The surrogate at M (out, in), halved."""
        return self.residual(update).square().sum() / 2

    def gradient(self, update: Tensor) -> Tensor:
        """Σⱼ ⟨τⱼ, M − τⱼ⟩ τⱼ, shape (out, in)."""
        return self._spread(self.residual(update))

    def curvature(self, direction: Tensor) -> Tensor:
        """Σⱼ ⟨τⱼ, D⟩ τⱼ, shape (out, in)."""
        if direction.dtype == self.task_vectors.dtype:
            return self._spread(torch.einsum("oi,toi->t", direction, self.task_vectors))
        return self._spread(torch.stack([(direction * tau).sum() for tau in self.task_vectors]))

    def _spread(self, numbers: Tensor) -> Tensor:
        if numbers.dtype == self.task_vectors.dtype:
            return torch.einsum("t,toi->oi", numbers, self.task_vectors)
        total = numbers.new_zeros(self.task_vectors.shape[1:])
        for one, tau in zip(numbers, self.task_vectors, strict=True):
            total += one * tau.to(total.dtype)
        return total


@dataclass(frozen=True)
class PerRow:
    """½ Σⱼ ‖diag Rⱼ‖²: one number per task and output unit. This is the paper's code.

    M may be of a wider dtype than τ: everything is computed in M's, a task at a time.

    Attributes:
        task_vectors: τ, shape (task, out, in).
        squares: ‖τⱼₒ‖², shape (out, task).

    Source: (6), (7), (8) in docs/equations.md, difference 2. Lesson: 06.
    """

    task_vectors: Tensor
    squares: Tensor

    def along(self, update: Tensor) -> Tensor:
        """⟨Mₒ, τⱼₒ⟩ of every output unit and task, shape (out, task)."""
        if update.dtype == self.task_vectors.dtype:
            return torch.einsum("oi,toi->ot", update, self.task_vectors)
        return torch.stack([_dots(update, tau) for tau in self.task_vectors], dim=1)

    def spread(self, numbers: Tensor) -> Tensor:
        """In row o: Σⱼ yₒⱼ τⱼₒ, shape (out, in), of one number y (out, task) per output unit and task."""
        if numbers.dtype == self.task_vectors.dtype:
            return torch.einsum("ot,toi->oi", numbers, self.task_vectors)
        total = numbers.new_zeros(self.task_vectors.shape[1:])
        for one, tau in zip(numbers.mT, self.task_vectors, strict=True):
            total.addcmul_(one.unsqueeze(1), tau.to(total.dtype))
        return total

    def residual(self, update: Tensor) -> Tensor:
        """⟨τⱼₒ, Mₒ − τⱼₒ⟩, the diagonal of Rⱼ, shape (out, task)."""
        if update.dtype == self.squares.dtype:
            return self.along(update) - self.squares
        return torch.stack([_dots(update - tau, tau) for tau in self.task_vectors], dim=1)

    def value(self, update: Tensor) -> Tensor:
        """The surrogate at M (out, in), halved."""
        return self.residual(update).square().sum() / 2

    def gradient(self, update: Tensor) -> Tensor:
        """In row o: Σⱼ ⟨τⱼₒ, Mₒ − τⱼₒ⟩ τⱼₒ, shape (out, in)."""
        return self.spread(self.residual(update))

    def curvature(self, direction: Tensor) -> Tensor:
        """In row o: Σⱼ ⟨τⱼₒ, Dₒ⟩ τⱼₒ, shape (out, in)."""
        return self.spread(self.along(direction))


def _dots(one: Tensor, other: Tensor) -> Tensor:
    """Row by row ⟨one, other⟩, shape (out,), in the dtype of the first."""
    return torch.einsum("oi,oi->o", one, other.to(one.dtype))


@dataclass(frozen=True)
class Full:
    """½ Σⱼ ‖(M − τⱼ) Hⱼ^½‖²: the whole residual, for every input direction that task j's update used.

    Hⱼ = Vⱼ Sⱼᵖ Vⱼᵀ / Σₖ sⱼₖᵖ from τⱼ = Uⱼ Sⱼ Vⱼᵀ. With p = 2 and all directions it is Σⱼ ‖Rⱼ‖² / ‖τⱼ‖².

    Attributes:
        gram: G = Σ Hⱼ, shape (in, in).
        target: B = Σ τⱼ Hⱼ, shape (out, in).
        constant: Σ tr(τⱼ Hⱼ τⱼᵀ), so that `value` is the surrogate and not only its moving part.
        factor: F with G = F Fᵀ, shape (in, k), where the tasks have fewer directions together than the layer has
            inputs; else None. What G is decomposed by: of k directions that costs (k/in)³ as much.

    Source: (6), (7), (8) in docs/equations.md; with p = 2 and no protection WUDI, arXiv 2503.08099. Lesson: 06.
    """

    gram: Tensor
    target: Tensor
    constant: Tensor
    factor: Tensor | None = None

    def value(self, update: Tensor) -> Tensor:
        """The surrogate at M (out, in), halved."""
        moving = (update @ self.gram).sub_(self.target, alpha=2).mul_(update).sum()
        # Where next to nothing is left of the sum of squares, rounding can take it below zero.
        return ((moving + self.constant) / 2).clamp_min(0)

    def gradient(self, update: Tensor) -> Tensor:
        """M G − B, shape (out, in)."""
        return update @ self.gram - self.target

    def curvature(self, direction: Tensor) -> Tensor:
        """D G, shape (out, in)."""
        return direction @ self.gram


Objective = PerLayer | PerRow | Full


def objective(task_vectors: Tensor, granularity: str, *, power: float = 2.0, top: int | None = None) -> Objective:
    """The quadratic that a granularity stands for.

    Args:
        task_vectors: τ, shape (task, out, in).
        granularity: "layer", "row" or "full".
        power: p, for "full": how much more the residual counts in directions that an update used much.
        top: for "full": how many of each task's right singular directions count; all when None.

    Raises:
        MergeError: there is no such granularity.

    Source: (6), (7), (8) in docs/equations.md. Lesson: 06.
    """
    check_granularity(granularity)
    if granularity == "layer":
        return PerLayer(task_vectors)
    if granularity == "row":
        # Task by task: all products at once would be as large as the task vectors.
        return PerRow(task_vectors, torch.stack([_dots(tau, tau) for tau in task_vectors], dim=1))
    return _full(task_vectors, power, top)


def _full(task_vectors: Tensor, power: float, top: int | None) -> Full:
    out, columns = task_vectors.shape[1:]
    gram = task_vectors.new_zeros(columns, columns)
    target = task_vectors.new_zeros(out, columns)
    constant = task_vectors.new_zeros(())
    few = len(task_vectors) * min(out, columns, top or out) < columns
    factors = []
    # One task at a time, each forgotten before the next: a stack of (in, in) matrices would be the largest thing in
    # memory.
    for tau in task_vectors:
        more, factor = _add(gram, target, tau, power, top, few)
        constant += more
        factors.append(factor)
    return Full(gram, target, constant, torch.cat(factors, dim=1) if few else None)


def _add(gram: Tensor, target: Tensor, tau: Tensor, power: float, top: int | None, few: bool) -> tuple[Tensor, Tensor]:
    """Add one task's H to G and τH to B; tr(τHτᵀ) comes back and, where asked for, H's own factor (in, direction)."""
    out, columns = tau.shape
    no_factor = tau.new_zeros(columns, 0)
    nothing = tau.new_zeros(()), no_factor
    if power == 2 and top is None:
        size = tau.square().sum()
        if not size > 0:
            return nothing
        one = tau.mT @ tau / size
        gram += one
        target += tau @ one
        constant = size * one.square().sum() if columns <= out else (tau @ tau.mT).square().sum() / size
        return constant, tau.mT / size.sqrt() if few else no_factor
    vectors, values = right_vectors(tau)
    # A direction without a singular value has no weight, p = 0 or not.
    used = values > values[:1] * 4 * torch.finfo(values.dtype).eps ** 0.5
    # In units of the largest: a high power of a short update would be no number.
    weights = torch.where(used, values / values[:1], 1.0) ** power * used
    weights, values = weights[:top], values[:top]
    total = weights.sum()
    if not total > 0:
        return nothing
    scaled = vectors[:, :top] * (weights / total).sqrt()
    if columns < 2 * len(weights):
        # τH at once is fewer products than by way of the directions.
        one = scaled @ scaled.mT
        gram += one
        target.addmm_(tau, one)
    else:
        gram.addmm_(scaled, scaled.mT)
        target.addmm_(tau @ scaled, scaled.mT)
    return (values.square() * weights).sum() / total, scaled if few else no_factor
