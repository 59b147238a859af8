"""The first pass of a method that trims: which |τ| an entry needs to be among the largest of its expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["kept", "mask", "threshold", "thresholds"]

_DIGIT = 16
"""Bits looked at in one pass. Non-negative floats sort as the integers that their bits are."""


def kept(share: float, size: int) -> int:
    """The rank, counted from the smallest, of the first entry that is kept: size − ⌊share · size⌋, as published.

    The entry of that rank is kept too, so one more than ⌊share · size⌋ entries are.
    """
    return max(1, size - int(size * share))


def mask(task_vectors: Tensor, share: float, at: Tensor | None = None) -> Tensor:
    """Which entries are kept: those whose |τ|, rounded to float32 as the threshold is, is at or above it.

    Args:
        task_vectors: τ, shape (task, out, in).
        share: of the entries of each task that is kept, 0 < share ≤ 1.
        at: the thresholds found over all layers, shape (task,); without them the same rule is applied to this layer.

    Returns:
        shape (task, out, in), True where an entry is kept.

    Source: (13) in docs/equations.md. Lesson: 03.
    """
    found = torch.empty(task_vectors.shape, dtype=torch.bool, device=task_vectors.device)
    least = threshold(task_vectors, share) if at is None else at
    for task, tau in enumerate(task_vectors):
        found[task] = tau.abs().to(torch.float32) >= least[task]
    return found


def trimmed(task_vectors: Tensor, delta: Tensor, coefficients: Tensor, kept: Tensor) -> Tensor:
    """Σ λᵢ (τᵢ + Δ) ⊙ maskᵢ, shape (out, in): task by task, since all of them at once would double the memory.

    Args:
        task_vectors: τ, shape (task, out, in).
        delta: Δ, shape (out, in).
        coefficients: λ, shape (task,).
        kept: the masks, shape (task, out, in), see `mask`.

    Source: (13) in docs/equations.md. Lesson: 06.
    """
    update = torch.zeros_like(delta)
    for coefficient, tau, one in zip(coefficients, task_vectors, kept, strict=True):
        update += (tau + delta).mul_(one).mul_(coefficient)
    return update


def shares(kept: Tensor) -> tuple[float, ...]:
    """The share of each task's entries that a mask (task, out, in) keeps."""
    return tuple(int(one.count_nonzero()) / one.numel() for one in kept)


def threshold(task_vectors: Tensor, share: float) -> Tensor:
    """The |τ|, in float32, at and above which an entry of one layer alone is kept, shape (task,).

    Args:
        task_vectors: τ, shape (task, out, in).
        share: of the entries of each task that is kept, 0 < share ≤ 1.
    """
    rank = kept(share, task_vectors[0].numel())
    sizes = (tau.abs().to(torch.float32).flatten() for tau in task_vectors)
    return torch.stack([size.kthvalue(rank).values for size in sizes])


def thresholds(
    layers: Iterable[str], read: Callable[[str], Tensor], share: float, n_tasks: int, tick: Callable[[], object] = int
) -> Tensor:
    """The |τ| at and above which an entry is kept, per task, over all layers together.

    Exact, in two passes that hold one layer and two tables of 65,536 counts per task: the upper half of the bits
    says in which interval the threshold lies, the lower half where in it.

    Args:
        layers: names.
        read: from a name to τ, shape (task, out, in), float32 (float64 is rounded to it: the threshold is a float32).
        share: of the entries of each task that is kept, between 0 and 1.
        n_tasks: length of the task axis.
        tick: called after each layer of each pass.

    Returns:
        shape (task,), float32, on the CPU.

    Source: (13) in docs/equations.md. Lesson: 03.
    """
    names = list(layers)
    upper = np.zeros((n_tasks, 1 << _DIGIT), dtype=np.int64)
    size = 0
    for name in names:
        for task, bits in _bits(read(name)):
            size += bits.size if task == 0 else 0
            upper[task] += np.bincount(bits >> _DIGIT, minlength=1 << _DIGIT)
        tick()
    if size == 0:
        return torch.zeros(n_tasks, device="cpu")
    rank = kept(share, size)
    below = np.cumsum(upper, axis=1)
    interval = np.array([np.searchsorted(row, rank) for row in below])
    left = np.array([rank - (below[task, i - 1] if i else 0) for task, i in enumerate(interval)])
    lower = np.zeros((n_tasks, 1 << _DIGIT), dtype=np.int64)
    for name in names:
        for task, bits in _bits(read(name)):
            inside = bits[bits >> _DIGIT == interval[task]]
            lower[task] += np.bincount(inside & ((1 << _DIGIT) - 1), minlength=1 << _DIGIT)
        tick()
    place = np.array([np.searchsorted(np.cumsum(lower[task]), left[task]) for task in range(n_tasks)])
    found = (interval << _DIGIT | place).astype(np.int32).view(np.float32)
    return torch.from_numpy(found.copy())


def _bits(task_vectors: Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """The task, and some of its |τ| as integers that sort as they do: copies of all would double what is in memory."""
    for task, tau in enumerate(task_vectors.detach()):
        for part in tau.flatten().split(1 << 20):
            yield task, part.abs().to(torch.float32).cpu().numpy().view(np.int32)
