"""What tasks share and how much of it to protect: directions by how many tasks use them, angles, accuracy by rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from itertools import pairwise
from statistics import mean, median

import torch
from matplotlib.axis import XAxis
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Difference, Evaluator, Scores, difference
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import COLORS, LINES, MARKERS, figure, styled
from apgd_teach.merging import Apgd, Audit, Layer, Merged, Solution, StateDict, merge
from apgd_teach.merging.descent import off
from apgd_teach.merging.method import ALONE
from apgd_teach.merging.subspace import left_vectors, principal_angles, shared_basis, soft_projector

__all__ = [
    "Accuracy",
    "RankSweep",
    "Sharing",
    "SubspaceAngles",
    "draw_angles",
    "draw_rank",
    "draw_sharing",
    "measure_angles",
    "measure_rank",
    "measure_sharing",
    "share_words",
]


@dataclass(frozen=True)
class Accuracy:
    """One network over all tasks.

    Attributes:
        mean: over the tasks, in per cent.
        worst: of the task that is worst off, in per cent.
        task: that task's title.
    """

    mean: float
    worst: float
    task: str


@dataclass(frozen=True)
class RankSweep:
    """A merge by the share of directions that it protects.

    Attributes:
        shares: by share of r = min(out, in), from least to most, how accurate the merged network is.
        auto: how accurate it is with soft protection, protect = "auto".
        auto_share: the share that soft protection amounts to, all merged layers together.
        auto_range: the smallest and the largest of any layer.
        base: how accurate the base is.
        merged: by share, and under "auto", what the merge gave back.
        against: by share, how much more accurate the network is than that of the least share.
    """

    shares: dict[float, Accuracy]
    auto: Accuracy
    auto_share: float
    auto_range: tuple[float, float]
    base: Accuracy
    merged: dict[float | str, Merged] = field(default_factory=dict, repr=False)
    against: dict[float, Difference] = field(default_factory=dict, repr=False)

    def beside(self, share: float) -> str:
        """In brackets, how much more accurate than with least protected; nothing for the least itself."""
        least = min(self.shares)
        if share == least or share not in self.against:
            return ""
        found = self.against[share]
        return f" ({found} points against {share_words(least)} protected: {found.verdict})"

    @property
    def best(self) -> float:
        """The share with the best mean. Where an end is as good as a share in between it is the end."""
        return max(self._ends_first, key=lambda share: self.shares[share].mean)

    @property
    def worst(self) -> float:
        """The share with the lowest mean. Where an end is as bad as a share in between it is the end."""
        return min(self._ends_first, key=lambda share: self.shares[share].mean)

    @property
    def _ends_first(self) -> list[float]:
        ends = (min(self.shares), max(self.shares))
        return sorted(self.shares, key=lambda share: share not in ends)

    def told(self) -> str:
        """Where the mean is best and where worst, in words, whichever way it goes from one share to the next."""
        means = {share: one.mean for share, one in self.shares.items()}
        first, last = min(means), max(means)
        steps = [after - before for before, after in pairwise(means.values())]
        if not any(steps):
            return f"the mean is {means[first]:.1f} % whatever is protected"
        if min(steps) >= 0 or max(steps) <= 0:
            how = "rises" if max(steps) > 0 else "falls"
            return (
                f"the mean never {'falls' if how == 'rises' else 'rises'} as more is protected: it {how} from "
                f"{means[first]:.1f} % with {share_words(first)} protected to {means[last]:.1f} % with "
                f"{share_words(last)}{self.beside(last)}"
            )
        best, worst = self.best, self.worst
        inner = [name for name, share in (("best", best), ("worst", worst)) if share not in (first, last)]
        where = {
            ("best",): "the best lies in between",
            ("worst",): "the worst lies in between: to protect that much is worse than nothing, and worse than "
            + share_words(last),
            ("best", "worst"): "both lie in between, and neither end is the best or the worst",
            (): "these are the two ends, but in between the mean does not move in one direction only",
        }[tuple(inner)]
        return (
            f"the mean is best with {share_words(best)} protected, {means[best]:.1f} %{self.beside(best)}, and worst "
            f"with {share_words(worst)}, {means[worst]:.1f} %{self.beside(worst)}; {where}"
        )


def measure_rank(
    base: StateDict,
    experts: Mapping[str, StateDict],
    score: Evaluator | Callable[[StateDict], Scores],
    *,
    shares: Sequence[float] = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 6, 1 / 4, 1 / 2, 1),
    titles: Mapping[str, str] | None = None,
    free: Mapping[str, Solution] | None = None,
    **settings: object,
) -> RankSweep:
    """Merge with every share protected, and with soft protection, and score what comes out.

    A layer of granularity "full" is solved once for all shares (see `_Swept`); of the others, once for each.

    Args:
        base: θ₀.
        experts: θᵢ by name.
        score: what scores a state dict on every task: an `Evaluator`, or a function.
        shares: of r = min(out, in), each 0 to 1.
        titles: of the tasks; those of the evaluator's pool, or their names, when None.
        free: by layer, what `Apgd(…).solve` gives with these settings and nothing protected, where that is known
            already, the experts in the order of their names as a merge has them. Only "full" makes use of it.
        settings: of `Apgd`, all but `protect`.

    Raises:
        ApgdTeachError: `protect` is among the settings, there is no share or it is none; and what `merge` raises.

    Source: (10) in docs/equations.md. Lesson: 05, 07.
    """
    if "protect" in settings:
        raise ApgdTeachError("'protect' is what this figure varies; give the shares in `shares`.")
    wanted = sorted({float(share) for share in shares})
    if not wanted or not all(0 <= share <= 1 for share in wanted):
        raise ApgdTeachError(f"shares are {list(shares)!r}; give one or more numbers from 0 to 1.")
    if isinstance(score, Evaluator):
        titles = titles or {name: task.title for name, task in score.pool.tasks.items()}
        score = score.scores
    names = titles or {}

    def accuracy(scores: Scores) -> Accuracy:
        by_task = {task: one.accuracy for task, one in scores.items()}
        least = min(by_task, key=lambda task: by_task[task])
        return Accuracy(mean(by_task.values()), by_task[least], names.get(least, least))

    solved: dict[str, tuple[Solution, Tensor]] = {}
    networks: dict[float | str, Merged] = {}

    def merged(protect: float | str) -> tuple[Scores, Audit]:
        made = merge(base, experts, _Swept.of(free or {}, solved, protect=protect, **settings))
        networks[protect] = made
        return score(made.state_dict), made.audit

    auto, audit = merged("auto")
    sizes = [min(row.shape[0], math.prod(row.shape[1:])) for row in audit.rows if "protected" in row.facts]
    held = [float(row.facts["protected"]) for row in audit.rows if "protected" in row.facts]  # type: ignore[arg-type]
    if not sizes:
        raise ApgdTeachError("no tensor of this network is a matrix or kernel, so there is nothing to protect in it.")
    scored = {share: merged(share)[0] for share in wanted}
    return RankSweep(
        shares={share: accuracy(one) for share, one in scored.items()},
        auto=accuracy(auto),
        auto_share=sum(size * one for size, one in zip(sizes, held, strict=True)) / sum(sizes),
        auto_range=(min(held), max(held)),
        base=accuracy(score(base)),
        merged=networks,
        against={share: difference(one, scored[wanted[0]]) for share, one in scored.items()},
    )


class _Swept(Apgd):
    """`Apgd` at one share after another: a layer of "full" is solved with nothing protected, once, and then held.

    In the gradient M G − B of "full" P acts on the left and all else on the right, so M − S with a subspace protected
    is what it is with nothing protected, projected off the subspace. Of "row" and "layer" that does not hold.
    """

    _free: Mapping[str, Solution]
    _solved: dict[str, tuple[Solution, Tensor]]

    @classmethod
    def of(cls, free: Mapping[str, Solution], solved: dict[str, tuple[Solution, Tensor]], **settings: object) -> _Swept:
        """The method at one share, with what it has in common with the others.

        Args:
            free: solutions that are known, by layer.
            solved: solutions and all shared directions, by layer; filled as layers come.
            settings: of `Apgd`.
        """
        made = cls(**settings)  # type: ignore[arg-type]
        object.__setattr__(made, "_free", free)
        object.__setattr__(made, "_solved", solved)
        return made

    def solve(self, task_vectors: Tensor, layer: Layer = ALONE) -> Solution:
        if self.granularity != "full" or self.solver != "exact":
            return super().solve(task_vectors, layer)
        moved = task_vectors[torch.linalg.vector_norm(task_vectors, dim=(1, 2)) > 0]
        if layer.name not in self._solved:
            known = self._free.get(layer.name)
            if known is None:
                plain = Apgd(**{one.name: getattr(self, one.name) for one in fields(self)})
                known = replace(plain, protect=0.0).solve(task_vectors, layer)
            every = shared_basis(moved, min(moved.shape[1:]), basis=self.basis) if len(moved) else moved.new_zeros(0)
            self._solved[layer.name] = known, every
        found, directions = self._solved[layer.name]
        if not len(moved):
            return found
        step = found.update - found.start
        if self._softly:
            soft = soft_projector(moved, self.softness)
            return replace(found, update=found.update - soft @ step, soft=soft)
        basis = directions[:, : self._rank(moved, layer)]
        return replace(found, update=found.start + off(basis, step), basis=basis)


def draw_rank(measured: RankSweep, *, share: float) -> Drawing:
    """Mean and worst accuracy by the share of directions that is protected, with the automatic choice marked.

    Args:
        measured: from `measure_rank`.
        share: the one that is read; one of those measured.

    Raises:
        ApgdTeachError: it was not measured.

    Lesson: 05, 07.
    """
    near = [one for one in measured.shares if math.isclose(one, share, rel_tol=1e-6, abs_tol=1e-9)]
    if not near:
        known = ", ".join(_fraction(one) for one in measured.shares)
        raise ApgdTeachError(f"no share of {share!r} was measured; there are: {known}.")
    chosen = near[0]
    here, auto, shares = measured.shares[chosen], measured.auto, list(measured.shares)
    with styled():
        drawn, (axes,) = figure(width=8.4, height=4.8)
        for i, name in enumerate(("mean", "worst")):
            values = [getattr(one, name) for one in measured.shares.values()]
            label = "mean over the tasks" if name == "mean" else "worst task"
            style = {"color": COLORS[i], "linestyle": LINES[i]}
            axes.plot(shares, values, **style, marker=MARKERS[i], markersize=5, label=label)
            axes.plot([chosen], [getattr(here, name)], color=COLORS[i], marker=MARKERS[i], markersize=11)
            axes.plot(
                [measured.auto_share],
                [getattr(auto, name)],
                color=COLORS[i],
                marker="*X"[i],
                markeredgecolor="black",
                markersize=(14, 10)[i],
                linestyle="",
                label=f"automatic, {'mean' if name == 'mean' else 'worst task'}",
            )
            axes.axhline(
                getattr(measured.base, name), color="#7A7A7A", linestyle=LINES[i], linewidth=1, label=f"base, {name}"
            )
        axes.axvline(chosen, color="#7A7A7A", linewidth=1, linestyle=":")
        # Shares differ by factors, and 0 is one of them: straight up to the smallest, by factors from there.
        least = min([one for one in shares if one > 0], default=1.0)
        axes.set_xscale("symlog", linthresh=least, linscale=0.4)
        axes.set_xlim(-0.2 * least, 1.2 * max(*shares, measured.auto_share, least))
        _label_shares(axes.xaxis, shares)
        axes.set_xlabel("share of r = min(out, in) output directions that is protected")
        axes.set_ylabel("accuracy (%)")
        axes.set_title("Accuracy by the rank of the protected subspace")
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        low, high = measured.auto_range
        held = share_words(chosen) + (" of each layer's directions" if 0 < chosen < 1 else "")
        words = (
            f"With {held} protected the merged network has a mean accuracy of "
            f"{here.mean:.1f} %{measured.beside(chosen)}, and {here.worst:.1f} % on its worst task ({here.task}). The "
            f"automatic choice amounts to {100 * measured.auto_share:.1f} % of the directions ({100 * low:.1f} to "
            f"{100 * high:.1f} % by layer) and reaches {auto.mean:.1f} % and {auto.worst:.1f} % ({auto.task}); the "
            f"base has {measured.base.mean:.1f} % and {measured.base.worst:.1f} %."
        )
        numbers = {
            "share protected (%)": 100 * chosen,
            "mean accuracy (%)": here.mean,
            "accuracy on the worst task (%)": here.worst,
            "worst task": here.task,
            "automatic: share protected (%)": 100 * measured.auto_share,
            "automatic: mean accuracy (%)": auto.mean,
            "automatic: accuracy on the worst task (%)": auto.worst,
            "base: mean accuracy (%)": measured.base.mean,
        }
        return Drawing(drawn, words, numbers)


def share_words(share: float) -> str:
    """A share of r in words: "nothing", "1/6", "all"."""
    return {0.0: "nothing", 1.0: "all"}.get(share) or _fraction(share)


def _fraction(share: float) -> str:
    """A share as it was thought of: "1/6", "0", "0.137"."""
    near = Fraction(share).limit_denominator(128)
    return str(near) if abs(float(near) - share) < 1e-9 and near.numerator <= 5 else f"{share:.3g}"


def _label_shares(axis: XAxis, shares: list[float]) -> None:
    """A tick at every share; a number only where there is room for it beside the one before."""
    transform = axis.get_transform()
    places = transform.transform(torch.tensor(shares, dtype=torch.float64).numpy())
    room, last, labels = 0.045 * (places[-1] - places[0]), -math.inf, []
    for place, share in zip(places, shares, strict=True):
        fits = place - last >= room
        labels.append(_fraction(share) if fits else "")
        last = place if fits else last
    axis.set_major_locator(FixedLocator(shares))
    axis.set_major_formatter(FixedFormatter(labels))
    axis.set_minor_locator(NullLocator())


@dataclass(frozen=True)
class SubspaceAngles:
    """Principal angles between what two tasks write into, by how many directions of each are looked at.

    Attributes:
        tasks: their names.
        out: how many output units the layer has.
        angles: by rank k, the k angles, smallest first, in degrees.
        random: by rank k, the mean over `draws` of the angles between two random subspaces of rank k, smallest first;
            and the least and the most of any draw: three tuples of k degrees.
        draws: how many pairs of random subspaces.
    """

    tasks: tuple[str, str]
    out: int
    angles: dict[int, tuple[float, ...]]
    random: dict[int, tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]]
    draws: int


def measure_angles(
    one: Tensor,
    other: Tensor,
    tasks: tuple[str, str],
    *,
    ranks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128),
    draws: int = 8,
    seed: int = 0,
) -> SubspaceAngles:
    """Compare the first k left singular vectors of two tasks, and of as many pairs of random subspaces as asked for.

    Args:
        one, other: τ of one layer, each (out, in).
        tasks: what they are called.
        ranks: k, each from 1 to the number of directions that both tasks use.
        draws: pairs of random subspaces.
        seed: of these.

    Raises:
        ApgdTeachError: the shapes do not fit, or there is no such rank or no draw.

    Source: Björck and Golub, 1973; (10) in docs/equations.md. Lesson: 05.
    """
    if one.ndim != 2 or one.shape != other.shape:
        raise ApgdTeachError(
            f"the task vectors have shapes {tuple(one.shape)} and {tuple(other.shape)}; give two of one layer, each "
            "(out, in)."
        )
    pairs = [left_vectors(tau) for tau in (one, other)]
    # What an eigendecomposition cannot tell from nothing is no direction of the task's: see `left_vectors`.
    floor = 4 * math.sqrt(torch.finfo(one.dtype).eps)
    most = min(int((values > floor * values[:1]).sum()) for _, values in pairs)
    wanted = sorted(set(ranks))
    if not wanted or not 1 <= wanted[0] <= wanted[-1] <= most:
        raise ApgdTeachError(
            f"ranks are {list(ranks)!r}; give one or more whole numbers from 1 to {most}, as many directions as both "
            "tasks use in this layer."
        )
    if draws < 1:
        raise ApgdTeachError(f"draws is {draws}; give 1 or more pairs of random subspaces.")
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (draws, 2, one.shape[0], wanted[-1])
    # The first k columns of a random orthonormal basis are a random basis of rank k.
    chance = torch.linalg.qr(torch.randn(shape, generator=generator, device="cpu")).Q
    angles, random = {}, {}
    for rank in wanted:
        angles[rank] = tuple(principal_angles(*(vectors[:, :rank] for vectors, _ in pairs)).tolist())
        drawn = torch.stack([principal_angles(a[:, :rank], b[:, :rank]) for a, b in chance])
        random[rank] = tuple(tuple(each.tolist()) for each in (drawn.mean(0), drawn.amin(0), drawn.amax(0)))
    return SubspaceAngles(tasks, one.shape[0], angles, random, draws)  # type: ignore[arg-type]


def draw_angles(measured: SubspaceAngles, *, rank: int) -> Drawing:
    """All principal angles at one rank, and their median over the ranks; beside both, what chance gives.

    Args:
        measured: from `measure_angles`.
        rank: k, one of those measured.

    Raises:
        ApgdTeachError: it was not measured.

    Lesson: 05.
    """
    if rank not in measured.angles:
        raise ApgdTeachError(f"no rank {rank!r} was measured; there are: {', '.join(map(str, measured.angles))}.")
    found, (chance, least, most) = measured.angles[rank], measured.random[rank]
    ranks = list(measured.angles)
    pair = f"{measured.tasks[0]} and {measured.tasks[1]}"
    with styled():
        drawn, (left, right) = figure(1, 2, width=9.0, height=4.2)
        order = range(1, rank + 1)
        # Marks on a hundred angles would be a broad line.
        size = 6 if rank <= 32 else 0
        left.fill_between(order, least, most, color=COLORS[1], alpha=0.25, linewidth=0)
        left.plot(order, found, color=COLORS[0], linestyle=LINES[0], marker=MARKERS[0], markersize=size, label=pair)
        left.plot(
            order,
            chance,
            color=COLORS[1],
            linestyle=LINES[1],
            marker=MARKERS[1],
            markersize=size,
            label=f"random subspaces: mean of {measured.draws} draws (shaded: least to most)",
        )
        left.set_xlim(0.5, rank + 0.5)
        left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        left.set_xlabel("angle, smallest first")
        left.set_ylabel("principal angle (°)")
        left.set_title(f"All angles at rank {rank} of {measured.out}")
        for i, angles in enumerate((measured.angles, {k: one[0] for k, one in measured.random.items()})):
            right.plot(
                ranks,
                [median(angles[k]) for k in ranks],
                color=COLORS[i],
                linestyle=LINES[i],
                marker=MARKERS[i],
                markersize=5,
            )
            right.plot([rank], [median(angles[rank])], color=COLORS[i], marker=MARKERS[i], markersize=11)
        right.axvline(rank, color="#7A7A7A", linewidth=1, linestyle=":")
        if len(ranks) > 1:
            right.set_xscale("log", base=2)
            right.xaxis.set_major_formatter("{x:g}")
        right.set_xlabel("rank of both subspaces")
        right.set_ylabel("median angle (°)")
        right.set_title("Median as the rank grows")
        for place in (left, right):
            place.set_ylim(0, 95)
            place.set_yticks(range(0, 91, 15))
        drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=1)
        words = (
            f"Between the first {rank} of {measured.out} output directions of {pair} the smallest principal angle is "
            f"{found[0]:.0f}° and the median {median(found):.0f}°; between random subspaces of that rank these are "
            f"{chance[0]:.0f}° and {median(chance):.0f}° (mean of {measured.draws} draws)."
        )
        numbers = {
            "rank": rank,
            "smallest angle (°)": found[0],
            "median angle (°)": median(found),
            "smallest angle, random (°)": chance[0],
            "median angle, random (°)": median(chance),
        }
        return Drawing(drawn, words, numbers)


@dataclass(frozen=True)
class Sharing:
    """How many tasks write into each output direction of a layer.

    Attributes:
        tasks: T, how many there are.
        per_task: how many directions of each task are counted.
        keep: how many directions the paper protects, r // 6.
        counts: of every direction u, most shared first, Σᵢ ‖Pᵢu‖², to which each task adds 0 to 1: the squared singular
            values of the tasks' first directions side by side.
        random: the same of as many random subspaces, mean over `draws`; and the least and the most of any draw.
        draws: of the random subspaces.
    """

    tasks: int
    per_task: int
    keep: int
    counts: tuple[float, ...]
    random: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    draws: int

    @property
    def beyond(self) -> int:
        """How many directions more tasks write into than into any direction of the random subspaces."""
        return sum(one > self.random[2][0] for one in self.counts)

    @property
    def meets(self) -> int:
        """The first direction, counted from 1, into which no more tasks write than into the random one in its place."""
        pairs = enumerate(zip(self.counts, self.random[0], strict=True), 1)
        return next((place for place, (one, chance) in pairs if one <= chance), len(self.counts) + 1)


def measure_sharing(task_vectors: Tensor, *, draws: int = 8, seed: int = 0) -> Sharing:
    """Put the tasks' first directions side by side, and say of each direction how many tasks it belongs to.

    Args:
        task_vectors: τ of one layer, shape (task, out, in).
        draws: of T random subspaces.
        seed: of these.

    Raises:
        ApgdTeachError: these are no task vectors of one layer, or there is no draw.

    Source: (10) in docs/equations.md. Lesson: 05.
    """
    if task_vectors.ndim != 3:
        raise ApgdTeachError(
            f"the task vectors have shape {tuple(task_vectors.shape)}; give those of one layer, (task, out, in)."
        )
    if draws < 1:
        raise ApgdTeachError(f"draws is {draws}; give 1 or more draws of random subspaces.")
    tasks, out, columns = task_vectors.shape
    count = max(1, min(out, columns) // tasks)
    found = _counts(torch.stack([left_vectors(tau, count)[0] for tau in task_vectors]))
    generator = torch.Generator("cpu").manual_seed(seed)
    chance = torch.linalg.qr(torch.randn((draws, tasks, out, count), generator=generator, device="cpu")).Q
    drawn = torch.stack([_counts(one) for one in chance])
    random = tuple(tuple(one.tolist()) for one in (drawn.mean(0), drawn.amin(0), drawn.amax(0)))
    return Sharing(tasks, count, min(out, columns) // 6, tuple(found.tolist()), random, draws)  # type: ignore[arg-type]


def _counts(bases: Tensor) -> Tensor:
    """Σᵢ ‖Pᵢu‖² along each direction, largest first: the eigenvalues of Σ Pᵢ, from bases (task, out, k)."""
    together = bases.permute(1, 0, 2).flatten(1)
    return torch.linalg.eigvalsh(together @ together.mT).flip(0).clamp_min(0)


def draw_sharing(measured: Mapping[str, Sharing], *, layer: str) -> Drawing:
    """How many tasks write into each direction of a layer, beside random subspaces.

    Args:
        measured: by layer, from `measure_sharing`.
        layer: which one to draw.

    Raises:
        ApgdTeachError: it was not measured.

    Lesson: 05.
    """
    if layer not in measured:
        raise ApgdTeachError(f"no layer {layer!r} was measured; there are: {', '.join(measured)}.")
    here = measured[layer]
    out, (chance, least, most) = len(here.counts), here.random
    with styled():
        drawn, (axes,) = figure(width=8.4, height=4.6)
        order = range(1, out + 1)
        axes.fill_between(order, least, most, color=COLORS[1], alpha=0.25, linewidth=0)
        axes.plot(order, here.counts, color=COLORS[0], linestyle=LINES[0], label="the tasks' directions")
        axes.plot(
            order,
            chance,
            color=COLORS[1],
            linestyle=LINES[1],
            label=f"random subspaces: mean of {here.draws} draws (shaded: least to most)",
        )
        axes.axhline(here.tasks, color="#7A7A7A", linewidth=1, linestyle=":", label=f"all {here.tasks} tasks")
        if here.keep:
            axes.axvline(
                here.keep + 0.5, color=COLORS[2], linewidth=1.4, linestyle=LINES[2], label=f"r // 6 = {here.keep}"
            )
        axes.set_xlim(0.5, out + 0.5)
        axes.set_ylim(0, 1.08 * here.tasks)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(f"output direction of {layer}, most shared first")
        axes.set_ylabel("tasks that write into it")
        axes.set_title(f"{here.per_task} directions of each task, put together")
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        kept = f"direction {here.keep} to {here.counts[here.keep - 1]:.1f}; " if here.keep else ""
        words = (
            f"In {layer} the most shared of {out} output directions belongs to {here.counts[0]:.1f} of {here.tasks} "
            f"tasks, {kept}{here.beyond} directions to more than any direction of random subspaces does "
            f"({most[0]:.1f}). From direction {here.meets} on no more tasks write into it than into a random one."
        )
        numbers = {
            "output directions": out,
            "of each task": here.per_task,
            "most shared direction: tasks": here.counts[0],
            "direction r // 6: tasks": here.counts[here.keep - 1] if here.keep else "–",
            "most shared direction, random: tasks": most[0],
            "directions shared more than any random one": here.beyond,
            "no more shared than random ones from direction": here.meets,
        }
        return Drawing(drawn, words, numbers)
