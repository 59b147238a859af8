"""What every two tasks do to each other: in a layer, read off their task vectors alone; and when the two are merged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import figure, look, styled
from apgd_teach.merging import StateDict, task_vectors
from apgd_teach.merging.statedict import as_matrix
from apgd_teach.merging.subspace import left_vectors
from apgd_teach.progress import bar

__all__ = [
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


@dataclass(frozen=True, eq=False)
class Interference:
    """Maps task by task, per layer; NaN where a task vector is zero, which conflicts with nobody.

    Attributes:
        tasks: names, in the order of both axes of each map.
        cosine: per layer, shape (task, task), between −1 and 1.
        conflict: per layer, shape (task, task), per cent.
        overlap: per layer, shape (task, task), per cent.
        directions: per layer, k, how many left singular vectors of each task were compared.
        chance: per layer, the overlap of two random subspaces of that size, per cent: 100 k / out.

    Lesson: 03, 05.
    """

    tasks: tuple[str, ...]
    cosine: dict[str, Tensor]
    conflict: dict[str, Tensor]
    overlap: dict[str, Tensor]
    directions: dict[str, int]
    chance: dict[str, float]


def pairwise_interference(vectors: Mapping[str, StateDict]) -> Interference:
    """Three measures of every two task vectors, in every layer that has an output and an input side.

    * `cosine`: ⟨τᵢ, τⱼ⟩ / ‖τᵢ‖‖τⱼ‖. At −1 one undoes the other.
    * `conflict`: the share of entries in which τᵢ and τⱼ have opposite signs, each entry e weighted by |τᵢₑ τⱼₑ|, in
      per cent. At 50 the signs agree as often as they do not; it is ½ (1 − ⟨τᵢ, τⱼ⟩ / ⟨|τᵢ|, |τⱼ|⟩).
    * `overlap`: ‖UᵢᵀUⱼ‖²_F / k in per cent, U the first k = r // T left singular vectors (one at least), r = min(out,
      in): how far both write into the same output directions, whichever way.

    Args:
        vectors: τ by task and tensor, a kernel taken as the matrix (out, in·kh·kw).

    Raises:
        ApgdTeachError: fewer than two tasks, tasks of different tensors, or none of the tensors is a matrix.

    Source: method.md §1, §2.5. Lesson: 03, 05.
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
    found = Interference(tuple(vectors), {}, {}, {}, {}, {})
    for layer in layers:
        stack = torch.stack([as_matrix(tau[layer]).detach().cpu().double() for tau in vectors.values()])
        moved = torch.linalg.vector_norm(stack, dim=(1, 2)) > 0
        # A task that did not move has no direction and no sign.
        said = torch.where(moved[:, None] & moved[None, :], 1.0, math.nan).double()
        flat = stack.flatten(1)
        inner, lengths = flat @ flat.mT, torch.linalg.vector_norm(flat, dim=1)
        sizes = flat.abs() @ flat.abs().mT
        # Of two that share no entry nothing agrees and nothing conflicts: 0 / 0 is NaN, and stays it.
        found.cosine[layer] = said * inner / torch.outer(lengths, lengths)
        found.conflict[layer] = said * 50 * (1 - inner / sizes)
        out, width = stack.shape[1:]
        k = max(1, min(out, width) // len(vectors))
        bases = torch.stack([_first_directions(tau, k) for tau in stack])
        products = torch.einsum("iok,jol->ijkl", bases, bases)
        found.overlap[layer] = said * 100 * products.square().sum(dim=(2, 3)) / k
        found.directions[layer], found.chance[layer] = k, 100 * k / out
    return found


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
    "cosine": _Look("Cosine between task vectors", "cosine", "RdBu_r", 0.0, 2, "", 1),
    # Reversed, so that red is alike and blue is conflict in both maps.
    "conflict": _Look("Opposite signs, by magnitude", "weight in opposite signs (%)", "RdBu", 50.0, 0, " %", -1),
    "overlap": _Look("Overlap of output directions", "overlap of subspaces (%)", "viridis_r", None, 0, " %", 1),
}


