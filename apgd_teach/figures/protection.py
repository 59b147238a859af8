"""What a protected subspace takes from a merge: the way that is not gone, what is frozen, and accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Evaluator, Scores
from apgd_teach.figures.ranks import RankSweep, measure_rank, share_words
from apgd_teach.figures.shared import layer_vectors, sixth
from apgd_teach.merging import Apgd, Layer, Merged, Solution, StateDict, merge, shared_basis, soft_projector
from apgd_teach.merging.descent import off
from apgd_teach.merging.method import ALONE
from apgd_teach.merging.statedict import as_matrix
from apgd_teach.tables import Table

__all__ = [
    "Kept",
    "Moved",
    "Movement",
    "Price",
    "Prices",
    "Way",
    "choices_table",
    "measure_choices",
    "measure_kept",
    "measure_moved",
    "measure_prices",
    "measure_way",
]


METHOD = Apgd(power=2.0, flatten=0.0, reach=None, biases="average")
"""The surrogate `full` as the lessons define it, nothing protected, and nothing that comes after the constraint."""


@dataclass(frozen=True)
class Way:
    """A pool's experts, merged with nothing protected: by layer, where the merge starts and what it goes from there.

    Attributes:
        base: θ₀.
        experts: θᵢ by name.
        vectors: by layer, τ (task, out, in).
        solved: by layer, S (`start`) and M (`update`) of `full` with nothing protected; D = M − S is the way.
        shared: by layer, U (out, k) of the shared subspace, k = r // 6.
    """

    base: StateDict
    experts: Mapping[str, StateDict]
    vectors: dict[str, Tensor]
    solved: dict[str, Solution]
    shared: dict[str, Tensor]

    def merged(self, keep: Callable[[Tensor, Tensor], Tensor], bases: Mapping[str, Tensor] | None = None) -> Merged:
        """The experts merged with a part of the way only: M = S + keep(D, U) in every layer.

        Args:
            keep: from D (out, in) and U (out, k) the part (out, in) that is gone.
            bases: by layer, what U is; the shared subspace when None.
        """
        given = self.shared if bases is None else bases
        return merge(self.base, self.experts, _Part(self, lambda layer, way: keep(way, given[layer])))

    def sweep(self, score: Evaluator | Callable[[StateDict], Scores], shares: Sequence[float]) -> RankSweep:
        """`measure_rank`, which takes the layers as they are solved here.

        Args:
            score: what scores a state dict on every task.
            shares: of r = min(out, in), each 0 to 1.
        """
        return measure_rank(
            self.base,
            self.experts,
            score,
            shares=shares,
            free=self.solved,
            power=METHOD.power,
            flatten=METHOD.flatten,
            reach=METHOD.reach,
            biases=METHOD.biases,
        )

    def updates(self, network: StateDict) -> dict[str, Tensor]:
        """By layer, M (out, in) of a network."""
        return {layer: as_matrix(network[layer] - self.base[layer]) for layer in self.solved}


@dataclass(frozen=True)
class _Part:
    """A method of merging that goes a part of a way, which may depend on the layer's name."""

    way: Way
    keep: Callable[[str, Tensor], Tensor]
    name: ClassVar[str] = "part of the way"

    def __call__(self, task_vectors: Tensor, layer: Layer = ALONE) -> Tensor:
        solved = self.way.solved[layer.name]
        return solved.start + self.keep(layer.name, solved.update - solved.start)


def measure_way(base: StateDict, experts: Mapping[str, StateDict]) -> Way:
    """Solve every layer with the surrogate `full`, nothing protected (`METHOD`).

    Args:
        base: θ₀.
        experts: θᵢ by name.

    Raises:
        ApgdTeachError: the state dicts do not fit together (`MergeError`, one of its kinds).

    Source: (2) to (17) in docs/equations.md. Lesson: 05.
    """
    vectors = layer_vectors(base, experts)
    return Way(
        base,
        experts,
        vectors,
        {layer: METHOD.solve(taus) for layer, taus in vectors.items()},
        {layer: sixth(taus) for layer, taus in vectors.items()},
    )


