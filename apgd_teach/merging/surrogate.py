"""The first-order estimate of the gap, and the three surrogates of it that need no data.

Everything here is of one layer. Its residual Rⱼ = (M − τⱼ) τⱼᵀ has one row per output unit; the granularity says how
much of it is to vanish: its trace (`layer`), its diagonal (`row`), or all of it (`full`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from apgd_teach.errors import MergeError

__all__ = [
    "GRANULARITIES",
    "before_and_after",
    "check_granularity",
    "residual",
    "surrogate",
    "taylor_gap",
    "taylor_gap_with_gradient",
    "weights",
]

GRANULARITIES = ("layer", "row", "full")
"""How much of the residual a surrogate asks to vanish, from least to most."""


def residual(task_vectors: Tensor, update: Tensor) -> Tensor:
    """Rⱼ = (M − τⱼ) τⱼᵀ of every task: how M differs from τⱼ along the input directions that τⱼ itself uses.

    For looking at; the surrogates below do not hold all of it in memory.

    Args:
        task_vectors: τ, shape (task, out, in).
        update: M, shape (out, in).

    Returns:
        shape (task, out, out).

    Raises:
        MergeError: the shapes do not fit.

    Source: (4), (5) in docs/equations.md. Lesson: 04.
    """
    _check_shapes(task_vectors, update)
    return (update - task_vectors) @ task_vectors.mT


def taylor_gap(task_vectors: Tensor, update: Tensor) -> Tensor:
    """−⟨τⱼ, M − τⱼ⟩ = −tr Rⱼ: the first-order estimate of task j's gap, with −τⱼ in place of the gradient.

    Right up to a positive factor per task and layer, as far as τⱼ is an accumulated negative gradient at θ₀. It is
    ‖τⱼ‖² at the base (M = 0), zero at the expert, and negative where M goes further along τⱼ than the expert did: an
    estimate, not a loss, so it is not what is minimised (`surrogate` is).

    Args:
        task_vectors: τ, shape (task, out, in).
        update: M, shape (out, in).

    Returns:
        shape (task,). The estimate of a network is the sum over its layers.

    Raises:
        MergeError: the shapes do not fit.

    Source: (4), (5) in docs/equations.md. Lesson: 04.
    """
    return taylor_gap_with_gradient(-task_vectors, task_vectors, update)


def taylor_gap_with_gradient(gradients: Tensor, task_vectors: Tensor, update: Tensor) -> Tensor:
    """⟨∇Lⱼ(θ₀), M − τⱼ⟩: the first-order estimate of task j's gap, with the gradient that only data can give.

    For comparing with `taylor_gap`. Whoever calls it has computed the gradients; nothing here touches data.

    Args:
        gradients: ∇Lⱼ(θ₀) of this layer, shape (task, out, in).
        task_vectors: τ, shape (task, out, in).
        update: M, shape (out, in).

    Returns:
        shape (task,). The estimate of a network is the sum over its layers.

    Raises:
        MergeError: the shapes do not fit.

    Source: (4), (5) in docs/equations.md. Lesson: 04.
    """
    _check_shapes(task_vectors, update)
    if gradients.shape != task_vectors.shape:
        raise MergeError(
            f"the gradients have shape {tuple(gradients.shape)} and the task vectors {tuple(task_vectors.shape)}; "
            "give one gradient per task, at the base, of the same layer."
        )
    return torch.stack([(g * (update - tau)).sum() for g, tau in zip(gradients, task_vectors, strict=True)])


def surrogate(task_vectors: Tensor, update: Tensor, granularity: str) -> Tensor:
    """The squared residual of each task, unweighted: what a merge makes small in place of the gap that it cannot see.

    Per task (tr R)² ≤ d·‖diag R‖² ≤ d·‖R‖², d = out: each granularity bounds the one before it. Their gradients in M
    are one family too: 2 tr(R) τ, 2 diag(R) τ (each row of τ by its own number), 2 R τ. What descent minimises is
    Σⱼ wⱼ · surrogateⱼ with wⱼ from `weights`.

    Args:
        task_vectors: τ, shape (task, out, in).
        update: M, shape (out, in). Gradients flow to it.
        granularity: "layer" for (tr R)², "row" for ‖diag R‖², "full" for ‖R‖_F².

    Returns:
        shape (task,). Where the residual vanishes, float32 leaves about 1e-8 of ‖M − τ‖²‖τ‖² of "full" in a layer with
        out > in (its short way round through Gram matrices cancels), and far less of the others.

    Raises:
        MergeError: there is no such granularity, or the shapes do not fit.

    Source: (6), (7), (8) in docs/equations.md. Lesson: 04, 06.
    """
    check_granularity(granularity)
    _check_shapes(task_vectors, update)
    # Task by task: all differences at once would double the memory that the task vectors take.
    return torch.stack([_squared(tau, update - tau, granularity, _gram(tau, granularity)) for tau in task_vectors])


def before_and_after(
    task_vectors: Tensor, start: Tensor, update: Tensor, granularity: str
) -> dict[str, tuple[float, ...]]:
    """The surrogate of each task at S and at M, as shares of what it is at the base (M = 0).

    Args:
        task_vectors: τ, shape (task, out, in).
        start: S, shape (out, in).
        update: M, shape (out, in).
        granularity: "layer", "row" or "full".

    Returns:
        "surrogate_before" and "surrogate_after", a number per task; 0 for a zero task vector. Audits state them.

    Raises:
        MergeError: there is no such granularity, or the shapes do not fit.

    Source: (6), (7), (8) in docs/equations.md. Lesson: 06.
    """
    check_granularity(granularity)
    for one in (start, update):
        _check_shapes(task_vectors, one)
    before: list[float] = []
    after: list[float] = []
    for tau in task_vectors:
        gram = _gram(tau, granularity)
        nothing = float(_squared(tau, -tau, granularity, gram))
        for shares, one in ((before, start), (after, update)):
            shares.append(float(_squared(tau, one - tau, granularity, gram)) / nothing if nothing > 0 else 0.0)
    return {"surrogate_before": tuple(before), "surrogate_after": tuple(after)}


def weights(task_vectors: Tensor, granularity: str) -> Tensor:
    """wⱼ of each task in the total Σⱼ wⱼ · surrogateⱼ.

    `full` divides by ‖τⱼ‖²: its surrogate is of fourth order in τ, and without the division long task vectors would
    outvote short ones. The other two are as published, unweighted.

    Args:
        task_vectors: τ, shape (task, out, in).
        granularity: "layer", "row" or "full".

    Returns:
        shape (task,): 1/‖τⱼ‖_F² for "full", 1 for the others, and 0 for a task vector that is zero (or so short that
        its square is no normal number of its dtype).

    Raises:
        MergeError: there is no such granularity, or τ is no stack of matrices.

    Source: (6) to (17) in docs/equations.md. Lesson: 06.
    """
    check_granularity(granularity)
    _check_shapes(task_vectors, task_vectors[0] if task_vectors.ndim else task_vectors)
    squares = torch.linalg.vector_norm(task_vectors, dim=(1, 2)).square()
    given = squares.reciprocal() if granularity == "full" else torch.ones_like(squares)
    return torch.where(squares >= torch.finfo(squares.dtype).tiny, given, torch.zeros_like(squares))


def check_granularity(granularity: str) -> None:
    """Refuse what is no granularity.

    Raises:
        MergeError: it is none of `GRANULARITIES`.
    """
    if granularity not in GRANULARITIES:
        raise MergeError(f"there is no granularity {granularity!r}; use one of: {', '.join(GRANULARITIES)}.")


def _gram(tau: Tensor, granularity: str) -> Tensor | None:
    """τᵀτ, shape (in, in), where the way to the surrogate leads over it: half of the work, the same at every M."""
    return tau.mT @ tau if granularity == "full" and tau.shape[0] > tau.shape[1] else None


def _squared(tau: Tensor, difference: Tensor, granularity: str, gram: Tensor | None) -> Tensor:
    if granularity == "layer":
        return (difference * tau).sum().square()
    if granularity == "row":
        return torch.einsum("oi,oi->o", difference, tau).square().sum()
    if gram is None:
        return (difference @ tau.mT).square().sum()
    # ‖Dτᵀ‖² = tr[(τᵀτ)(DᵀD)]: two (in, in) matrices instead of one (out, out). Rounding can take it below zero.
    return (gram * (difference.mT @ difference)).sum().clamp_min(0)


def _check_shapes(task_vectors: Tensor, update: Tensor) -> None:
    if task_vectors.ndim != 3 or update.shape != task_vectors.shape[1:]:
        raise MergeError(
            f"the task vectors have shape {tuple(task_vectors.shape)} and the update {tuple(update.shape)}; give "
            "(task, out, in) and (out, in), a kernel as the matrix (out, in·kh·kw)."
        )
