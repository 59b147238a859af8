"""TSV-M: the first singular directions of every task, made orthogonal to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apgd_teach.merging.method import Fact, Update
from apgd_teach.merging.polar import directions, polar
from apgd_teach.merging.settings import number

__all__ = ["TsvM"]


@dataclass(frozen=True)
class TsvM:
    """Task singular vectors, merged: M = λ U⊥ S V⊥ᵀ.

    Of each τᵢ = UᵢSᵢVᵢᵀ the first r // T singular triples, r = min(out, in), are put side by side, U = [U₁ … U_T] and
    likewise V; U⊥ and V⊥ are the nearest matrices with orthonormal columns (Procrustes: their polar factors), so that
    no task writes into, or reads from, a direction of another.

    Where the text of the paper is silent:

    * T counts the tasks that moved in this layer. A zero task vector has no directions, and leaves no gap.
    * Triples whose singular value is no more than rounding (see `polar.directions`) are left out: their vectors are
      arbitrary, and would push the others aside.
    * With more tasks than r, each brings one triple and the r largest of them stay: there is no room for more
      orthogonal directions.
    * Directions that tasks share exactly stay shared: twins count once, and nothing is invented to tell them apart.
      Those that are nearly shared are pulled apart all the way, along what little they differ by: that is the method.

    One expert with λ = 1 comes back.

    Attributes:
        coefficient: λ, which multiplies what is reassembled: on the scale of a sum, as the tasks' directions do not
            overlap. The authors' code searches 0.1 to 3 on validation data; 1 is the value without any.

    Where all tasks' directions together nearly fill the space of the outputs (T · ⌊r / T⌋ close to out), some of them
    differ by very little, and rounding is divided by that little: float32 and float64 have been seen to differ by some
    per cent of M there.

    Facts for the audit: "rank", the triples that each task has in M; "overlap_out" and "overlap_in", the squared
    largest singular values of U and V: 1 where the tasks' directions were orthogonal already, T where all share one;
    "least", the smallest singular value of the two: what rounding is divided by.

    Source: Gargiulo et al., "Task Singular Vectors", CVPR 2025, arXiv 2412.00081. Lesson: 03.
    """

    coefficient: float = 1.0
    name: ClassVar[str] = "tsv_m"

    def __post_init__(self) -> None:
        number(self.name, "coefficient", self.coefficient)

    def __call__(self, task_vectors: Tensor) -> Update:
        """The merged update M of one layer.

        Args:
            task_vectors: τ, shape (task, out, in).

        Returns:
            M = λ U⊥ S V⊥ᵀ, shape (out, in), and the facts.
        """
        moved = [place for place, tau in enumerate(task_vectors) if bool(tau.any())]
        if not moved:
            nothing: dict[str, Fact] = {
                "rank": (0,) * len(task_vectors),
                "overlap_out": 0.0,
                "overlap_in": 0.0,
                "least": 0.0,
            }
            return Update(torch.zeros_like(task_vectors[0]), nothing)
        most = min(task_vectors.shape[1:])
        room = max(1, most // len(moved))
        # Cut as soon as they are found: all vectors of all tasks would take twice the memory of the task vectors.
        triples = [[part[:room].clone() for part in _triples(task_vectors[place])] for place in moved]
        owner = [place for place, (_, found, _) in zip(moved, triples, strict=True) for _ in found]
        left, values, right = (torch.cat(parts) for parts in zip(*triples, strict=True))
        del triples
        first = values.argsort(descending=True, stable=True)[:most]
        left, right = left[first], right[first]
        outward, out_lengths = polar(left)
        del left
        inward, in_lengths = polar(right)
        del right
        matrix = self.coefficient * (outward.mT * values[first]) @ inward
        mine = [owner[column] for column in first.tolist()]
        facts: dict[str, Fact] = {
            "rank": tuple(mine.count(place) for place in range(len(task_vectors))),
            "overlap_out": float(out_lengths[0]) ** 2,
            "overlap_in": float(in_lengths[0]) ** 2,
            "least": float(min(out_lengths[-1], in_lengths[-1])),
        }
        return Update(matrix, facts)


def _triples(tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors, singular values and right vectors, a triple per row, longest first."""
    left, values, right = directions(tau)
    return left.mT, values, right