def draw_interference(
    measured: Interference, *, layer: str, measure: str = "cosine", titles: Mapping[str, str] | None = None
) -> Drawing:
    """One measure of one layer as a map, task by task; colours mean the same in every layer.

    A task beside itself is left grey: it says nothing.

    Args:
        measured: what `pairwise_interference` gave.
        layer: the name of a weight.
        measure: one of `MEASURES`.
        titles: of the tasks, by name; the names themselves where there are none.

    Raises:
        ApgdTeachError: there is no such layer or measure.

    Lesson: 03, 05.
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
                _shown(value, how.digits),
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
    how = _LOOKS[measure]
    ends = _ends(getattr(measured, measure)[layer])
    if ends is None:
        return f"In {layer} no two tasks have task vectors that can be compared."
    what = {
        "cosine": "cosine",
        "conflict": "opposite signs, weighted by magnitude,",
        "overlap": "overlap of output directions",
    }
    said = [
        f"{names[i]} and {names[j]} ({_shown(value, how.digits)}{how.unit})" for value, (i, j) in ends[:: how.alike]
    ]
    aside = ""
    if measure == "conflict":
        aside = "; at 50 % signs agree as often as not"
    if measure == "overlap":
        aside = (
            f"; two random subspaces of {measured.directions[layer]} directions would overlap by "
            f"{measured.chance[layer]:.0f} %"
        )
    if ends[0][1] == ends[1][1]:
        return f"In {layer}, by {what[measure]} the only pair that can be compared is {said[0]}{aside}."
    level = {_shown(value, how.digits) for value, _ in ends}
    if len(level) == 1:
        return f"In {layer}, by {what[measure]} all pairs are equally alike ({level.pop()}{how.unit}){aside}."
    least = ends[:: how.alike][0][0]
    # Where nobody is in conflict, nobody is the most so.
    in_conflict = how.middle is not None and how.alike * (least - how.middle) < 0
    apart = "most in conflict" if in_conflict else "least alike"
    return f"In {layer}, by {what[measure]} {apart} are {said[0]}, and most alike {said[1]}{aside}."


def _numbers(measured: Interference, layer: str) -> dict[str, float]:
    found = {}
    for name, unit in (("cosine", "−1 to 1"), ("conflict", "%"), ("overlap", "%")):
        ends = _ends(getattr(measured, name)[layer])
        title = {"conflict": "opposite signs"}.get(name, name)
        for end, word in enumerate(("lowest", "highest")):
            found[f"{word} {title} ({unit})"] = ends[end][0] if ends else math.nan
    return found


def _shown(value: float, digits: int) -> str:
    if math.isnan(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


# What a pair costs


@dataclass(frozen=True)
class PairCosts:
    """Every two experts, merged by averaging the two, and what the weights alone said of them before.

    Attributes:
        titles: of the tasks, by name.
        pairs: names of the two tasks.
        kinds: per pair, the family that both tasks are of, or "two families".
        measures: "cosine" and "conflict" per pair, see `pairwise_interference`, over all weights together; "overlap"
            as the mean over the layers.
        gaps: per pair, the gap of the merged network to the task's own expert (nats), mean of the two tasks.
        lost: per pair, the accuracy of the two experts, each on its own task, less that of the merged network (points),
            mean of the two tasks.

    Lesson: 03.
    """

    titles: dict[str, str]
    pairs: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...]
    measures: dict[str, tuple[float, ...]]
    gaps: tuple[float, ...]
    lost: tuple[float, ...]

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
        if any(map(math.isnan, self.measures[measure])):
            return math.nan
        return _correlation(_ranks(self.measures[measure]), _ranks(self.gaps))

    def by_chance(self, measure: str, draws: int = 2000) -> float:
        """The share of random renumberings of the tasks under which the rank correlation is as far from zero, per cent.

        Pairs share tasks, so 28 pairs are no 28 independent points: the tasks are what is permuted (Mantel's test).
        """
        names = list(self.titles)
        place = {frozenset(pair): at for at, pair in enumerate(self.pairs)}
        there, gaps, seen = _ranks(self.measures[measure]), _ranks(self.gaps), abs(self.correlation(measure))
        chance, reached = np.random.default_rng(0), 0
        for _ in range(draws):
            other = dict(zip(names, chance.permutation(names), strict=True))
            moved = there[[place[frozenset(other[task] for task in pair)] for pair in self.pairs]]
            reached += abs(_correlation(moved, gaps)) >= seen - 1e-12
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

    Source: method.md §2.1. Lesson: 03.
    """
    vectors = task_vectors(base, experts)
    layers = pairwise_interference(vectors)
    weights = list(layers.cosine)
    flat = {task: torch.cat([tau[key].flatten() for key in weights]).cpu().double() for task, tau in vectors.items()}
    own = {task: evaluator.score(state, task) for task, state in experts.items()}
    pairs = tuple(itertools.combinations(experts, 2))
    measures: dict[str, list[float]] = {name: [] for name in MEASURES}
    gaps, lost = [], []
    with bar(len(pairs), "pair", "averages of two", progress) as done:
        for pair in pairs:
            one, other = (flat[task] for task in pair)
            inner, sizes = one @ other, one.abs() @ other.abs()
            i, j = (list(experts).index(task) for task in pair)
            measures["cosine"].append(float(inner / (one.norm() * other.norm())))
            measures["conflict"].append(float(50 * (1 - inner / sizes)))
            measures["overlap"].append(float(torch.stack([layers.overlap[key][i, j] for key in weights]).mean()))
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
        measures={name: tuple(values) for name, values in measures.items()},
        gaps=tuple(gaps),
        lost=tuple(lost),
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
    with styled():
        drawn, (axes,) = figure(width=7.8, height=4.8)
        for i, kind in enumerate(sorted(set(measured.kinds), key=lambda kind: (kind == "two families", kind))):
            places = [place for place, one in enumerate(measured.kinds) if one == kind]
            axes.plot(
                [values[place] for place in places],
                [measured.gaps[place] for place in places],
                **{**look(i), "linestyle": ""},
                markersize=8,
                label=kind if kind == "two families" else f"both {kind}",
            )
        for place in dict.fromkeys(ends):
            axes.plot(values[place], measured.gaps[place], "o", color="black", fillstyle="none", markersize=15)
        axes.set_xlabel(f"{how.title.lower()}{' (%)' if how.unit else ''}")
        axes.set_ylabel("gap when the two are averaged (nats)")
        axes.set_title("What the weights say of a pair, and what it costs")
        drawn.legend(loc="outside lower center", ncols=3)
    alike, apart = (
        f"{measured.name(place)} ({_shown(values[place], how.digits)}{how.unit}; gap {measured.gaps[place]:.2f} nats, "
        f"{_shown(measured.lost[place], 1)} points of accuracy lost)"
        for place in ends
    )
    return Drawing(
        drawn,
        f"{how.title}, over all weights. Most alike: {alike}. Least alike: {apart}. Rank correlation with the gap over "
        f"{len(values)} pairs: {_shown(measured.correlation(measure), 2)}.",
        {
            "rank correlation with the gap (−1 to 1)": measured.correlation(measure),
            "gap of the pair most alike (nats)": measured.gaps[ends[0]],
            "gap of the pair least alike (nats)": measured.gaps[ends[1]],
        },
    )


def _ranks(values: Sequence[float]) -> np.ndarray[Any, Any]:
    """Ranks from 0; those of equal values are their mean."""
    given = np.asarray(values, dtype=float)
    return np.array([(given < one).sum() + ((given == one).sum() - 1) / 2 for one in given])


def _correlation(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / size if size else math.nan
