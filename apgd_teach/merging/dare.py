"""DARE: drop entries of each task vector at random, rescale the rest, and add up."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apgd_teach.merging.method import ALONE, Layer, Update
from apgd_teach.merging.settings import number, whole

__all__ = ["Dare"]


@dataclass(frozen=True)
class Dare:
    """Task arithmetic on task vectors of which each entry is dropped with probability `drop`, the rest rescaled.

    What is left of an entry is divided by 1 − drop, so its expectation is the entry itself, and that of M is the M of
    task arithmetic. Which entries are dropped depends on `seed`, the layer's name and the expert's name, and on
    nothing else: not on the other experts, the order of the work, the device or the precision.

    One expert with λ = 1 comes back only with drop = 0.

    Attributes:
        coefficient: λ, which multiplies the sum, as in task arithmetic.
        drop: the probability p of an entry to be dropped, 0 ≤ drop < 1; the paper finds 0.9 harmless for large
            language models.
        seed: a whole number. Called by hand, without names in the layer, the place of a task stands for its name.

    Facts for the audit: "coefficients", λ per task; "kept", the share of entries not dropped, per task.

    Source: Yu et al., "Language Models are Super Mario", ICML 2024, arXiv 2311.03099. Lesson: 03.
    """

    coefficient: float = 0.3
    drop: float = 0.9
    seed: int = 0
    name: ClassVar[str] = "dare"

    def __post_init__(self) -> None:
        number(self.name, "coefficient", self.coefficient)
        number(self.name, "drop", self.drop, 0, 1, below=True)
        whole(self.name, "seed", self.seed)

    def __call__(self, task_vectors: Tensor, layer: Layer = ALONE) -> Update:
        """The merged update M of one layer.

        Args:
            task_vectors: τ, shape (task, out, in).
            layer: its name and the tasks' names, which with `seed` decide what is dropped.

        Returns:
            M = λ Σ mᵢ ⊙ τᵢ / (1 − drop), mᵢ zero or one, shape (out, in), and the facts.
        """
        total = torch.zeros_like(task_vectors[0])
        shares = []
        names: Sequence[str | int] = layer.experts or range(len(task_vectors))
        for expert, tau in zip(names, task_vectors, strict=True):
            kept = self._kept(layer.name, expert, tau.shape)
            shares.append(float(kept.double().mean()))
            total += tau * kept.to(tau.device)
        coefficients = (float(self.coefficient),) * len(task_vectors)
        return Update(self.coefficient / (1 - self.drop) * total, {"coefficients": coefficients, "kept": tuple(shares)})

    def _kept(self, layer: str, expert: str | int, shape: torch.Size) -> Tensor:
        mark = hashlib.sha256(repr((self.seed, layer, expert)).encode()).digest()
        draws = torch.Generator("cpu").manual_seed(int.from_bytes(mark[:8], "little"))
        return torch.rand(shape, generator=draws, device="cpu") >= self.drop
