"""What each method keeps of the task vectors before it scales anything, and what comes of it at its best λ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Evaluator
from apgd_teach.experts import Pool
from apgd_teach.merging import Dare, StateDict, Ties, merge, task_vectors
from apgd_teach.merging.statedict import as_matrix
from apgd_teach.merging.threshold import mask
from apgd_teach.progress import bar
from apgd_teach.tables import Table

__all__ = ["GRIDS", "STILL", "Grid", "Kept", "SideBySide", "kept_by", "measure_side_by_side"]


STILL = "average, base's biases"
"""Label of the average of the weights alone."""


@dataclass(frozen=True)
class Kept:
    """Shares of the task vectors that go into a merge, per cent; None where a method does not choose by such things.

    Attributes:
        entries: of all entries of all weights.
        energy: of their squares, added up: of ‖τ‖².
        directions: of the singular directions of all layers.
    """

    entries: float | None
    energy: float
    directions: float | None


@dataclass(frozen=True)
class Grid:
    """A method by its name in `merge`, and the λ to choose from."""

    method: str
    coefficients: tuple[float, ...]


_SUM, _MEAN = (0.0125, 0.025, 0.05, 0.1, 0.2), (0.0625, 0.125, 0.25, 0.5, 1.0)

GRIDS: Mapping[str, Grid] = {
    "task arithmetic": Grid("task_arithmetic", _SUM),
    "task-aware λ": Grid("task_aware", _SUM),
    "TIES": Grid("ties", _MEAN),
    "DARE": Grid("dare", _SUM),
    "TSV-M": Grid("tsv_m", _MEAN),
}
"""Methods of lesson 03 by label. TIES takes a mean, and TSV-M a sum of directions that do not meet: their λ are larger
than those of the others, which add up whole steps."""


@dataclass(frozen=True)
class SideBySide:
    """Methods side by side, each at the λ of its list with the highest mean accuracy on validation images.

    Attributes:
        scored: by the kind of the experts, the average and every method on test images.
        coefficients: by the kind of the experts and the method's label, the λ that it chose; the average's is 1/T.
        kept: by the kind of the experts and the method's label.
        rival: the label of the method that the table holds the others against.
        tried: by the method's label, the λ that it was offered.

    Lesson: 03.
    """

    scored: dict[str, Comparison]
    coefficients: dict[str, dict[str, float]]
    kept: dict[str, dict[str, Kept]]
    rival: str
    tried: dict[str, tuple[float, ...]]

    def least(self, experts: str) -> list[str]:
        """The labels of the methods that chose the smallest λ that they were offered."""
        return [label for label, tried in self.tried.items() if self.coefficients[experts][label] == min(tried)]

    def _end(self, experts: str, label: str) -> str:
        tried, chosen = self.tried.get(label, ()), self.coefficients[experts][label]
        return " (least)" if label in self.least(experts) else " (most)" if tried and chosen == max(tried) else ""

    def best(self, experts: str) -> str:
        """The label of the highest mean accuracy."""
        scored = self.scored[experts]
        return max(scored.merged, key=scored.average)

    def ahead(self, experts: str) -> list[str]:
        """The labels of the methods that are better than the rival by the intervals over test images."""
        scored = self.scored[experts]
        others = [label for label in scored.merged if label != self.rival]
        return [label for label in others if scored.against(label, self.rival).verdict == "better"]

    def fairest(self, experts: str) -> str:
        """The label of the highest accuracy of the worst task."""
        scored = self.scored[experts]
        return max(scored.merged, key=lambda label: scored.worst(label)[1])

    def table(self, experts: str) -> Table:
        """Every method with what it keeps and what came of it, between the base and the experts."""
        scored, rival = self.scored[experts], self.rival

        def row(label: str, shown: str) -> tuple[object, ...]:
            kept = self.kept[experts].get(label)
            task, lowest = scored.worst(label)
            merged = label in scored.merged
            return (
                shown,
                *((kept.entries, kept.energy, kept.directions) if kept else (None, None, None)),
                f"{self.coefficients[experts][label]:g}{self._end(experts, label)}" if merged else "–",
                scored.average(label),
                str(scored.against(label)) if merged else "–",
                str(scored.against(label, rival)) if merged and label != rival else "–",
                lowest,
                scored.titles[task],
            )

        names = {"base": "base", **{label: label for label in scored.merged}, "experts": "each its own expert"}
        return Table(
            (
                "method",
                "entries %",
                "energy %",
                "directions %",
                "λ",
                "mean %",
                "against the base",
                f"against {rival}",
                "worst %",
                "worst task",
            ),
            [row(label, shown) for label, shown in names.items()],
            caption=f"What is kept of τ, and what comes of it: {experts} experts, accuracy on test images",
            note="TIES: what is left after the election. Against: points of the mean, with the 95 % interval over test "
            "images. λ: of the averages 1/T, of all others chosen on validation images from a short list without 0 (of "
            "task-aware λ, the coefficient c), with the base's biases, so that it may differ from the λ of the sweep; "
            "(least), (most): the smallest, the largest of the list. Where rows of the smallest stand there, they say "
            "how little harm a short step does, and not how well a method merges. "
            f"{scored.tier}.",
        )


def measure_side_by_side(
    pools: Mapping[str, Pool],
    beside: Mapping[str, Comparison],
    *,
    tried: int | None = None,
    grids: Mapping[str, Grid] = GRIDS,
    progress: bool = True,
) -> SideBySide:
    """Let each method choose its λ on validation images, and score it on test images.

    Biases stay the base's for all but the average, so that a small λ is a small step and nothing else; the average is
    there with the base's as well.

    Args:
        pools: by the kind of the experts.
        beside: of each pool, a comparison on test images; its base and experts are not scored again, and the methods
            are scored on as many images.
        tried: validation images per task for choosing λ, the first ones; all by default.
        grids: what to try, by label. The first is what the table holds the others against.
        progress: show a bar.

    Raises:
        ApgdTeachError: there is no comparison of one of the pools.

    Lesson: 03.
    """
    if set(pools) != set(beside):
        raise ApgdTeachError("each pool needs a comparison of its own to stand beside; give one under its name.")
    offered = {label: grid.coefficients for label, grid in grids.items()}
    found = SideBySide({}, {}, {}, next(iter(grids)), offered)
    with bar(len(pools) * len(grids), "method", "scales tried", progress) as done:
        for experts, pool in pools.items():
            images = len(next(iter(beside[experts].base.values())).right)
            test, validation = Evaluator(pool, images=images), Evaluator(pool, images=tried, split="validation")
            vectors = task_vectors(pool.base, pool.experts)
            plain = {"average": None, STILL: {"*.bias": "keep"}}
            merged = {
                label: test.scores(merge(pool.base, pool.experts, policy=policy).state_dict)
                for label, policy in plain.items()
            }
            coefficients = dict.fromkeys(plain, 1 / len(pool.tasks))
            kept = dict.fromkeys(plain, kept_by(vectors, "average"))
            for label, grid in grids.items():
                coefficients[label], state = _best(pool, validation, grid)
                merged[label], kept[label] = test.scores(state), kept_by(vectors, grid.method)
                done.update(1)
            used = {label: "labelled" if label in grids else "none" for label in merged}
            found.scored[experts] = replace(beside[experts], merged=merged, data_used=used)
            found.coefficients[experts], found.kept[experts] = coefficients, kept
    return found


def _best(pool: Pool, validation: Evaluator, grid: Grid) -> tuple[float, StateDict]:
    """The λ with the highest mean accuracy, and its network."""
    first = grid.coefficients[0]
    one = merge(pool.base, pool.experts, grid.method, coefficient=first, policy={"*.bias": "keep"}).state_dict
    # M is λ times something that does not depend on λ: one merge does for all of them.
    networks = {
        coefficient: {key: base + coefficient / first * (one[key] - base) for key, base in pool.base.items()}
        for coefficient in grid.coefficients
    }
    means = {
        coefficient: sum(score.accuracy for score in validation.scores(state).values())
        for coefficient, state in networks.items()
    }
    best = max(means, key=means.__getitem__)
    return best, networks[best]


def kept_by(vectors: Mapping[str, StateDict], method: str) -> Kept:
    """What a method takes of all weights together, before it scales anything, with its own default settings.

    TIES: the entries that survive the trim and have the elected sign. DARE: the share 1 − p that is expected
    to be left. TSV-M: the first r // T singular directions of each task and layer, r = min(out, in). Any other: all.

    Args:
        vectors: τ by task and tensor; those of two axes and more are the weights.
        method: its name in `merge`.

    Lesson: 03.
    """
    layers = [key for key, one in next(iter(vectors.values())).items() if one.ndim >= 2]
    if method == "ties":
        rows = torch.stack([torch.cat([tau[key].flatten() for key in layers]) for tau in vectors.values()])
        left = rows * mask(rows[:, None], Ties().trim)[:, 0]
        elected = left * left.sum(dim=0).sign() > 0
        held = (rows * elected).square().sum() / rows.square().sum()
        return Kept(100 * float(elected.float().mean()), 100 * float(held), None)
    if method == "dare":
        share = 100 * (1 - Dare().drop)
        return Kept(share, share, None)
    if method == "tsv_m":
        return _first_directions(vectors, layers)
    return Kept(100.0, 100.0, 100.0)


def _first_directions(vectors: Mapping[str, StateDict], layers: list[str]) -> Kept:
    first, every, k, r = 0.0, 0.0, 0, 0
    for key in layers:
        stack = torch.stack([as_matrix(tau[key]) for tau in vectors.values()])
        small = stack if stack.shape[1] <= stack.shape[2] else stack.mT
        squares = torch.linalg.eigvalsh(small @ small.mT).flip(1)  # squared singular values
        count = max(1, squares.shape[1] // len(vectors))
        first, every = first + float(squares[:, :count].sum()), every + float(squares.sum())
        k, r = k + count, r + squares.shape[1]
    return Kept(None, 100 * first / every, 100 * k / r)
