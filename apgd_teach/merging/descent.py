"""Projected gradient descent on Δ, whose path the course shows step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from apgd_teach.merging.objective import Objective
from apgd_teach.merging.statedict import norm

__all__ = ["Path", "Step", "descend", "free_gradient", "largest_curvature", "off"]


@dataclass(frozen=True)
class Step:
    """Where descent stood after a step.

    Attributes:
        surrogate: the total that is minimised, Σⱼ wⱼ · surrogateⱼ.
        moved: ‖M − S‖ = Λ‖Δ‖, in units of the weights.
        leak: share of ‖M − S‖² inside the protected subspace; the constraint says 0.
    """

    surrogate: float
    moved: float
    leak: float


Path = tuple[Step, ...]
"""Step 0 is the start, M = S."""


def off(basis: Tensor, matrix: Tensor) -> Tensor:
    """(I − P) X: what of X (out, in) lies in the orthogonal complement of the shared subspace, P = UUᵀ.

    This is the projection of the method: the gradient keeps only what the tasks do not share.

    Source: (9) in docs/equations.md. Lesson: 05, 06.
    """
    return matrix - basis @ (basis.mT @ matrix) if basis.shape[1] else matrix


def free_gradient(quadratic: Objective, basis: Tensor, update: Tensor) -> tuple[Tensor, float]:
    """(I − P) ∇ at M as a direction of length one (out, in), and its length; zeros and 0 where nothing is left of it.

    At length one, because a gradient is of third order in τ: squares of it would be lost to a short τ. Projected twice:
    where most of ∇ is protected, rounding leaves of it what a small curvature would blow up.

    Source: (9) in docs/equations.md. Lesson: 06.
    """
    gradient = quadratic.gradient(update)
    free = off(basis, off(basis, gradient))
    length = norm(free)
    if length <= 4 * torch.finfo(free.dtype).eps * norm(gradient):
        return torch.zeros_like(free), 0.0
    return free / length, length


def largest_curvature(curvature: Callable[[Tensor], Tensor], basis: Tensor, start: Tensor, steps: int = 50) -> float:
    """The largest eigenvalue of the Hessian within the complement, by power iteration: 1 / it is a safe step.

    Args:
        curvature: the Hessian applied to a direction.
        basis: U (out, k) of the protected subspace.
        start: where to begin, (out, in): a gradient sees every direction that descent can move in.
        steps: at most so many; it ends when the estimate changes by less than a thousandth.

    Source: (14), (15), (16), (17) in docs/equations.md. Lesson: 06.
    """
    direction = off(basis, start)
    found = 0.0
    for _ in range(steps):
        size = norm(direction)
        if not size > 0:
            return found
        direction = off(basis, curvature(direction / size))
        last, found = found, norm(direction)
        if abs(found - last) <= 1e-3 * found:
            break
    # Power iteration comes from below: one per cent on top.
    return 1.01 * found


def descend(
    quadratic: Objective, start: Tensor, basis: Tensor, steps: int, *, rate: float | None = None
) -> tuple[Tensor, Path]:
    """M ← M − α (I − P) ∇, from M = S; with M = S + ΛΔ that is Δ ← Δ − (α/Λ) (I − P) ∇.

    Up to rounding, the constraint P(M − S) = 0 holds after every step, and with α = 1/Lipschitz the surrogate never
    rises. A power
    iteration that starts almost at right angles to the steepest direction overlooks it; where a step would run into
    it, α is shortened to that of an exact line search, for good.

    Args:
        quadratic: what is minimised.
        start: S = Σ λᵢτᵢ, shape (out, in).
        basis: U (out, k), orthonormal: what the tasks share. k = 0 protects nothing.
        steps: how many.
        rate: α; 1/Lipschitz when None.

    Returns:
        M (out, in) and the path, `steps` + 1 entries.

    Source: (9), (14), (15), (16), (17) in docs/equations.md. Lesson: 06.
    """
    gradient, unit = free_gradient(quadratic, basis, start)
    safe = rate is None
    if rate is None:
        lipschitz = largest_curvature(quadratic.curvature, basis, gradient)
        rate = 1 / lipschitz if lipschitz > 0 else 0.0
    moved = torch.zeros_like(start)
    path = [_step(quadratic, start, moved, basis)]
    for _ in range(steps):
        # Twice: rounding leaves of a steep, protected part what the flat rest would be lost in.
        bent = off(basis, off(basis, quadratic.curvature(gradient)))
        size, along = float(gradient.square().sum()), float((gradient * bent).sum())
        if safe and along * rate > size > 0:
            rate = size / along
        # Projected as a whole: what rounding leaves of the protected part does not add up.
        moved = off(basis, moved - rate * unit * gradient)
        gradient = gradient - rate * bent
        path.append(_step(quadratic, start, moved, basis))
    return start + moved, tuple(path)


def _step(quadratic: Objective, start: Tensor, moved: Tensor, basis: Tensor) -> Step:
    size = float(torch.linalg.vector_norm(moved))
    inside = float(torch.linalg.vector_norm(basis.mT @ moved)) if basis.shape[1] else 0.0
    return Step(2 * float(quadratic.value(start + moved)), size, (inside / size) ** 2 if size else 0.0)
