"""What every two tasks do to each other: in a layer, read off their task vectors alone; and when the two are merged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.gaps import spearman
from apgd_teach.figures.style import figure, look, styled
from apgd_teach.merging import StateDict, task_vectors
from apgd_teach.merging.statedict import as_matrix, norm
from apgd_teach.merging.subspace import left_vectors
from apgd_teach.progress import bar
from apgd_teach.tables import Table, written

__all__ = [
    "ALL",
    "MEASURES",
    "Interference",
    "PairCosts",
    "draw_interference",
    "draw_pairs",
    "measure_pairs",
    "pairwise_interference",
]

MEASURES = ("cosine", "conflict", "overlap")
"""What can be measured of two task vectors in a layer; see `pairwise_interference`."""

ALL = "all layers together"
"""Stands in place of a layer's name, before all of them."""


@dataclass(frozen=True, eq=False)
class Interference:
    """Maps task by task, of all layers together and of each; NaN where a task vector is zero: it conflicts with nobody.

    Attributes:
        tasks: names, in the order of both axes of each map.
        cosine: for `ALL` and per layer, shape (task, task), between −1 and 1.
        conflict: for `ALL` and per layer, shape (task, task), per cent.
        overlap: for `ALL` and per layer, shape (task, task), per cent.
        directions: per layer, k, how many left singular vectors of each task were compared.
        chance: for `ALL` and per layer, the overlap of two random subspaces of that size, per cent: 100 k / out.

    Lesson: 03.
    """

    tasks: tuple[str, ...]
    cosine: dict[str, Tensor]
    conflict: dict[str, Tensor]
    overlap: dict[str, Tensor]
    directions: dict[str, int]
    chance: dict[str, float]