def _residuals(vectors: Tensor, update: Tensor) -> list[Tensor]:
    """(M − τⱼ) τⱼᵀ / ‖τⱼ‖ of every task, each (out, out): half the sum of their squares is the surrogate `full`."""
    return [(update - tau) @ tau.mT / tau.norm() for tau in vectors if bool(tau.any())]


def _surrogate(vectors: Tensor, update: Tensor) -> float:
    return sum(float(one.square().sum()) for one in _residuals(vectors, update)) / 2


@dataclass(frozen=True)
class Movement:
    """What a merge moved from S, all layers together.

    Attributes:
        shared: ‖P(M − S)‖ / ‖PS‖; the constraint wants 0.
        rest: ‖(I − P)(M − S)‖ / ‖(I − P)S‖.
        left: the surrogate `full` at M, as a share of what it is at S.
    """

    shared: float
    rest: float
    left: float


@dataclass(frozen=True)
class Moved:
    """What several merges of several pools moved.

    Attributes:
        by: by pool and by merge.
        compared: by pool, how accurate these merges are.
    """

    by: dict[str, dict[str, Movement]]
    compared: Mapping[str, Comparison]

    def of(self, label: str) -> list[Movement]:
        """One merge, of every pool."""
        return [by[label] for by in self.by.values()]

    def table(self) -> Table:
        """One row per pool for its base, and one per merge; accuracies are held against the first merge of the pool."""
        reference = next(iter(next(iter(self.by.values()))))

        def judged(pool: str, label: str) -> tuple[object, ...]:
            compared = self.compared[pool]
            against = "–" if label == reference else str(compared.against(label, reference))
            return compared.average(label), compared.worst(label)[1], against

        return Table(
            (
                "experts",
                "merge",
                "shared part moved, × its length",
                "rest moved, × its length",
                "surrogate left %",
                "mean %",
                "worst task %",
                f"mean against {reference}",
            ),
            [
                row
                for pool, by in self.by.items()
                for row in (
                    (pool, "base, nothing merged", "–", "–", "–", *judged(pool, "base")),
                    *(
                        (pool, label, one.shared, one.rest, 100 * one.left, *judged(pool, label))
                        for label, one in by.items()
                    ),
                )
            ],
            caption="What each merge moves",
            note="Length: that of this part in S. Left: of the surrogate's value at S. All layers together. "
            f"{_INTERVALS} Images: {next(iter(self.compared.values())).tier}.",
        )


_INTERVALS = "Against: points, with a 95 % interval over test images, paired image by image."


def measure_moved(
    ways: Mapping[str, Way], merged: Mapping[str, Mapping[str, Merged]], compared: Mapping[str, Comparison]
) -> Moved:
    """How far the shared part and the rest moved from S, and what is left of the surrogate.

    Args:
        ways: by pool.
        merged: by pool and label, merges of that pool.
        compared: by pool, the accuracies of these.

    Source: (9) in docs/equations.md. Lesson: 05.
    """

    def movement(way: Way, network: StateDict, begun: float) -> Movement:
        squares, left = torch.zeros(4, dtype=torch.float64), 0.0
        for layer, update in way.updates(network).items():
            start, basis = way.solved[layer].start, way.shared[layer]
            for i, matrix in enumerate((update - start, start)):
                outside = off(basis, matrix)
                squares[2 * i] += float((matrix - outside).square().sum())
                squares[2 * i + 1] += float(outside.square().sum())
            left += _surrogate(way.vectors[layer], update)
        shared, rest = (squares[:2] / squares[2:]).sqrt().tolist()
        return Movement(shared, rest, left / begun)

    by = {}
    for pool, networks in merged.items():
        way = ways[pool]
        begun = sum(_surrogate(taus, way.solved[layer].start) for layer, taus in way.vectors.items())
        by[pool] = {label: movement(way, one.state_dict, begun) for label, one in networks.items()}
    return Moved(by, compared)


