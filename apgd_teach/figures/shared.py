"""What the tasks of a pool share, in numbers: overlaps of their subspaces, what lies in the shared one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.merging import StateDict, shared_basis, task_vectors
from apgd_teach.merging.statedict import as_matrix
from apgd_teach.merging.subspace import BASES, left_vectors
from apgd_teach.tables import Table

__all__ = [
    "Firmness",
    "Held",
    "Overlaps",
    "inside",
    "layer_vectors",
    "measure_firmness",
    "measure_held",
    "measure_overlaps",
    "overlap",
    "shuffled",
    "sixth",
    "turned",
]


def layer_vectors(base: StateDict, experts: Mapping[str, StateDict]) -> dict[str, Tensor]:
    """By layer, the task vectors of all tasks as matrices, (task, out, in), the tasks in the order of their names.

    Args:
        base: θ₀. Its tensors of one axis or none are left out.
        experts: θᵢ by name.

    Raises:
        ApgdTeachError: the state dicts do not fit together (`MergeError`, one of its kinds).

    Source: (1), (2) in docs/equations.md. Lesson: 05.
    """
    vectors = task_vectors(base, experts)
    return {
        key: torch.stack([as_matrix(vectors[one][key]) for one in sorted(vectors)])
        for key, tensor in base.items()
        if tensor.ndim > 1 and tensor.is_floating_point()
    }


def sixth(vectors: Tensor, basis: str = "published") -> Tensor:
    """U (out, k) of one layer's τ (task, out, in), with the paper's k = r // 6."""
    return shared_basis(vectors, min(vectors.shape[1:]) // 6, basis=basis)


def inside(matrix: Tensor, basis: Tensor) -> float:
    """‖P X‖² / ‖X‖²: the share of a matrix (out, in) that lies in the subspace of an orthonormal basis (out, k)."""
    return float((basis.mT @ matrix).square().sum() / matrix.square().sum())


def overlap(one: Tensor, other: Tensor) -> float:
    """The mean squared cosine of the principal angles of two subspaces, 0 to 1, from orthonormal bases (out, k).

    Source: Björck and Golub, 1973. Lesson: 05.
    """
    return float((one.mT @ other).square().sum() / min(one.shape[1], other.shape[1]))


def shuffled(vectors: Tensor, seed: int = 0) -> Tensor:
    """Every τ of (task, out, in) with its entries in another order."""
    generator = torch.Generator("cpu").manual_seed(seed)
    flat = vectors.flatten(1)
    order = torch.stack([torch.randperm(flat.shape[1], generator=generator, device="cpu") for _ in flat])
    return flat.gather(1, order.to(flat.device)).view_as(vectors)


def turned(vectors: Tensor, seed: int = 0) -> Tensor:
    """Every τ of (task, out, in) with its outputs turned by a random rotation of its own."""
    generator = torch.Generator("cpu").manual_seed(seed)
    tasks, out, _ = vectors.shape
    rotations = torch.linalg.qr(torch.randn(tasks, out, out, generator=generator, device="cpu")).Q
    return rotations.to(vectors) @ vectors


@dataclass(frozen=True)
class Overlaps:
    """How much what one task writes into lies inside what another one does, pair by pair, as shares.

    Attributes:
        rank: k, how many directions of each task.
        out: how many output units the layer has.
        within: of the pairs of one family.
        across: of the pairs of two families.
        elsewhere: of each task that was fine-tuned from another base as well, with itself.
        random: of as many pairs of random subspaces as there are pairs of tasks.
    """

    rank: int
    out: int
    within: tuple[float, ...]
    across: tuple[float, ...]
    elsewhere: tuple[float, ...]
    random: tuple[float, ...]

    @property
    def chance(self) -> float:
        """What random subspaces have on average, k/out."""
        return self.rank / self.out

    @property
    def above(self) -> int:
        """How many pairs of two families overlap more than any random pair."""
        return sum(one > max(self.random) for one in self.across)

    def table(self) -> Table:
        """Mean, least and most (%) of each group; one without pairs has none."""
        groups = {
            "two tasks of one family": self.within,
            "two tasks of two families": self.across,
            "one task, from two bases": self.elsewhere,
            f"{len(self.random)} random pairs": self.random,
        }
        return Table(
            ("subspaces", "mean %", "least %", "most %"),
            [(name, *(100 * how(one) for how in (fmean, min, max))) for name, one in groups.items() if one],
            caption=f"Overlap of {self.rank} output directions",
            note=f"k/out is {100 * self.chance:.1f} %.",
        )


def measure_overlaps(
    vectors: Mapping[str, Tensor],
    families: Mapping[str, str],
    *,
    rank: int,
    elsewhere: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Overlaps:
    """Compare the first k output directions of every two tasks; beside them random ones, and tasks from another base.

    Args:
        vectors: τ of one layer by task, each (out, in).
        families: of each task.
        rank: k, from 1 to r = min(out, in).
        elsewhere: τ of some of these tasks, fine-tuned from another base.
        seed: of the random subspaces.

    Raises:
        ApgdTeachError: there are fewer than two tasks, or there is no such rank.

    Source: (10) in docs/equations.md. Lesson: 05.
    """
    if len(vectors) < 2:
        raise ApgdTeachError(f"there are {len(vectors)} tasks; give two or more, which can overlap.")
    out, columns = next(iter(vectors.values())).shape
    if not 1 <= rank <= min(out, columns):
        raise ApgdTeachError(f"rank is {rank}; give a whole number from 1 to {min(out, columns)}.")
    bases = {name: left_vectors(tau, rank)[0] for name, tau in vectors.items()}
    pairs = list(combinations(bases, 2))
    generator = torch.Generator("cpu").manual_seed(seed)
    random = torch.linalg.qr(torch.randn(len(pairs), 2, out, rank, generator=generator, device="cpu")).Q
    found: dict[bool, list[float]] = {True: [], False: []}
    for one, other in pairs:
        found[families[one] == families[other]].append(overlap(bases[one], bases[other]))
    return Overlaps(
        rank,
        out,
        within=tuple(found[True]),
        across=tuple(found[False]),
        elsewhere=tuple(overlap(bases[name], left_vectors(tau, rank)[0]) for name, tau in (elsewhere or {}).items()),
        random=tuple(overlap(*two) for two in random),
    )


@dataclass(frozen=True)
class Held:
    """How much of the task vectors lies in the subspace that they share, by layer, as shares of ‖·‖².

    Attributes:
        directions: k of each layer, and out.
        real: of τᵢ, mean over tasks; the least of any task; of the mean of all τᵢ.
        shuffled: the same of task vectors with shuffled entries, in the subspace that is built from these.
        turned: the same of Qᵢτᵢ with a random rotation Qᵢ for each task: singular values as they were, output
            directions that are shared by chance.
    """

    directions: dict[str, tuple[int, int]]
    real: dict[str, tuple[float, float, float]]
    shuffled: dict[str, tuple[float, float, float]]
    turned: dict[str, tuple[float, float, float]]

    def table(self) -> Table:
        """One row per layer (%)."""
        names = ("τᵢ, mean over tasks", "mean τ")
        kinds = {"": self.real, "turned: ": self.turned, "shuffled: ": self.shuffled}
        return Table(
            ("layer", "k", "chance", *(f"{kind}{name}" for kind in kinds for name in names)),
            [
                (
                    layer,
                    k,
                    100 * k / out,
                    *(100 * one for kind in kinds.values() for one in (kind[layer][0], kind[layer][2])),
                )
                for layer, (k, out) in self.directions.items()
            ],
            caption="Share of ‖·‖² inside the shared subspace (%)",
        )


def measure_held(vectors: Mapping[str, Tensor], *, seed: int = 0) -> Held:
    """Of every layer's task vectors the share in their shared subspace, k = r // 6, beside shuffled ones.

    Args:
        vectors: by layer, τ (task, out, in), as `layer_vectors` gives it; r = min(out, in) is 6 or more.
        seed: of the shuffling and the rotations.

    Source: (10) in docs/equations.md. Lesson: 05.
    """

    def shares(taus: Tensor) -> tuple[float, float, float]:
        basis = sixth(taus)
        each = [inside(tau, basis) for tau in taus]
        return fmean(each), min(each), inside(taus.mean(dim=0), basis)

    return Held(
        directions={layer: (min(taus.shape[1:]) // 6, taus.shape[1]) for layer, taus in vectors.items()},
        real={layer: shares(taus) for layer, taus in vectors.items()},
        shuffled={layer: shares(shuffled(taus, seed)) for layer, taus in vectors.items()},
        turned={layer: shares(turned(taus, seed)) for layer, taus in vectors.items()},
    )


@dataclass(frozen=True)
class Firmness:
    """How much of the shared subspace stays when the task vectors change.

    Attributes:
        rank: k, how many directions it has.
        out: of how many.
        stays: by change and by the way that the basis is built (`merging.subspace.BASES`), the overlap of the subspace
            with the one before; where a change can be made in several ways, the mean over them.
    """

    rank: int
    out: int
    stays: dict[str, dict[str, float]]

    def table(self) -> Table:
        """One row per change (%)."""
        return Table(
            ("change", *(f"{basis} basis stays %" for basis in BASES)),
            [(change, *(100 * one for one in by.values())) for change, by in self.stays.items()],
            caption=f"Overlap of the {self.rank} shared directions with those after the change",
            note=f"Chance: {100 * self.rank / self.out:.1f} %.",
        )

    def firmer(self, basis: str) -> list[str]:
        """Under which changes no other basis stays more; the shuffle, after which nothing should stay, is left out."""
        return [change for change, by in self.stays.items() if change != SHUFFLE and by[basis] == max(by.values())]


SHUFFLE = "every τ shuffled"


def measure_firmness(
    vectors: Tensor, others: Mapping[str, Tensor], *, noises: Sequence[float] = (0.1, 0.3, 1.0), seed: int = 0
) -> Firmness:
    """Change the task vectors of a layer, and say how much of the shared subspace, k = r // 6, stays.

    Args:
        vectors: τ of one layer, shape (task, out, in), three tasks or more.
        others: by the change that they stand for, other task vectors of that layer.
        noises: shares of ‖τᵢ‖; noise of that length is added to every τᵢ.
        seed: of noise and shuffling.

    Raises:
        ApgdTeachError: there are fewer than three tasks, or the layer is too small to protect a sixth of it.

    Source: (10) in docs/equations.md. Lesson: 05.
    """
    tasks, out, columns = vectors.shape
    rank, per_task = min(out, columns) // 6, max(1, min(out, columns) // tasks)
    if tasks < 3 or not rank:
        raise ApgdTeachError(
            f"the task vectors have shape {tuple(vectors.shape)}; give (task, out, in) of three tasks or more, in a "
            "layer of six or more directions."
        )
    noise = torch.randn(vectors.shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(vectors)
    noise *= vectors.norm(dim=(1, 2), keepdim=True) / noise.norm(dim=(1, 2), keepdim=True)
    changes = {
        **{f"noise of {100 * share:g} % of ‖τ‖": [vectors + share * noise] for share in noises},
        "a task left out (mean over tasks)": [vectors[torch.arange(tasks) != i] for i in range(tasks)],
        **{change: [one] for change, one in others.items()},
        SHUFFLE: [shuffled(vectors, seed)],
    }

    def built(taus: Tensor, basis: str) -> Tensor:
        return shared_basis(taus, rank, per_task=per_task, basis=basis)

    before = {basis: built(vectors, basis) for basis in BASES}
    return Firmness(
        rank,
        out,
        {
            change: {basis: fmean(overlap(own, built(one, basis)) for one in ways) for basis, own in before.items()}
            for change, ways in changes.items()
        },
    )