def pairwise_interference(vectors: Mapping[str, StateDict]) -> Interference:
    """Three measures of every two task vectors, over all layers that have an output and an input side, and in each.

    * `cosine`: ⟨τᵢ, τⱼ⟩ / ‖τᵢ‖‖τⱼ‖. At −1 one undoes the other.
    * `conflict`: the share of entries in which τᵢ and τⱼ have opposite signs, each entry e weighted by |τᵢₑ τⱼₑ|, in
      per cent. At 50 the signs agree as often as they do not; it is ½ (1 − ⟨τᵢ, τⱼ⟩ / ⟨|τᵢ|, |τⱼ|⟩).
    * `overlap`: ‖UᵢᵀUⱼ‖²_F / k in per cent, U the first k = r // T left singular vectors (one at least), r = min(out,
      in): how far both write into the same output directions, whichever way.

    Over all layers the entries of all of them stand in one long row for the first two; the overlap is the mean of the
    layers', over those in which both tasks moved.

    Args:
        vectors: τ by task and tensor, a kernel taken as the matrix (out, in·kh·kw).

    Raises:
        ApgdTeachError: fewer than two tasks, tasks of different tensors, or none of the tensors is a matrix.

    Source: (1), (2), (10) in docs/equations.md. Lesson: 03.
    """
    if len(vectors) < 2:
        raise ApgdTeachError(f"interference needs two tasks, and there are task vectors of {len(vectors)}; give more.")
    first = next(iter(vectors.values()))
    for task, tau in vectors.items():
        if {key: one.shape for key, one in tau.items()} != {key: one.shape for key, one in first.items()}:
            raise ApgdTeachError(
                f"the task vector of '{task}' has other tensors than that of '{next(iter(vectors))}'; "
                "give vectors of one network."
            )
    layers = [key for key, one in first.items() if one.ndim >= 2 and min(as_matrix(one).shape) >= 2]
    if not layers:
        raise ApgdTeachError("these task vectors have no tensor with an output and an input side; give weights.")
    inner, sizes = ({ALL: torch.zeros(len(vectors), len(vectors)).double()} for _ in range(2))
    overlap, directions, chance = {}, {}, {}
    for layer in layers:
        stack = torch.stack([as_matrix(tau[layer]).detach().cpu().double() for tau in vectors.values()])
        flat = stack.flatten(1)
        inner[layer], sizes[layer] = flat @ flat.mT, flat.abs() @ flat.abs().mT
        # One long row of all layers: its inner products are the sums of the layers'.
        inner[ALL] += inner[layer]
        sizes[ALL] += sizes[layer]
        out, width = stack.shape[1:]
        k = max(1, min(out, width) // len(vectors))
        bases = torch.stack([_first_directions(tau, k) for tau in stack])
        products = torch.einsum("iok,jol->ijkl", bases, bases)
        overlap[layer] = _both_moved(inner[layer]) * 100 * products.square().sum(dim=(2, 3)) / k
        directions[layer], chance[layer] = k, 100 * k / out
    return Interference(
        tuple(vectors),
        {layer: _both_moved(one) * one / _lengths(one) for layer, one in inner.items()},
        # Of two that share no entry nothing agrees and nothing conflicts: 0 / 0 is NaN, and stays it.
        {layer: _both_moved(one) * 50 * (1 - one / sizes[layer]) for layer, one in inner.items()},
        {ALL: torch.stack(list(overlap.values())).nanmean(dim=0), **overlap},
        directions,
        {ALL: sum(chance.values()) / len(chance), **chance},
    )


def _both_moved(inner: Tensor) -> Tensor:
    """1 for two tasks that moved, else NaN, shape (task, task): who did not move has no direction and no sign."""
    moved = inner.diag() > 0
    return torch.where(moved[:, None] & moved[None, :], 1.0, math.nan).double()


def _lengths(inner: Tensor) -> Tensor:
    """‖τᵢ‖‖τⱼ‖, shape (task, task), from all inner products."""
    lengths = inner.diag().sqrt()
    return torch.outer(lengths, lengths)


def _first_directions(tau: Tensor, k: int) -> Tensor:
    """The first k left singular vectors (out, k) of one τ; columns of zeros where it has fewer directions."""
    vectors, values = left_vectors(tau, k)
    # Of a τ of low rank an eigendecomposition invents the rest, and invented directions overlap by chance.
    return vectors * (values[:k] > values[0] * 4 * math.sqrt(torch.finfo(values.dtype).eps))


@dataclass(frozen=True)
class _Look:
    """How a measure is shown. `alike` is +1 where a large number means two tasks that go together, else −1."""

    title: str
    scale: str
    colours: str
    middle: float | None
    digits: int
    unit: str
    alike: int


_LOOKS = {
    # Red is conflict and blue is alike in both maps, and the scale says so to those who see neither.
    "cosine": _Look("Cosine between task vectors", "cosine (above 0: alike)", "RdBu", 0.0, 2, "", 1),
    "conflict": _Look(
        "Opposite signs, by magnitude", "opposite signs (%; above 50: conflict)", "RdBu_r", 50.0, 0, " %", -1
    ),
    "overlap": _Look("Overlap of output directions", "overlap of subspaces (%)", "viridis_r", None, 0, " %", 1),
}


def draw_interference(
    measured: Interference, *, layer: str, measure: str = "cosine", titles: Mapping[str, str] | None = None
) -> Drawing:
    """One measure of one layer, or of all together, as a map, task by task; colours mean the same in every layer.

    A task beside itself is left grey: it says nothing.

    Args:
        measured: what `pairwise_interference` gave.
        layer: the name of a weight, or `ALL`.
        measure: one of `MEASURES`.
        titles: of the tasks, by name; the names themselves where there are none.

    Raises:
        ApgdTeachError: there is no such layer or measure.

    Lesson: 03.
    """
    if measure not in MEASURES:
        raise ApgdTeachError(f"there is no measure '{measure}' of interference; use one of: {', '.join(MEASURES)}.")
    if layer not in measured.cosine:
        raise ApgdTeachError(f"interference was not measured in '{layer}'; there are: {', '.join(measured.cosine)}.")
    how, maps = _LOOKS[measure], getattr(measured, measure)
    names = [(titles or {}).get(task, task) for task in measured.tasks]
    values = _beside(maps[layer])
    low, high = _range(maps, how)
    with styled():
        side = 0.52 * len(names)
        drawn, (axes,) = figure(width=max(6.4, 3.4 + side), height=max(4.2, 1.9 + side))
        axes.set_facecolor("#DADADA")
        picture = axes.imshow(values, cmap=how.colours, vmin=low, vmax=high)
        for row, column in itertools.permutations(range(len(names)), 2):
            value = values[row, column]
            share = (value - low) / (high - low)
            dark = share > 0.45 if how.middle is None else abs(share - 0.5) > 0.31
            axes.text(
                column,
                row,
                written(value, how.digits),
                ha="center",
                va="center",
                fontsize=10,
                # It lies within the map, so the layout need not measure it.
                in_layout=False,
                color="white" if dark else "black",
            )
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.grid(False)
        axes.set_title(f"{how.title}, {layer}")
        drawn.colorbar(picture, ax=axes, shrink=0.8, label=how.scale)
    return Drawing(drawn, _words(measured, layer, measure, names), _numbers(measured, layer))


def _beside(map_: Tensor) -> np.ndarray[Any, Any]:
    """A map without its diagonal, shape (task, task)."""
    values = map_.numpy().copy()
    np.fill_diagonal(values, math.nan)
    return values


def _range(maps: Mapping[str, Tensor], how: _Look) -> tuple[float, float]:
    """Ends of the colours: those of every layer together, around the middle where there is one."""
    every = np.concatenate([_beside(one).ravel() for one in maps.values()])
    every = every[np.isfinite(every)]
    if not len(every):
        return (how.middle or 0.0) - 1, (how.middle or 0.0) + 1
    if how.middle is None:
        return 0.0, max(float(every.max()), 1e-9)
    reach = max(float(np.abs(every - how.middle).max()), 1e-9)
    return how.middle - reach, how.middle + reach


def _ends(map_: Tensor) -> tuple[tuple[float, tuple[int, int]], tuple[float, tuple[int, int]]] | None:
    """The lowest and the highest number off the diagonal, each with its pair; None where there is no number."""
    pairs = [(float(map_[i, j]), (i, j)) for i, j in itertools.combinations(range(len(map_)), 2)]
    pairs = [one for one in pairs if not math.isnan(one[0])]
    return (min(pairs), max(pairs)) if pairs else None


def _words(measured: Interference, layer: str, measure: str, names: list[str]) -> str:
    how, where = _LOOKS[measure], f"{'Over' if layer == ALL else 'In'} {layer}"
    ends = _ends(getattr(measured, measure)[layer])
    if ends is None:
        return f"{where} no two tasks have task vectors that can be compared."
    what = {
        "cosine": "cosine",
        "conflict": "opposite signs, weighted by magnitude,",
        "overlap": "overlap of output directions",
    }
    said = [
        f"{names[i]} and {names[j]} ({written(value, how.digits)}{how.unit})" for value, (i, j) in ends[:: how.alike]
    ]
    aside = ""
    if measure == "conflict":
        aside = "; at 50 % signs agree as often as not"
    if measure == "overlap":
        many = "as many directions in each" if layer == ALL else f"{measured.directions[layer]} directions"
        aside = f"; two random subspaces of {many} would overlap by {measured.chance[layer]:.0f} %"
    if ends[0][1] == ends[1][1]:
        return f"{where}, by {what[measure]} the only pair that can be compared is {said[0]}{aside}."
    level = {written(value, how.digits) for value, _ in ends}
    if len(level) == 1:
        return f"{where}, by {what[measure]} all pairs are equally alike ({level.pop()}{how.unit}){aside}."
    least = ends[:: how.alike][0][0]
    # Where nobody is in conflict, nobody is the most so.
    in_conflict = how.middle is not None and how.alike * (least - how.middle) < 0
    apart = "most in conflict" if in_conflict else "least alike"
    return f"{where}, by {what[measure]} {apart} are {said[0]}, and most alike {said[1]}{aside}."


def _numbers(measured: Interference, layer: str) -> dict[str, float]:
    found = {}
    for name, unit in (("cosine", "−1 to 1"), ("conflict", "%"), ("overlap", "%")):
        ends = _ends(getattr(measured, name)[layer])
        title = {"conflict": "opposite signs"}.get(name, name)
        for end, word in enumerate(("lowest", "highest")):
            found[f"{word} {title} ({unit})"] = ends[end][0] if ends else math.nan
    return found


# What a pair costs


@dataclass(frozen=True)
class PairCosts:
    """Every two experts, merged by averaging the two, and what the weights alone said of them before.

    Attributes:
        titles: of the tasks, by name.
        pairs: names of the two tasks.
        kinds: per pair, the family that both tasks are of, or "two families".
        measures: "cosine", "conflict" and "overlap" per pair, see `pairwise_interference`, over all layers together.
        lengths: per pair, ‖τ‖ over all tensors, mean of the two tasks.
        gaps: per pair, the gap of the merged network to the task's own expert (nats), mean of the two tasks.
        lost: per pair, the accuracy of the two experts, each on its own task, less that of the merged network (points),
            mean of the two tasks.
        tier: of the images, and how many per task.

    Lesson: 03.
    """

    titles: dict[str, str]
    pairs: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...]
    measures: dict[str, tuple[float, ...]]
    lengths: tuple[float, ...]
    gaps: tuple[float, ...]
    lost: tuple[float, ...]
    tier: str

    @property
    def cheapest(self) -> int:
        """Place of the pair with the smallest gap."""
        return min(range(len(self.gaps)), key=self.gaps.__getitem__)

    @property
    def dearest(self) -> int:
        """Place of the pair with the largest gap."""
        return max(range(len(self.gaps)), key=self.gaps.__getitem__)

    def table(self) -> Table:
        """The pairs at both ends of the opposite signs, and of the gap."""
        signs = self.measures["conflict"]
        named = {
            "fewest opposite signs": self.end("conflict", alike=True),
            "most opposite signs": self.end("conflict", alike=False),
            "smallest gap": self.cheapest,
            "largest gap": self.dearest,
        }
        return Table(
            ("pair", "", "opposite signs %", "cosine", "mean ‖τ‖", "gap, nats", "accuracy lost, points"),
            [
                (
                    self.name(place),
                    what,
                    round(signs[place]) if math.isfinite(signs[place]) else None,
                    written(self.measures["cosine"][place], 2),
                    self.lengths[place],
                    f"{self.gaps[place]:.2f}",
                    self.lost[place],
                )
                for what, place in named.items()
            ],
            caption="Two experts averaged: what the weights said, and what it cost (mean of the two tasks)",
            note=f"Of {len(self.pairs)} pairs. {self.tier}.",
        )

    def name(self, place: int) -> str:
        """The titles of a pair's two tasks."""
        return " + ".join(self.titles[task] for task in self.pairs[place])

    def end(self, measure: str, *, alike: bool) -> int:
        """Place of the pair that is most alike by a measure, or least. The first where several are."""
        sign = _LOOKS[measure].alike * (1 if alike else -1)
        keys = [-math.inf if math.isnan(value) else sign * value for value in self.measures[measure]]
        return max(range(len(keys)), key=keys.__getitem__)

    def correlation(self, measure: str) -> float:
        """Spearman's rank correlation of a measure with the gap.

        NaN where one of the two is the same everywhere, or a task did not move and cannot be compared.
        """
        return spearman(self.measures[measure], self.gaps)

    def by_chance(self, measure: str, draws: int = 2000) -> float:
        """The share of random renumberings of the tasks under which the rank correlation is as far from zero, per cent.

        Pairs share tasks, so 28 pairs are no 28 independent points: the tasks are what is permuted (Mantel's test).
        """
        names = list(self.titles)
        place = {frozenset(pair): at for at, pair in enumerate(self.pairs)}
        there, seen = self.measures[measure], abs(self.correlation(measure))
        chance, reached = np.random.default_rng(0), 0
        for _ in range(draws):
            other = dict(zip(names, chance.permutation(names), strict=True))
            moved = [there[place[frozenset(other[task] for task in pair)]] for pair in self.pairs]
            reached += abs(spearman(moved, self.gaps)) >= seen - 1e-12
        return 100 * reached / draws


