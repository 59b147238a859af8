"""Projected gap-minimising descent: the method of the course."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging.coefficients import task_aware
from apgd_teach.merging.descent import Path, descend, off
from apgd_teach.merging.exact import FILTERS, full_solution, minimise
from apgd_teach.merging.method import ALONE, Fact, Layer, Update
from apgd_teach.merging.objective import Full, Objective, objective
from apgd_teach.merging.polar import noise
from apgd_teach.merging.published import leak
from apgd_teach.merging.rank import RULES, LayerFacts, automatic_rank
from apgd_teach.merging.settings import number, whole
from apgd_teach.merging.statedict import norm
from apgd_teach.merging.subspace import BASES, eigh_in_place, gram, overflows, shared_basis, soft_projector
from apgd_teach.merging.surrogate import before_and_after, check_granularity
from apgd_teach.merging.threshold import mask, shares, trimmed

__all__ = ["BIASES", "PAPER", "SOFT", "SOLVERS", "Apgd", "Solution"]

SOLVERS = ("exact", "descent")
BIASES = ("column", "average")
"""How a bias is merged: with its weight, as the column that an input of 1 is multiplied by, or averaged."""
SOFT = ("auto", "soft")
"""Words for `protect` that mean: every direction as far as it is shared (`subspace.soft_projector`)."""


@dataclass(frozen=True)
class Solution:
    """One layer, solved, before any trimming or flattening.

    Attributes:
        update: M, shape (out, in).
        start: S = Σ λᵢτᵢ, shape (out, in).
        coefficients: λ, shape (task,).
        basis: U of the protected subspace, shape (out, k); k = 0 where the protection is soft.
        path: of descent; empty for the exact solution. Where the protection is soft, of the descent before it.
        left: what of the quadratic is left at S and at M, as shares of its value at the base (M = 0); and how long the
            projected gradient is at M (where the protection is soft: before it), as a share of its length at S.
        soft: W of soft protection, shape (out, out); None where it is hard.

    Lesson: 06.
    """

    update: Tensor
    start: Tensor
    coefficients: Tensor
    basis: Tensor
    path: Path = ()
    left: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    soft: Tensor | None = None

    @property
    def delta(self) -> Tensor:
        """Δ, from M = Σ λᵢ(τᵢ + Δ), shape (out, in)."""
        together = self.coefficients.sum()
        return (self.update - self.start) / together if together > 0 else torch.zeros_like(self.update)

    @property
    def protected(self) -> float:
        """How many directions are protected, as a share of r = min(out, in); of soft protection, in effect: tr W."""
        count = self.basis.shape[1] if self.soft is None else float(self.soft.diagonal().sum())
        return count / min(self.update.shape)

    def leak(self, update: Tensor) -> float:
        """‖P(M − S)‖ / ‖PS‖ of an M (out, in), with W in place of P where the protection is soft."""
        return leak(self.basis if self.soft is None else self.soft, update, self.start)


@dataclass(frozen=True)
class Apgd:
    """M = Σ λᵢ(τᵢ + Δ), with a Δ that makes the estimated gaps small and leaves alone what the tasks share.

    Per layer: coefficients λ; the shared subspace U; Δ from the surrogate of `granularity`, its gradient projected off
    U; then, if asked for, trim and flattening, which come after the constraint and break it: the audit states the leak
    before and after.

    Attributes:
        granularity: "layer", "row" (the paper's) or "full": how much of the residual is to vanish.
        solver: "exact", or "descent": `steps` steps of projected gradient descent.
        protect: share of r = min(out, in) that is protected, 0 to 1; or "auto", each direction as far as it is shared
            (`subspace.soft_projector`); or a rule of `rank.RULES` for the number of directions.
        softness: κ, for "auto": the share of all energy at which a direction is half protected.
        power: p, for "full": weight sᵖ of a task's singular directions in its residual.
        directions: for "full": share of r of each task's directions that count; 1 counts all.
        filter: for "full" and "exact": "time" or "cutoff"; see `spectral_filter`.
        strength: of the filter: a time (3 when None), or a share (0.001 when None).
        flatten: share by which the singular values of the solved M are drawn to their mean: 0 leaves them.
        trim: share of each expert's largest |τ| over all merged layers in whose places (τᵢ + Δ) is kept; 1 keeps all.
        coefficient: c of λᵢ = min(1, c·median‖τ‖/‖τᵢ‖); when None 1/T, T the tasks that moved in the layer, so that
            S is about their average.
        basis: of the shared subspace, "published" or "weighted".
        steps: of descent.
        reach: no direction of the merged M is longer than reach · ‖θ₀‖² / (τ̄ √r), τ̄ the mean of ‖τᵢ‖: its length times
            that of an expert's typical direction, τ̄/√r, is at most this share of the squared length of the base's,
            ‖θ₀‖/√r. What a first order leaves out is made of such products. None: no limit. Nor is there one where
            nobody says how long the base is (the method called by hand), or it is zero.
        biases: "column": a bias is merged with its weight, as the weight of an input that is always 1; "average".

    The defaults are those that the project's own runs support best: the highest mean recovered gap on validation images
    over two networks (ConvNet, MLP), SGD and AdamW, mild and hot fine-tuning, nothing counted below −1. They were
    chosen in two steps: power, filter and flattening of some two dozen candidates (`benchmarks/settings.md`), and then,
    with these as they are, biases as columns and the reach (`benchmarks/reach.md`: of the reaches within 0.01 of the
    best mean the shortest; 0.06 to 0.13 are hardly told apart). They protect nothing: where the
    solved M is drawn to equal singular values, a hard constraint gave little more in any setting and took much away in
    some. The paper's own choice is `PAPER`. What they are worth beside other methods, on seeds that chose nothing, and
    where they lose: lesson 07, and `benchmarks/compare.py`.

    Where the spectrum is flattened less, protection has something to do. With flatten 0.5 and protect "auto" each of
    sixteen settings that its κ was not chosen on (two optimisers and two regimes, on new seeds, another network and
    other tasks) came within a tenth of (experts − base) of the best constant share there, and the mean over each of the
    four suites lay above that of any one constant: `benchmarks/protection.md`. That was measured without the two last
    pieces; the defaults, without them too, recovered as much on those pools.

    Facts for the audit: "coefficients"; "protected", share of r, of soft protection the share that it amounts to;
    "leak", ‖P(M − S)‖/‖PS‖ of the solved M, which soft protection (W in place of P) makes small and not zero;
    "leak_merged", of the merged one; "limited", the share of r of M's directions that `reach` cut; "kept", share of
    each task's entries (when trimmed); "objective_before" and "objective_solved", the quadratic that was minimised at S
    and at the solved M, as shares of its value at the base (M = 0); "gradient_left", the projected gradient's length at
    the solved M as a share of that at S: how far the solver went (the filters stop early on purpose);
    "surrogate_before" and "surrogate_after", per task, the granularity's plain surrogate (`surrogate`: for "full" with
    p = 2 and all directions, whatever was minimised) at S and at the merged M, as shares of the base's.

    Raises:
        MergeError: a setting that is none.

    Source: Wei et al., ICML 2025, arXiv 2501.01230; (2) to (17) in docs/equations.md. Lesson: 06.
    """

    granularity: str = "full"
    solver: str = "exact"
    protect: float | str = 0.0
    softness: float = 0.0625
    power: float = 1.5
    directions: float = 1.0
    filter: str = "time"
    strength: float | None = None
    flatten: float = 0.75
    trim: float = 1.0
    coefficient: float | None = None
    basis: str = "published"
    steps: int = 400
    reach: float | None = 0.06
    biases: str = "column"
    name: ClassVar[str] = "apgd"

    def __post_init__(self) -> None:
        check_granularity(self.granularity)
        for name, known in (("solver", SOLVERS), ("filter", FILTERS), ("basis", BASES), ("biases", BIASES)):
            if getattr(self, name) not in known:
                raise MergeError(f"method 'apgd' has {name} = {getattr(self, name)!r}; use one of: {', '.join(known)}.")
        if isinstance(self.protect, str):
            if self.protect not in (*SOFT, *RULES):
                raise MergeError(
                    f"method 'apgd' has protect = {self.protect!r}; give a number from 0 to 1 or one of: "
                    f"{', '.join((*SOFT, *RULES))}."
                )
        else:
            number(self.name, "protect", self.protect, 0, 1)
        number(self.name, "softness", self.softness, 1e-3, 1e3)
        number(self.name, "power", self.power, 0, 8)
        number(self.name, "directions", self.directions, 0, 1, above=True)
        if self.filter == "cutoff":
            number(self.name, "strength", self._strength, 0, 1, below=True)
        number(self.name, "strength", self._strength, 0, 1e9)
        number(self.name, "flatten", self.flatten, 0, 1)
        number(self.name, "trim", self.trim, 0, 1, above=True)
        if self.coefficient is not None:
            # Where λ is 0 no Δ can be seen in M = Σ λᵢ(τᵢ + Δ), and there is nothing to trim.
            number(self.name, "coefficient", self.coefficient, 0, above=self.trim < 1)
        whole(self.name, "steps", self.steps, 0)
        if self.reach is not None:
            number(self.name, "reach", self.reach, 0, above=True)

    def __call__(self, task_vectors: Tensor, layer: Layer = ALONE) -> Update:
        """The merged update M (out, in) of one layer, from τ (task, out, in)."""
        if overflows(task_vectors):
            return Update(torch.full_like(task_vectors[0], torch.nan))
        solved = self.solve(task_vectors, layer)
        update = solved.update
        facts: dict[str, Fact] = {}
        if self.trim < 1:
            kept = mask(task_vectors, self.trim, layer.thresholds)
            update = trimmed(task_vectors, solved.delta, solved.coefficients, kept)
            facts["kept"] = shares(kept)
            del kept
        facts.update(_solved_facts(solved))
        longest = self.longest(task_vectors, layer)
        if self.flatten or longest < math.inf:
            # Where memory peaks a layer less is held: W is made again.
            softly, solved = solved.soft is not None, replace(solved, soft=None)
            update, facts["limited"] = reshaped(
                update, self.flatten, longest, least=layer.noise(len(task_vectors)) if self.flatten else 0.0
            )
            solved = replace(solved, soft=soft_projector(task_vectors, self.softness) if softly else None)
        facts["leak_merged"] = solved.leak(update)
        facts.update(before_and_after(task_vectors, solved.start, update, self.granularity))
        return Update(update, facts)

    def solve(self, task_vectors: Tensor, layer: Layer = ALONE) -> Solution:
        """Coefficients, shared subspace and Δ of one layer; with "descent", the whole path.

        Args:
            task_vectors: τ, shape (task, out, in).
            layer: its base_norm, for the rules of `protect` that ask for it.
        """
        moved = torch.linalg.vector_norm(task_vectors, dim=(1, 2)) > 0
        if bool(moved.any()) and not bool(moved.all()):
            # A task that did not move in this layer asks for nothing: the others are solved as if it were not there.
            solved = self._solve(task_vectors[moved], layer)
            coefficients = torch.zeros_like(task_vectors[:, 0, 0])
            coefficients[moved] = solved.coefficients
            return replace(solved, coefficients=coefficients)
        return self._solve(task_vectors, layer)

    def _solve(self, task_vectors: Tensor, layer: Layer) -> Solution:
        tasks, out, columns = task_vectors.shape
        coefficients = task_aware(task_vectors, 1 / tasks if self.coefficient is None else self.coefficient)
        start = torch.einsum("t,toi->oi", coefficients, task_vectors)
        top = None if self.directions == 1 else max(1, round(self.directions * min(out, columns)))
        quadratic = objective(task_vectors, self.granularity, power=self.power, top=top)
        basis = self.protected(task_vectors, layer)
        soft = soft_projector(task_vectors, self.softness) if self._softly else None
        path: Path = ()
        if self.solver == "descent":
            update, path = descend(quadratic, start, basis, self.steps)
        elif isinstance(quadratic, Full):
            update = full_solution(quadratic, start, basis, self.filter, self._strength)
        else:
            update, _ = minimise(quadratic, start, basis)
        held = update if soft is None else update - soft @ (update - start)
        return Solution(held, start, coefficients, basis, path, _left(quadratic, basis, start, update, held), soft)

    def protected(self, task_vectors: Tensor, layer: Layer = ALONE) -> Tensor:
        """U, shape (out, direction), orthonormal: what Δ leaves alone, by `protect`; no column where that is soft.

        Args:
            task_vectors: τ, shape (task, out, in); every task moved.
            layer: its base_norm, for the rules of `protect` that ask for it.
        """
        return shared_basis(task_vectors, self._rank(task_vectors, layer), basis=self.basis)

    def longest(self, task_vectors: Tensor, layer: Layer) -> float:
        """How long a direction of the merged M may be, by `reach`.

        Args:
            task_vectors: τ, shape (task, out, in).
            layer: its base_norm, ‖θ₀‖.

        Returns:
            reach · ‖θ₀‖² / (τ̄ √r); infinite where nobody said how long the base is, or it is zero.

        Source: (18) in docs/equations.md. Lesson: 06.
        """
        lengths = [length for tau in task_vectors if (length := norm(tau)) > 0]
        if self.reach is None or not layer.base_norm > 0 or not lengths:
            return math.inf
        return self.reach * layer.base_norm**2 / fmean(lengths) / math.sqrt(min(task_vectors.shape[1:]))

    @property
    def _softly(self) -> bool:
        return self.protect in SOFT

    @property
    def _strength(self) -> float:
        return {"time": 3.0, "cutoff": 1e-3}[self.filter] if self.strength is None else self.strength

    def _rank(self, task_vectors: Tensor, layer: Layer) -> int:
        size = min(task_vectors.shape[1:])
        if self._softly:
            return 0
        if not isinstance(self.protect, str):
            return round(self.protect * size)

        def solve(tasks: Tensor, ranks: list[int]) -> list[Tensor]:
            if self.granularity != "full":
                return [replace(self, protect=rank / size, solver="exact").solve(tasks).update for rank in ranks]
            # P and G commute: one solution serves all ranks.
            free = replace(self, protect=0.0, solver="exact").solve(tasks)
            basis = shared_basis(tasks, max(ranks), basis=self.basis)
            return [free.update - _inside(basis[:, :rank], free.update - free.start) for rank in ranks]

        return automatic_rank(self.protect, LayerFacts(task_vectors, layer.base_norm, solve))


PAPER = Apgd(granularity="row", protect=1 / 6, trim=0.3, flatten=0.0, reach=None, biases="average")
"""The paper's choice of settings, with coefficients that suit any size of task vector; as its code computes it to the
letter: `ApgdPublished`."""


def _solved_facts(solved: Solution) -> dict[str, Fact]:
    return {
        "coefficients": tuple(solved.coefficients.tolist()),
        "protected": solved.protected,
        "leak": solved.leak(solved.update),
        "objective_before": solved.left[0],
        "objective_solved": solved.left[1],
        "gradient_left": solved.left[2],
    }


def _left(
    quadratic: Objective, basis: Tensor, start: Tensor, reached: Tensor, update: Tensor
) -> tuple[float, float, float]:
    """`Solution.left`, of what the solver reached and of the update that soft protection made of it."""
    nothing = float(quadratic.value(torch.zeros_like(start)))
    before, after = (float(quadratic.value(one)) for one in (start, update))
    slopes = [norm(off(basis, quadratic.gradient(one))) for one in (start, reached)]
    if not nothing > 0:
        return 0.0, 0.0, 0.0
    return before / nothing, after / nothing, slopes[1] / slopes[0] if slopes[0] else 0.0


def _inside(basis: Tensor, matrix: Tensor) -> Tensor:
    """P X: what of X (out, in) lies in the subspace."""
    return basis @ (basis.mT @ matrix)


def reshaped(update: Tensor, share: float, longest: float = math.inf, *, least: float = 0.0) -> tuple[Tensor, float]:
    """M with its singular values s drawn to their mean, to (1 − share)·s + share·mean(s), and then cut at a limit.

    Where tasks share directions the solved M is long along them: its spectrum is more peaked than any task's. Drawing
    leaves the sum of the singular values what it is; cutting keeps M where the first order has something to say.

    Args:
        update: M, shape (out, in).
        share: 0 draws nothing, 1 makes all singular values equal.
        longest: no singular value stays above this.
        least: singular values up to this are no directions of M, but what rounding left: they become 0. So do those
            that are rounding in M's own dtype (`polar.noise`).

    Returns:
        M, shape (out, in), and the share of r = min(out, in) of its directions that were cut.

    Source: (18) in docs/equations.md; with share 1, no limit and M = Σ τᵢ this is Iso-C, arXiv 2502.04959. Lesson: 06.
    """
    # M = U S Vᵀ; from the smaller Gram side (MMᵀ = U S² Uᵀ) comes all that is needed, in double precision, since a Gram
    # matrix squares the condition. MPS has none, and a double has no wider type: these take the SVD.
    if update.dtype == torch.float64 or update.device.type == "mps":
        left, values, right = torch.linalg.svd(update, full_matrices=False)
        drawn = _drawn(values, share, max(least, noise(update) * float(values.max())))
        return (left * drawn.clamp_max(longest)) @ right, float((drawn > longest).double().mean())
    tall = update.shape[0] > update.shape[1]
    # A block of columns at a time: a whole layer in double precision would weigh as much as two.
    short = update.mT if tall else update
    blocks = short.split(1024, dim=1)
    squares, vectors = eigh_in_place(gram(short))
    values = squares.clamp_min(0).sqrt()
    drawn = _drawn(values, share, max(least, noise(update) * float(values.max())))
    scale = torch.where(values > 0, drawn.clamp_max(longest) / values, 0.0)
    shaped = (vectors * scale) @ vectors.mT
    result = torch.cat([(shaped @ block.to(torch.float64)).to(update.dtype) for block in blocks], dim=1)
    return (result.mT.contiguous() if tall else result), float((drawn > longest).double().mean())


def _drawn(values: Tensor, share: float, least: float) -> Tensor:
    """Singular values drawn to their mean, those of directions that M does not have left at zero."""
    there = values > least
    if not bool(there.any()):
        return torch.zeros_like(values)
    return torch.where(there, (1 - share) * values + share * values[there].mean(), 0.0)
