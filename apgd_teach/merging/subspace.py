"""What the tasks share: a subspace on the output side of a layer, its projector, and how far two of them are apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from apgd_teach.errors import MergeError

__all__ = [
    "BASES",
    "eigh",
    "eigh_in_place",
    "gram",
    "left_vectors",
    "overflows",
    "principal_angles",
    "projector",
    "right_vectors",
    "shared_basis",
    "soft_projector",
]

BASES = ("published", "weighted")
"""How the tasks' left singular vectors are put together: as they are, or each as long as its singular value."""


def left_vectors(matrix: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Left singular vectors and singular values, largest first, from an eigendecomposition of the smaller Gram side.

    One and a half to four times as fast as an SVD, and as good where it matters: what is lost are directions whose
    singular value is below 4√ε of the largest (0.0014 in float32). Where out ≤ in those come out orthonormal too. Where
    out > in, vectors are made by dividing by their singular value s: they are orthonormal to about ε·(s₁/s)², and what
    is lost are zero columns.

    Args:
        matrix: shape (…, out, in).
        count: how many vectors, the first ones; all r when None.

    Returns:
        vectors U (…, out, count) and all values s (…, r), r = min(out, in).

    Lesson: 05.
    """
    rows, columns = matrix.shape[-2:]
    short = matrix if rows <= columns else matrix.mT
    vectors, values = (one.to(matrix.dtype) for one in _by_gram(lambda: gram(short), count))
    if rows <= columns:
        return vectors, values
    return matrix @ vectors * _inverse(values)[..., :count].unsqueeze(-2), values


def right_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Right singular vectors V (…, in, r) and singular values s (…, r): `left_vectors` of the transposed matrix."""
    return left_vectors(matrix.mT)


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh` of a symmetric matrix (…, n, n), in float64 where float32 fails, with an error or with NaN.

    LAPACK's does where many rows of τ are exactly zero (inputs that were always off, units that never fired). Apple's
    devices (MPS) have no float64, and in older releases of PyTorch not this decomposition: for them the CPU makes it.
    """
    if matrix.device.type == "mps":
        values, vectors = (one.to(matrix.device) for one in eigh(matrix.cpu()))
        return values, vectors
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        if matrix.dtype == torch.float64:
            raise
    else:
        if _numbers(values, vectors) or matrix.dtype == torch.float64:
            return values, vectors
    values, vectors = (one.to(matrix.dtype) for one in torch.linalg.eigh(matrix.double()))
    return values, vectors


def _numbers(values: Tensor, vectors: Tensor) -> bool:
    # A sum is NaN where anything is, and costs next to nothing.
    return bool(torch.isfinite(values.sum() + vectors.sum()))


def eigh_in_place(matrix: Tensor, again: Callable[[], Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """`eigh`, whose eigenvectors take the place of the matrix (…, n, n) that is given.

    The decomposition is where a layer's memory peaks, and the matrix is not needed after it. On the CPU LAPACK works
    on the matrix itself when its output is the same tensor; elsewhere there is no such thing, and nothing is saved.

    Args:
        matrix: is overwritten.
        again: makes the matrix once more, for `eigh` to go on with where this does not converge.
    """
    if matrix.device.type != "cpu":
        return eigh(matrix)
    # The transposed view is laid out by columns, as LAPACK wants it, and of the same numbers.
    vectors, values = matrix.mT, matrix.new_empty(matrix.shape[:-1])
    try:
        torch.linalg.eigh(vectors, out=(values, vectors))
    except torch.linalg.LinAlgError:
        if again is None:
            raise
        return eigh(again())
    return (values, vectors) if again is None or _numbers(values, vectors) else eigh(again())


def _by_gram(make: Callable[[], Tensor], count: int | None) -> tuple[Tensor, Tensor]:
    values, vectors = eigh_in_place(make(), make)
    first = 0 if count is None else max(0, vectors.shape[-1] - count)
    return vectors[..., first:].flip(-1), values.flip(-1).clamp_min(0).sqrt()


def gram(matrix: Tensor) -> Tensor:
    """X Xᵀ of X (…, out, in) in float64, where the device has it: in float32 squaring would cost half of the digits.

    A block of columns at a time: a whole layer in double precision would weigh as much as two.
    """
    if matrix.device.type == "mps":
        return matrix @ matrix.mT
    rows = matrix.shape[-2]
    total = matrix.new_zeros((*matrix.shape[:-2], rows, rows), dtype=torch.float64)
    for block in matrix.split(1024, dim=-1):
        wide = block.to(torch.float64)
        total += wide @ wide.mT
    return total


def _inverse(values: Tensor) -> Tensor:
    """1/s, and 0 where s is below what an eigendecomposition of the Gram matrix can tell from nothing."""
    # Up to 1.8 √ε was measured to be left of a zero, in matrices of low rank up to 1000 wide.
    floor = values[..., :1] * 4 * math.sqrt(torch.finfo(values.dtype).eps)
    return torch.where(values > floor, values, torch.inf).reciprocal()


def shared_basis(task_vectors: Tensor, keep: int, *, per_task: int | None = None, basis: str = "published") -> Tensor:
    """An orthonormal basis of the subspace that the tasks share.

    Of each τᵢ the first `per_task` left singular vectors, side by side; of these the first `keep` left singular
    vectors: directions that many tasks write into come first.

    Args:
        task_vectors: τ, shape (task, out, in).
        keep: k, how many directions; the paper takes r // 6, r = min(out, in).
        per_task: how many of each task; the paper's r // T when None (one at least).
        basis: "published", every vector of length one; "weighted", each as long as its singular value in units of
            its task's ‖τᵢ‖, so that a direction counts for what its tasks do with it.

    Returns:
        U, shape (out, k'), k' = keep or as many as there are.

    Raises:
        MergeError: there is no such basis.

    Source: (10) in docs/equations.md. Lesson: 05.
    """
    if basis not in BASES:
        raise MergeError(f"there is no basis '{basis}'; use one of: {', '.join(BASES)}.")
    tasks, out, columns = task_vectors.shape
    if keep <= 0:
        return task_vectors.new_zeros(out, 0)
    count = max(1, min(out, columns) // tasks) if per_task is None else per_task
    # One task at a time: the vectors of all of them would be as large as the task vectors.
    pairs = [left_vectors(tau, count) for tau in task_vectors]
    chosen, values = (torch.stack(one) for one in zip(*pairs, strict=True))
    if basis == "weighted":
        norms = torch.linalg.vector_norm(task_vectors, dim=(1, 2)).clamp_min(torch.finfo(values.dtype).tiny)
        chosen = chosen * (values[:, :count] / norms[:, None]).unsqueeze(1)
    else:
        # A task without a direction there has no vector to give; an eigendecomposition invents one.
        chosen = chosen * (_inverse(values[:, :count]) > 0).unsqueeze(1)
    together = chosen.permute(1, 0, 2).reshape(out, -1)
    # One task's vectors are in order already; all of length one, another decomposition would shuffle them.
    alone = together, torch.linalg.vector_norm(together, dim=0)
    shared, lengths = left_vectors(together) if tasks > 1 else alone
    shared = shared[:, : min(keep, int((_inverse(lengths) > 0).sum()))]
    # Weak directions of a tall matrix come out askew, and a projector of those would not project.
    if not shared.shape[1]:
        return shared
    # Not every release of PyTorch has this decomposition on MPS.
    there = shared.cpu() if shared.device.type == "mps" else shared
    return torch.linalg.qr(there).Q.to(shared.device)


def projector(basis: Tensor) -> Tensor:
    """P = UUᵀ, shape (out, out), of an orthonormal basis U (out, k)."""
    return basis @ basis.mT


def soft_projector(task_vectors: Tensor, softness: float) -> Tensor:
    """W = E (E + κ·tr E·I)⁻¹ with E = Σ τⱼτⱼᵀ/‖τⱼ‖²: how far each output direction is shared, between 0 and 1.

    A projector knows only in and out, and wants to be told how many directions are in. This one asks each direction
    for the share e/tr E of all energy that it holds: it has the eigenvalue e / (e + κ·tr E), a half where that share is
    κ. A direction that a single task uses a little is next to free, one in which all tasks write is next to fixed, and
    a small change of τ changes it a little. Its trace is the number of directions that it protects in effect.

    M − S = (I − W)(M₀ − S), for a solution M₀ with nothing protected, is what minimises
    ‖M − M₀‖² + Σⱼ ‖τⱼᵀ(M − S)‖²/‖τⱼ‖² / (κ·tr E): the constraint P(M − S) = 0 as a price instead of a wall.

    Args:
        task_vectors: τ, shape (task, out, in). Tasks that did not move have no say.
        softness: κ, above 0.

    Returns:
        W, shape (out, out), symmetric; zeros where no task moved.

    Raises:
        MergeError: κ is not above 0.

    Source: this project, (11) in docs/equations.md; measured in `benchmarks/protection.md`. Lesson: 05.
    """
    if not softness > 0:
        raise MergeError(f"softness is {softness}; give a number above 0.")
    energy = task_vectors.new_zeros(2 * (task_vectors.shape[1],))
    moved = 0
    # One task at a time: all of them scaled would double the memory that they take.
    for tau in task_vectors:
        size = torch.linalg.vector_norm(tau)
        if size > 0:
            energy.addmm_(tau / size, (tau / size).mT)
            moved += 1
    if not moved:
        return energy
    # tr E = the number of tasks that moved. No eigenvalue of what is inverted is below 1 or above 1 + 1/κ.
    free = torch.linalg.inv((energy / (softness * moved)).add_(torch.eye(len(energy)).to(energy)))
    return torch.eye(len(free)).to(free) - (free + free.mT) / 2


def overflows(task_vectors: Tensor) -> bool:
    """Whether τ is so long, or so wrong, that products of four of it are no numbers of its dtype: as in a surrogate.

    No decomposition takes infinity or NaN. A method hands it on as NaN, and the merge names the tensor.
    """
    least, most = torch.aminmax(task_vectors)
    largest = max(-float(least), float(most))
    return not largest * math.sqrt(task_vectors.numel()) < torch.finfo(task_vectors.dtype).max ** 0.25


def principal_angles(one: Tensor, other: Tensor) -> Tensor:
    """The angles between two subspaces, smallest first, in degrees.

    Args:
        one, other: orthonormal bases, shapes (out, k) and (out, l).

    Returns:
        shape (min(k, l),): 0 where they share a direction, 90 where one is at right angles to all of the other.

    Source: Björck and Golub, 1973. Lesson: 05.
    """
    # The arc cosine cannot tell small angles from none, the arc sine large ones from 90°: each where it is good.
    if one.shape[1] > other.shape[1]:
        one, other = other, one
    cosines = torch.linalg.svdvals(other.mT @ one).clamp(max=1)
    sines = torch.linalg.svdvals(one - other @ (other.mT @ one)).clamp(max=1).flip(0)
    return torch.rad2deg(torch.where(cosines**2 < 0.5, cosines.arccos(), sines.arcsin()))
