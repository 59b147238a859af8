"""What every two tasks do to each other in a layer, read off their task vectors alone."""

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
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import figure, styled
from apgd_teach.merging import StateDict
from apgd_teach.merging.statedict import as_matrix
from apgd_teach.merging.subspace import left_vectors

__all__ = ["MEASURES", "Interference", "draw_interference", "pairwise_interference"]

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
