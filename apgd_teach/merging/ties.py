"""TIES: trim each task vector, elect a sign per entry, and average those that have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apgd_teach.merging.method import ALONE, Layer, Update
from apgd_teach.merging.settings import number
from apgd_teach.merging.threshold import mask, threshold

__all__ = ["Ties"]

_ROWS = 64


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

    Source: Yadav et al., "TIES-Merging", NeurIPS 2023, arXiv 2306.01708. Lesson: 03.
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
        at = threshold(task_vectors, self.trim) if layer.thresholds is None else layer.thresholds
        update = torch.empty_like(task_vectors[0])
        kept, elected = (torch.zeros(len(task_vectors), dtype=torch.int64, device="cpu") for _ in range(2))
        # A block of rows at a time: masks and products of all tasks at once would double the memory.
        for rows, block in zip(update.split(_ROWS), task_vectors.split(_ROWS, dim=1), strict=True):
            there = mask(block, self.trim, at) & (block != 0)
            agreeing = there & (block * (block * there).sum(dim=0).sign() > 0)
            rows.copy_(self.coefficient * (block * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp_min(1))
            kept += there.sum(dim=(1, 2)).cpu()
            elected += agreeing.sum(dim=(1, 2)).cpu()
        facts = {
            "kept": tuple((kept / update.numel()).tolist()),
            "elected": tuple((elected / kept.clamp_min(1)).tolist()),
        }
        return Update(update, facts)