def measure_pairs(
    evaluator: Evaluator, base: StateDict, experts: Mapping[str, StateDict], *, progress: bool = True
) -> PairCosts:
    """Average every two experts and score both tasks, beside what their task vectors say of the pair.

    Args:
        evaluator: says which images; its pool has the tasks of `experts`.
        base: θ₀.
        experts: θᵢ by task; two or more.
        progress: show a bar.

    Raises:
        ApgdTeachError: there are fewer than two experts, or one of a task that the evaluator does not have.

    Source: (3) in docs/equations.md. Lesson: 03.
    """
    vectors = task_vectors(base, experts)
    between = pairwise_interference(vectors)
    lengths = {task: math.hypot(*map(norm, tau.values())) for task, tau in vectors.items()}
    own = {task: evaluator.score(state, task) for task, state in experts.items()}
    pairs = tuple(itertools.combinations(experts, 2))
    gaps, lost = [], []
    with bar(len(pairs), "pair", "averages of two", progress) as done:
        for pair in pairs:
            # The average of two, as `merge` makes it; without the checks and hashes of 28 merges.
            steps = [vectors[task] for task in pair]
            merged = {
                key: sum((tau[key] / 2 for tau in steps), tensor) if key in steps[0] else tensor
                for key, tensor in base.items()
            }
            scores = {task: evaluator.score(merged, task) for task in pair}
            gaps.append(sum(scores[task].loss - own[task].loss for task in pair) / 2)
            lost.append(sum(own[task].accuracy - scores[task].accuracy for task in pair) / 2)
            done.update(1)
    tasks = evaluator.pool.tasks
    families = [{tasks[task].family for task in pair} for pair in pairs]
    return PairCosts(
        titles={task: tasks[task].title for task in experts},
        pairs=pairs,
        kinds=tuple(two.pop() if len(two) == 1 else "two families" for two in families),
        measures={
            name: tuple(float(getattr(between, name)[ALL][i, j]) for i, j in itertools.combinations(range(len(own)), 2))
            for name in MEASURES
        },
        lengths=tuple(sum(lengths[task] for task in pair) / 2 for pair in pairs),
        gaps=tuple(gaps),
        lost=tuple(lost),
        tier=f"{evaluator.pool.tier} tier, {evaluator.split} split, {evaluator.images(pairs[0][0]):,} a task",
    )