@dataclass(frozen=True)
class Kept:
    """How much of the tasks' updates S and the solved M keep, inside the shared subspace and outside.

    Attributes:
        tasks: T.
        by: by pool and layer, ⟨PM, Pτⱼ⟩/‖Pτⱼ‖², mean over tasks: of S inside and outside, of M inside and outside.
    """

    tasks: int
    by: dict[tuple[str, str], tuple[float, float, float, float]]

    def range(self, which: int) -> str:
        """ "19 to 59 %": the least and the most of one of the four numbers over all layers."""
        values = [100 * one[which] for one in self.by.values()]
        return f"{min(values):.0f} to {max(values):.0f} %".replace("-", "−")

    def table(self) -> Table:
        """One row per pool and layer (%)."""
        return Table(
            ("experts", "layer", "S, inside", "S, outside", "solved M, inside", "solved M, outside"),
            [(*which, *(100 * one for one in values)) for which, values in self.by.items()],
            digits=0,
            caption="How much is kept of the tasks' updates, inside and outside the shared subspace (%)",
            note=f"Mean over tasks. 1/T is {100 / self.tasks:.1f} %. Solved M: nothing protected.",
        )


def measure_kept(ways: Mapping[str, Way]) -> Kept:
    """How much S and M keep of the tasks, in every layer of every pool.

    Args:
        ways: by pool, each of as many tasks; every task has something inside the shared subspace and outside.

    Raises:
        ApgdTeachError: there is no pool.

    Source: (9), (10) in docs/equations.md. Lesson: 05.
    """
    if not ways:
        raise ApgdTeachError("there is no pool here; give one or more.")

    def kept(update: Tensor, vectors: Tensor, basis: Tensor) -> tuple[float, float]:
        outside = off(basis, update)
        shares: tuple[list[float], list[float]] = ([], [])
        for tau in vectors:
            beyond = off(basis, tau)
            for found, mine, theirs in zip(shares, (update - outside, outside), (tau - beyond, beyond), strict=True):
                found.append(float((mine * theirs).sum() / theirs.square().sum()))
        return fmean(shares[0]), fmean(shares[1])

    return Kept(
        tasks=len(next(iter(ways.values())).experts),
        by={
            (pool, layer): (
                *kept(way.solved[layer].start, vectors, way.shared[layer]),
                *kept(way.solved[layer].update, vectors, way.shared[layer]),
            )
            for pool, way in ways.items()
            for layer, vectors in way.vectors.items()
        },
    )


@dataclass(frozen=True)
class Price:
    """What protection does to the surrogate `full`, all layers together, as shares of its value at S.

    Attributes:
        frozen: what lies in the protected directions, which no descent can get below.
        left: all that is left of it in the merged network.
    """

    frozen: float
    left: float


@dataclass(frozen=True)
class Prices:
    """What protection costs, beside what it does to accuracy.

    Attributes:
        by: by pool and share of r protected.
        sweeps: by pool, the accuracies.
    """

    by: dict[str, dict[float, Price]]
    sweeps: Mapping[str, RankSweep]

    def table(self) -> Table:
        """One row per pool and share."""
        return Table(
            ("experts", "share of r protected", "frozen %", "surrogate left %", "mean %", "worst task %"),
            [
                (
                    pool,
                    share_words(share),
                    100 * one.frozen,
                    100 * one.left,
                    self.sweeps[pool].shares[share].mean,
                    self.sweeps[pool].shares[share].worst,
                )
                for pool, by in self.by.items()
                for share, one in by.items()
            ],
            caption="What protection costs",
            note="Frozen and left: of the surrogate's value at S. Mean and worst task: accuracy on the images of the "
            "sweep.",
        )


def measure_prices(ways: Mapping[str, Way], sweeps: Mapping[str, RankSweep]) -> Prices:
    """What of the surrogate is frozen at each share of a sweep, from the weights alone, and what its merges leave.

    Args:
        ways: by pool.
        sweeps: by pool, with the published basis.

    Source: (6), (7), (8), (9) in docs/equations.md. Lesson: 05.
    """

    def prices(way: Way, sweep: RankSweep) -> dict[float, Price]:
        frozen, left, begun = dict.fromkeys(sweep.shares, 0.0), dict.fromkeys(sweep.shares, 0.0), 0.0
        updates = {share: way.updates(sweep.merged[share].state_dict) for share in sweep.shares}
        for layer, vectors in way.vectors.items():
            size = min(vectors.shape[1:])
            # The first k of all shared directions are the shared subspace of k: one decomposition serves all shares.
            every = shared_basis(vectors, size)
            residuals = _residuals(vectors, way.solved[layer].start)
            begun += sum(float(one.square().sum()) for one in residuals) / 2
            along = sum(((every.mT @ one).square().sum(dim=1) for one in residuals), torch.zeros(every.shape[1])) / 2
            for share in sweep.shares:
                frozen[share] += float(along[: round(share * size)].sum())
                left[share] += _surrogate(vectors, updates[share][layer])
        return {share: Price(frozen[share] / begun, left[share] / begun) for share in sweep.shares}

    return Prices({pool: prices(ways[pool], sweep) for pool, sweep in sweeps.items()}, sweeps)


