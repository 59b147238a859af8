"""The answer that descent is heading to: a closed form for `full`, conjugate gradients for `row` and `layer`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging.descent import free_gradient, off
from apgd_teach.merging.objective import Full, PerLayer, PerRow
from apgd_teach.merging.statedict import norm

__all__ = ["FILTERS", "conjugate_gradients", "full_solution", "row_solution", "spectral_filter"]

FILTERS = ("cutoff", "time")
"""How small eigenvalues of G are treated: dropped below a share of the largest, or left as descent does in a time."""


def spectral_filter(values: Tensor, kind: str, strength: float) -> Tensor:
    """f(e), in place of 1/e, on the eigenvalues of G.

    Args:
        values: e, shape (in,), 0 or more.
        kind: "cutoff": 1/e from `strength` · max(e) on, 0 below. "time": (1 − exp(−t·e/mean(e))) / e, which is what
            descent has reached after the time t = `strength`, in units of 1/mean(e).
        strength: the share, or the time.

    Raises:
        MergeError: there is no such filter.

    Source: method.md §3. Lesson: 06.
    """
    if kind == "cutoff":
        # What rounding makes of zero is dropped with it.
        floor = values.max() * max(strength, len(values) * torch.finfo(values.dtype).eps)
        return torch.where(values > floor, values, torch.inf).reciprocal()
    if kind != "time":
        raise MergeError(f"there is no filter '{kind}'; use one of: {', '.join(FILTERS)}.")
    mean = values.mean()
    if not mean > 0:
        return torch.zeros_like(values)
    scaled = strength / mean * values.clamp_min(0)
    # expm1 keeps the digits that 1 − exp(−x) loses; at e = 0 the limit is t/mean.
    return torch.where(scaled > 0, -torch.expm1(-scaled) / scaled, 1.0) * strength / mean


def full_solution(quadratic: Full, start: Tensor, basis: Tensor, kind: str, strength: float) -> Tensor:
    """M = S + (I − P)(B − S·G) f(G), which minimises `full` under P(M − S) = 0.

    P acts on the left and G on the right, so they commute. With f = 1/e on all of G's range, and S in it, this is
    M = P·S + (I − P)·B·G⁺; with the filter "time" it is where descent from S stands after that time; with a cut-off,
    S stays as it is in the directions that are cut off.

    Args:
        quadratic: G (in, in) and B (out, in).
        start: S = Σ λᵢτᵢ, shape (out, in).
        basis: U (out, k) of the protected subspace.
        kind, strength: of the filter, see `spectral_filter`.

    Returns:
        M, shape (out, in).

    Source: method.md §3. Lesson: 06.
    """
    values, vectors = torch.linalg.eigh(quadratic.gram)
    filtered = (quadratic.gradient(start) @ vectors) * spectral_filter(values.clamp_min(0), kind, strength) @ vectors.mT
    # Last, so that no small eigenvalue blows up what rounding leaves of the protected part.
    return start - off(basis, filtered)


def conjugate_gradients(
    quadratic: PerLayer | PerRow, start: Tensor, basis: Tensor, *, tolerance: float = 1e-4, steps: int = 200
) -> tuple[Tensor, int]:
    """Minimise `row` or `layer` under P(M − S) = 0 by conjugate gradients on the projected normal equations.

    P and the Hessian do not commute here, so there is no closed form. Of all minimisers this finds the one nearest
    to S.

    Args:
        quadratic: what is minimised.
        start: S = Σ λᵢτᵢ, shape (out, in).
        basis: U (out, k) of the protected subspace.
        tolerance: stop when the projected gradient is so much shorter than at the start.
        steps: or after so many.

    Returns:
        M (out, in), and how many steps it took.

    Source: method.md §3. Lesson: 06.
    """
    gradient, unit = free_gradient(quadratic, basis, start)
    moved = torch.zeros_like(start)
    left = -gradient
    direction = left.clone()
    size = begun = float(left.square().sum())
    taken = 0
    while taken < steps and size > tolerance**2 * begun:
        # The direction is kept in the complement again and again: rounding would carry it out.
        bent = off(basis, quadratic.curvature(direction))
        along = float((direction * bent).sum())
        if not along > 0:
            break
        moved = moved + unit * size / along * direction
        left = left - size / along * bent
        last, size = size, float(left.square().sum())
        direction = left + size / last * direction
        taken += 1
    return start + off(basis, moved), taken


def row_solution(
    quadratic: PerRow, start: Tensor, basis: Tensor, *, tolerance: float = 1e-4, steps: int = 50
) -> tuple[Tensor, int]:
    """The same minimiser of `row` as `conjugate_gradients` finds, in about half the steps.

    `row` asks for one equation per task and output unit, ⟨Mₒ, τⱼₒ⟩ = ‖τⱼₒ‖². Where all of them can be met, the M
    nearest to S is S + (I − P)·[Σⱼ yⱼₒ τⱼₒ]ₒ with one number y per equation, and y solves K y = what is missing at S.
    But for P, K falls apart into one T × T matrix per output unit, the products ⟨τⱼₒ, τₖₒ⟩: their inverses are the
    preconditioner, and with nothing protected they are the answer. Where experts contradict each other in a unit, the
    equations cannot all be met, and `conjugate_gradients` minimises what is left of them.

    Args:
        quadratic: the `row` surrogate.
        start: S = Σ λᵢτᵢ, shape (out, in).
        basis: U (out, k) of the protected subspace.
        tolerance: how much of what is missing at S may still be missing, as a root mean square over the equations.
        steps: at most so many before the other way is tried.

    Returns:
        M (out, in), and how many steps it took.

    Source: method.md §3. Lesson: 06.
    """
    missing = -quadratic.residual(start)
    products = torch.einsum("toi,soi->ots", quadratic.task_vectors, quadratic.task_vectors)
    squares = products.diagonal(dim1=1, dim2=2)
    longest = float(squares.max())
    if not longest > 0:
        return start.clone(), 0
    # In units of the longest row, and a little on the diagonal: experts that agree in a unit leave it singular.
    squares += 1e-5 * squares.mean(dim=1, keepdim=True) + 1e-10 * longest
    inverse = torch.linalg.inv(products / longest)
    remaining = begun = missing / longest
    found = torch.zeros_like(remaining)
    direction, along, taken = torch.zeros_like(remaining), math.inf, 0
    while taken < steps and norm(remaining) > tolerance * norm(begun):
        bent = (inverse @ remaining.unsqueeze(2)).squeeze(2)
        last, along = along, float((remaining * bent).sum())
        direction = bent + along / last * direction
        curved = quadratic.along(off(basis, quadratic.spread(direction))) / longest
        size = float((direction * curved).sum())
        if not size > 0:
            break
        found = found + along / size * direction
        remaining = remaining - along / size * curved
        taken += 1
    update = start + off(basis, quadratic.spread(found))
    # `remaining` was carried along, and rounding with it: what M really leaves decides.
    if norm(quadratic.residual(update)) <= 2 * tolerance * norm(missing):
        return update, taken
    update, more = conjugate_gradients(quadratic, start, basis, tolerance=tolerance)
    return update, taken + more
