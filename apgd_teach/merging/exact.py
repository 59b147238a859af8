"""The answer that descent is heading to: a closed form for `full`, conjugate gradients for `row` and `layer`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging.descent import free_gradient, off
from apgd_teach.merging.objective import Full, PerLayer, PerRow
from apgd_teach.merging.statedict import norm
from apgd_teach.merging.subspace import eigh

__all__ = ["FILTERS", "conjugate_gradients", "full_solution", "minimise", "row_solution", "spectral_filter"]

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

    Source: (14), (15), (16), (17) in docs/equations.md. Lesson: 06.
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

    Source: (14), (15), (16), (17) in docs/equations.md. Lesson: 06.
    """
    values, vectors = _directions(quadratic)
    shares = spectral_filter(values.clamp_min(0), kind, strength)[: vectors.shape[1]]
    filtered = (quadratic.gradient(start) @ vectors) * shares @ vectors.mT
    # Last, so that no small eigenvalue blows up what rounding leaves of the protected part.
    return start - off(basis, filtered)


def _directions(quadratic: Full) -> tuple[Tensor, Tensor]:
    """G's eigenvalues (in,), and the eigenvectors (in, k) of the first k; the others are 0, and no gradient goes there.

    Where G = F Fᵀ with few columns in F, the vectors are F W e^-½ from Fᵀ F = W e Wᵀ: in double precision, since that
    divides by the root of what may be next to nothing.
    """
    factor = quadratic.factor
    if factor is None or factor.device.type == "mps":
        return eigh(quadratic.gram)
    double = factor.double()
    values, inner = eigh(double.mT @ double)
    there = values > 1e-12 * values.max() if len(values) else values > 0
    vectors = (double @ inner[:, there] / values[there].sqrt()).to(factor.dtype)
    padded = factor.new_zeros(len(factor))
    padded[: vectors.shape[1]] = values[there].to(factor.dtype)
    return padded, vectors


def conjugate_gradients(
    quadratic: PerLayer | PerRow, start: Tensor, basis: Tensor, *, tolerance: float = 1e-4, steps: int = 200
) -> tuple[Tensor, int]:
    """Minimise `row` or `layer` under P(M − S) = 0 by conjugate gradients on the projected normal equations.

    P and the Hessian do not commute here, so there is no closed form. Of all minimisers this finds the one nearest
    to S, as far as the dtype of S goes: an ill-conditioned problem wants float64 (`minimise` sees to that).

    Args:
        quadratic: what is minimised.
        start: S = Σ λᵢτᵢ, shape (out, in).
        basis: U (out, k) of the protected subspace.
        tolerance: stop when the projected gradient is so much shorter than at the start.
        steps: or after so many.

    Returns:
        M (out, in), and how many steps it took.

    Source: (14), (15), (16), (17) in docs/equations.md. Lesson: 06.
    """
    gradient, unit = free_gradient(quadratic, basis, start)
    moved = torch.zeros_like(start)
    left = -gradient
    direction = left.clone()
    size = begun = float(left.square().sum())
    taken = 0
    while taken < steps and size > tolerance**2 * begun:
        # The direction is kept in the complement again and again: rounding would carry it out.
        bent = off(basis, off(basis, quadratic.curvature(direction)))
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
    quadratic: PerRow, start: Tensor, basis: Tensor, *, tolerance: float = 1e-4, steps: int = 300
) -> tuple[Tensor, int]:
    """Meet the equations of `row` under P(M − S) = 0, nearest to S, where all of them can be met.

    `row` asks for one equation per task and output unit, ⟨Mₒ, τⱼₒ⟩ = ‖τⱼₒ‖². The M nearest to S that meets them is
    S + (I − P)·[Σⱼ yⱼₒ τⱼₒ]ₒ with one number y per equation, and y solves K y = what is missing at S. But for P, K
    falls apart into one T × T matrix per output unit, the products ⟨τⱼₒ, τₖₒ⟩: their inverses are the preconditioner
    of conjugate gradients on K, and with nothing protected they are the answer.

    Args:
        quadratic: the `row` surrogate.
        start: S = Σ λᵢτᵢ, shape (out, in).
        basis: U (out, k) of the protected subspace.
        tolerance: how much may be missing in each task's equations, as a share of its ‖τⱼₒ‖², root mean square.
        steps: at most so many.

    Returns:
        M (out, in), and how many steps it took. Whether the equations are met is for the caller to look at: experts
        that contradict each other in a unit have none that meets them, and `conjugate_gradients` minimises the rest.

    Source: (14), (15), (16), (17) in docs/equations.md. Lesson: 06.
    """
    missing = -quadratic.residual(start)
    products = torch.stack([quadratic.along(tau.to(start.dtype)) for tau in quadratic.task_vectors], dim=1)
    squares = products.diagonal(dim1=1, dim2=2)
    longest = float(squares.max())
    if not longest > 0:
        return start.clone(), 0
    enough = tolerance / longest * torch.linalg.vector_norm(squares, dim=0)
    # In units of the longest row, and a little on the diagonal: experts that agree in a unit leave it singular.
    squares += 1e-5 * squares.mean(dim=1, keepdim=True) + 1e-10 * longest
    inverse = torch.linalg.inv(products / longest)
    remaining = missing / longest
    found = torch.zeros_like(remaining)
    direction, along, taken = torch.zeros_like(remaining), math.inf, 0
    while taken < steps and bool((torch.linalg.vector_norm(remaining, dim=0) > enough).any()):
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
    # Twice: rounding leaves of a long y what would be much of a short P·S.
    return start + off(basis, off(basis, quadratic.spread(found))), taken