def measure_choices(
    known: Comparison,
    way: Way,
    sweep: RankSweep,
    score: Evaluator | Callable[[StateDict], Scores],
    *,
    scored: Mapping[float, str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Add to a comparison what somebody could choose to protect, with the simple average and two controls.

    * "automatic": soft protection;
    * "random": as many directions as the paper protects, r // 6, and random ones;
    * "all alike": in each layer as long a way as the automatic one, with every direction held by the same share;
    * "share chosen on validation": the share of the sweep with the best mean. It has used labelled images.

    Args:
        known: the comparison to add to.
        way: of the same pool.
        sweep: of the same pool, on images that choose.
        score: what scores a state dict on the images of `known`.
        scored: by share, the label in `known` of the network with that share protected.
        seed: of the random directions.

    Raises:
        ApgdTeachError: a label of `scored` is none of the comparison.

    Source: `benchmarks/protection.md`. Lesson: 05.
    """
    score = score.scores if isinstance(score, Evaluator) else score
    missing = [label for label in (scored or {}).values() if label not in known.merged]
    if missing:
        raise ApgdTeachError(f"nothing called '{missing[0]}' was compared; there are: {', '.join(known.merged)}.")
    draws = torch.Generator("cpu").manual_seed(seed)
    random = {
        layer: torch.linalg.qr(torch.randn(basis.shape, generator=draws, device="cpu")).Q.to(basis)
        for layer, basis in way.shared.items()
    }

    def alike(layer: str, gone: Tensor) -> Tensor:
        soft = soft_projector(way.vectors[layer], METHOD.softness)
        return gone * ((gone - soft @ gone).norm() / gone.norm())

    made = {
        "average": merge(way.base, way.experts, "average"),
        "automatic": sweep.merged["auto"],
        "random": way.merged(lambda gone, basis: off(basis, gone), random),
        "all alike": merge(way.base, way.experts, _Part(way, alike)),
    }
    scores = {label: score(one.state_dict) for label, one in made.items()}
    # One network, one row of numbers: what is known already is not scored again.
    same = next((label for share, label in (scored or {}).items() if math.isclose(share, sweep.best)), None)
    scores["share chosen on validation"] = known.merged[same] if same else score(sweep.merged[sweep.best].state_dict)
    used = {**dict.fromkeys(made, "none"), "share chosen on validation": "labelled"}
    return replace(known, merged={**known.merged, **scores}, data_used={**known.data_used, **used})


def choices_table(compared: Mapping[str, Comparison], reference: str) -> Table:
    """Every network of several comparisons: mean, worst task, what is recovered, and how far it is from one of them.

    Args:
        compared: by pool.
        reference: the label that the means are held against.

    Raises:
        ApgdTeachError: there is no such label in one of the comparisons.

    Lesson: 05.
    """
    rows: list[tuple[object, ...]] = []
    for pool, one in compared.items():
        for label in ("base", *one.merged, "experts"):
            bound = label in ("base", "experts")
            rows.append(
                (
                    pool,
                    "each its own expert" if label == "experts" else label,
                    one.average(label),
                    one.worst(label)[1],
                    "–" if bound else one.recovered_words(label),
                    "–" if bound or label == reference else str(one.against(label, reference)),
                    one.data_used.get(label, "–"),
                )
            )
    return Table(
        ("experts", "network", "mean %", "worst task %", "recovered %", f"mean against {reference}", "data used"),
        rows,
        caption="What could be chosen",
        note="Random: as many random directions are protected. All alike: in each layer as far from S as the automatic "
        "merge, with every direction held by the same share. Recovered: (merged − base) / (experts − base). "
        f"{_INTERVALS} Images: "
        f"{next(iter(compared.values())).tier}.",
    )
