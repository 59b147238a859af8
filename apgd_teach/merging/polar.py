"""A matrix's singular directions, without those that rounding invents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["directions", "noise", "polar"]


def directions(matrix: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition U S Vᵀ, cut where rounding begins.

    The singular vectors of the value zero are arbitrary, and a computer seldom finds zero. What lies below
    2 √max(out, in) · ε of the largest singular value (`noise`) is taken for it: some six times what rounding was
    measured to leave in matrices of low rank up to 1024 wide. The rounding of θᵢ − θ₀, before a method sees it, is not
    known here: `least` can say it.

    Args:
        matrix: shape (out, in).
        least: singular values up to this are taken for nothing too.

    Returns:
        U (out, k), s (k,) in descending order, Vᵀ (k, in); k = 0 for a matrix of zeros. A matrix with NaN or infinity
        in it, or with a singular value that its dtype cannot hold, gives NaN with k = 1, as arithmetic would.
    """
    # An upper bound of the largest singular value; written so that NaN does not pass.
    if not float(matrix.abs().amax()) * math.sqrt(matrix.numel()) <= torch.finfo(matrix.dtype).max:
        out, columns = matrix.shape
        left, values, right = (matrix.new_full(shape, math.nan) for shape in ((out, 1), (1,), (1, columns)))
        return left, values, right
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > (noise(matrix) * values[:1]).clamp_min(least)).sum())
    return left[:, :rank], values[:rank], right[:rank]


def noise(matrix: Tensor) -> float:
    """The share of the largest singular value below which one is taken for rounding, in the matrix's own dtype."""
    return 2 * math.sqrt(max(matrix.shape)) * torch.finfo(matrix.dtype).eps


def polar(matrix: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """U Vᵀ, the matrix with all its singular values set to one: the nearest with orthonormal rows or columns.

    Where its columns (or rows) depend on each other it is a partial isometry: it holds no direction that the matrix
    does not hold.

    Args:
        matrix: shape (out, in).
        least: see `directions`.

    Returns:
        U Vᵀ (out, in), and the singular values (k,) that were there, see `directions`.

    Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika, 1966.
    """
    left, values, right = directions(matrix, least)
    return left @ right, values