def minimise(
    quadratic: PerLayer | PerRow, start: Tensor, basis: Tensor, *, tolerance: float | None = None
) -> tuple[Tensor, int]:
    """The minimiser of `row` or `layer` under P(M − S) = 0 that is nearest to S.

    `row` first as the equations that it is made of (`row_solution`), `layer` by `conjugate_gradients`. What comes out
    is looked at: where rounding, or experts that contradict each other, have kept it from being the answer, it is
    computed again in float64, a task at a time, where the device has that.

    Args:
        quadratic: what is minimised.
        start: S = Σ λᵢτᵢ, shape (out, in).
        basis: U (out, k) of the protected subspace, orthonormal.
        tolerance: of `row_solution`, and of `conjugate_gradients`; 1e-4, in float64 1e-7, when None.

    Returns:
        M (out, in), of the dtype of S, and how many steps all of it took. Never worse than S.

    Source: (14), (15), (16), (17) in docs/equations.md. Lesson: 06.
    """
    fine = start.dtype == torch.float64
    enough = (1e-7 if fine else 1e-4) if tolerance is None else tolerance
    taken = 0
    if isinstance(quadratic, PerRow):
        update, taken = row_solution(quadratic, start, basis, tolerance=enough)
        left = torch.linalg.vector_norm(quadratic.residual(update), dim=0)
        met = bool((left <= 2 * enough * torch.linalg.vector_norm(quadratic.squares, dim=0)).all())
        # Looked at too: where the way is long, rounding alone can move what is to stay.
        if met and norm(basis.mT @ (update - start)) <= enough / 2 * norm(basis.mT @ start):
            return update, taken
    elif not fine:
        update, taken = conjugate_gradients(quadratic, start, basis, tolerance=enough)
        if _steepness(quadratic, basis, update) <= 2 * enough * _steepness(quadratic, basis, start):
            return update, taken
    wide, frame = start, basis
    if not fine and start.device.type != "mps":
        # Orthonormal to float32's last digit is not enough: a basis of the same subspace, in float64.
        wide, frame = start.double(), torch.linalg.qr(basis.double()).Q if basis.shape[1] else basis.double()
    update, more = conjugate_gradients(quadratic, wide, frame, tolerance=min(enough, 1e-6), steps=1000)
    if not float(quadratic.value(update)) <= float(quadratic.value(wide)):
        update = wide
    return update.to(start.dtype), taken + more


def _steepness(quadratic: PerLayer | PerRow, basis: Tensor, update: Tensor) -> float:
    return norm(off(basis, off(basis, quadratic.gradient(update))))