def draw_pairs(measured: PairCosts, *, measure: str = "conflict") -> Drawing:
    """Each pair as a point: what the weights say of it, and what averaging the two costs.

    Args:
        measured: what `measure_pairs` gave.
        measure: one of `MEASURES`.

    Raises:
        ApgdTeachError: there is no such measure.

    Lesson: 03.
    """
    if measure not in MEASURES:
        raise ApgdTeachError(f"there is no measure '{measure}' of interference; use one of: {', '.join(MEASURES)}.")
    how, values = _LOOKS[measure], measured.measures[measure]
    ends = [measured.end(measure, alike=alike) for alike in (True, False)]
    drawn_over = (
        (values, f"{how.title.lower()}{' (%)' if how.unit else ''}"),
        (measured.lengths, "mean length ‖τ‖ of the two"),
    )
    with styled():
        drawn, both = figure(columns=2, width=9.0, height=4.8)
        for axes, title, (across, label) in zip(both, ("by direction", "by length"), drawn_over, strict=True):
            axes.set_title(title)
            for i, kind in enumerate(sorted(set(measured.kinds), key=lambda kind: (kind == "two families", kind))):
                places = [place for place, one in enumerate(measured.kinds) if one == kind]
                axes.plot(
                    [across[place] for place in places],
                    [measured.gaps[place] for place in places],
                    **{**look(i), "linestyle": ""},
                    markersize=8,
                    label=kind if kind == "two families" else f"both {kind}",
                )
            for place in dict.fromkeys((*ends, measured.dearest)):
                axes.plot(across[place], measured.gaps[place], "o", color="black", fillstyle="none", markersize=15)
            axes.set_xlabel(label)
        both[0].set_ylabel("gap when the two are averaged (nats)")
        drawn.suptitle("What the weights say of a pair, and what it costs")
        drawn.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    alike, apart = (
        f"{measured.name(place)} ({written(values[place], how.digits)}{how.unit}; gap {measured.gaps[place]:.2f} nats, "
        f"{written(measured.lost[place], 1)} points of accuracy lost)"
        for place in ends
    )
    return Drawing(
        drawn,
        f"{how.title}, over all weights. Most alike: {alike}. Least alike: {apart}. Rank correlation with the gap over "
        f"{len(values)} pairs: {written(measured.correlation(measure), 2)}.",
        {
            "rank correlation with the gap (−1 to 1)": measured.correlation(measure),
            "gap of the pair most alike (nats)": measured.gaps[ends[0]],
            "gap of the pair least alike (nats)": measured.gaps[ends[1]],
        },
    )
