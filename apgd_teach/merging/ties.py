"""TIES: trim each task vector, elect a sign per entry, and average those that have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apgd_teach.merging.method import ALONE, Layer, Update
from apgd_teach.merging.settings import number
from apgd_teach.merging.threshold import mask

__all__ = ["Ties"]


@dataclass(frozen=True)
class Ties:
    """Trim, elect signs by mass, take the disjoint mean.

    Each expert keeps the share `trim` of its largest |τ|, over all merged layers together. Of every entry, the sign
    of the sum of what is kept is elected (by mass: one long step outvotes two short ones), and the mean is taken over
    those that are kept and have that sign. Where the sum is exactly zero no sign is elected and nothing moves; the
    public code gives such entries the sign of the majority of all entries.

    One expert with λ = 1 comes back whole only where nothing is trimmed.

    Attributes:
        coefficient: λ, which multiplies the disjoint mean: not a sum, so it need not shrink with the number of tasks.
            The paper recommends 1 where there is no validation data.
        trim: the share of each expert's entries that is kept, 0 < trim ≤ 1; the paper recommends 0.2. Called by hand
            on one matrix, without thresholds in the layer, it is the share of that matrix.

    Facts for the audit, per task: "kept", the share of this layer's entries that survive the trim and are not zero;
    "elected", the share of those whose sign won.

    Source: Yadav et al., "TIES-Merging", NeurIPS 2023, arXiv 2306.01708; method.md §6. Lesson: 03.
    """

    coefficient: float = 1.0
    trim: float = 0.2
    name: ClassVar[str] = "ties"

    def __post_init__(self) -> None:
        number(self.name, "coefficient", self.coefficient)
        number(self.name, "trim", self.trim, 0, 1, above=True)

    def __call__(self, task_vectors: Tensor, layer: Layer = ALONE) -> Update:
        """The merged update M of one layer.

        Args:
            task_vectors: τ, shape (task, out, in).
            layer: its thresholds, if there are any.

        Returns:
            M = λ · (mean over the tasks that are kept and have the elected sign), shape (out, in), and the facts.
        """
        kept = mask(task_vectors, self.trim, layer.thresholds) & (task_vectors != 0)
        elected = _sum(task_vectors, kept).sign()
        # Task by task: a product of all at once would double the memory that the task vectors take.
        agreeing = torch.stack([one & (tau * elected > 0) for tau, one in zip(task_vectors, kept, strict=True)])
        voters = _sum(torch.ones_like(elected).expand_as(task_vectors), agreeing)
        mean = _sum(task_vectors, agreeing) / voters.clamp_min(1)
        counts = [(int(one.sum()), int(won.sum())) for one, won in zip(kept, agreeing, strict=True)]
        facts = {
            "kept": tuple(count / mean.numel() for count, _ in counts),
            "elected": tuple(won / count if count else 0.0 for count, won in counts),
        }
        return Update(self.coefficient * mean, facts)


def _sum(task_vectors: Tensor, chosen: Tensor) -> Tensor:
    total = torch.zeros_like(task_vectors[0])
    for tau, one in zip(task_vectors, chosen, strict=True):
        total += tau * one
    return total
