"""How many directions to protect, read off the weights alone: the rules that were tried."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging.subspace import left_vectors
from apgd_teach.merging.surrogate import surrogate, weights

__all__ = ["RULES", "LayerFacts", "automatic_rank"]

Solve = Callable[[Tensor, list[int]], list[Tensor]]
"""From τ (task, out, in) and ranks to the merged updates M (out, in) with so many directions protected."""

GRID = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of r that the rules which have to solve the layer choose from."""


@dataclass(frozen=True)
class LayerFacts:
    """What a rule may look at.

    Attributes:
        task_vectors: τ, shape (task, out, in).
        base_norm: ‖θ₀‖ of the layer; NaN where it is not known.
        solve: the method's own solver.
    """

    task_vectors: Tensor
    base_norm: float
    solve: Solve

    @property
    def size(self) -> int:
        """r = min(out, in), the most that can be protected."""
        return min(self.task_vectors.shape[1:])

    @property
    def choices(self) -> list[int]:
        """The ranks of `GRID`, each once."""
        return sorted({round(share * self.size) for share in GRID})


def step(layer: LayerFacts) -> float:
    """½·(‖τ‖/‖θ₀‖)² of r, with the mean ‖τ‖ of the tasks that moved: what first order neglects grows as the square.

    A mild update of some hundredths protects next to nothing, a hot one of a half an eighth of r, one that is longer
    than √2·‖θ₀‖ (as any is where the base is zero) all of r.
    """
    if math.isnan(layer.base_norm):
        raise MergeError(
            "protect='step' compares the task vectors with the base, and the layer does not say how long that is; "
            "use merge(…), or call the method with Layer(base_norm=…), or give protect as a number."
        )
    norms = _moved(layer.task_vectors)
    if not len(norms):
        return 0.0
    mean = float(norms.mean())
    # A base that is zero, or next to it, has no ratio that a float could hold.
    return (mean / layer.base_norm) ** 2 / 2 * layer.size if mean < 2 * layer.base_norm else layer.size


def energy(layer: LayerFacts) -> float:
    """As many output directions as hold half of Σ τⱼτⱼᵀ/‖τⱼ‖²: what the tasks mostly do is what they share."""
    held = _spectrum(layer.task_vectors).cumsum(0)
    return float((held < held[-1] / 2).sum()) + 1 if held[-1] > 0 else 0.0


def participation(layer: LayerFacts) -> float:
    """The participation ratio (Σe)²/Σe² of the eigenvalues e of Σ τⱼτⱼᵀ/‖τⱼ‖²: how many directions are used."""
    values = _spectrum(layer.task_vectors)
    return float(values.sum() ** 2 / values.square().sum()) if values.sum() > 0 else 0.0


def length(layer: LayerFacts) -> float:
    """As few as make the solved M no longer than twice the median task vector: a longer one extrapolates.

    Of the tasks that moved; of an even number the lower of the middle two.
    """
    norms = _moved(layer.task_vectors)
    if not len(norms):
        return 0.0
    limit = 2 * float(norms.median())
    solved = layer.solve(layer.task_vectors, layer.choices)
    lengths = [float(torch.linalg.vector_norm(update)) for update in solved]
    return next((rank for rank, found in zip(layer.choices, lengths, strict=True) if found <= limit), layer.choices[-1])


def agreement(layer: LayerFacts) -> float:
    """Where the solved M leaves least of `row`, which it was not solved for: two granularities that agree."""
    solved = layer.solve(layer.task_vectors, layer.choices)
    return _least(layer, [_total(layer.task_vectors, update, "row") for update in solved])


def left_out(layer: LayerFacts) -> float:
    """Where `full` of the tasks in the merge and of one that was left out of it is least, each left out once."""
    tau = layer.task_vectors
    if len(tau) < 2:
        return 0.0

    scores = [_total(tau, update, "full") for update in layer.solve(tau, layer.choices)]
    for task in range(len(tau)):
        others = torch.cat([tau[:task], tau[task + 1 :]])
        for place, update in enumerate(layer.solve(others, layer.choices)):
            scores[place] += _total(tau[task : task + 1], update, "full")
    return _least(layer, scores)


RULES: dict[str, Callable[[LayerFacts], float]] = {
    "step": step,
    "energy": energy,
    "participation": participation,
    "length": length,
    "agreement": agreement,
    "left_out": left_out,
}
"""Rules by name, each a number of directions. How near each comes to the best constant rank of a setting, on the pools
that they were designed on and on others: `benchmarks/settings.md`. What solves the layer and scores it (`agreement`,
`left_out`) mostly protects nothing: such scores rise with the rank. `Apgd(protect="auto")` does without a number:
`subspace.soft_projector`, measured beside "energy" and "step" in `benchmarks/protection.md`."""


def automatic_rank(rule: str, layer: LayerFacts) -> int:
    """How many of the shared directions to protect.

    Args:
        rule: a name in `RULES`.
        layer: what the rule may look at.

    Returns:
        k, from 0 to r.

    Raises:
        MergeError: the rule needs what the layer does not say.

    Source: the rules and what each reached: `benchmarks/settings.md`. Lesson: 05.
    """
    found = RULES[rule](layer)
    return min(layer.size, max(0, round(found))) if math.isfinite(found) else 0


def _moved(task_vectors: Tensor) -> Tensor:
    """‖τⱼ‖ of the tasks that moved."""
    norms = torch.linalg.vector_norm(task_vectors, dim=(1, 2))
    return norms[norms > 0]


def _spectrum(task_vectors: Tensor) -> Tensor:
    """Eigenvalues of Σ τⱼτⱼᵀ / ‖τⱼ‖², largest first: energy by output direction, every task counting the same."""
    scaled = task_vectors * weights(task_vectors, "full").sqrt()[:, None, None]
    return left_vectors(scaled.permute(1, 0, 2).flatten(1))[1].square()


def _total(task_vectors: Tensor, update: Tensor, granularity: str) -> float:
    """Σⱼ surrogateⱼ as a share of the base's, so that no task outvotes another."""
    there = surrogate(task_vectors, update, granularity)
    nothing = surrogate(task_vectors, torch.zeros_like(update), granularity)
    return float(torch.where(nothing > 0, there / nothing, 0.0).sum())


def _least(layer: LayerFacts, scores: list[float]) -> int:
    """The choice with the least score, the smallest of those that differ by rounding alone."""
    # Of one task, or of twins, every choice solves the layer: what is left is noise.
    limit = min(scores) + 1e-6
    return next((rank for rank, score in zip(layer.choices, scores, strict=True) if score <= limit), 0)
